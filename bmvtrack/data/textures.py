"""Random textures and cluttered backgrounds for synthetic sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bmvtrack.arrays import ByteArray, FloatArray

_COLOURS = 4  # in a palette


def palette(generator: np.random.Generator) -> FloatArray:
    """Colours that go together: one hue, neighbouring, opposite or any hues, from grey to vivid.

    Returns:
        ``(4, 3)`` float32 RGB in [0, 255].
    """
    spread = generator.choice([5.0, 25.0, 180.0, 360.0])
    hue = (generator.uniform(0, 360) + spread * generator.uniform(-1, 1, _COLOURS)) % 360
    saturation = generator.beta(1.4, 2.0) * generator.uniform(0.6, 1.0, _COLOURS)
    middle, contrast = generator.uniform(0.3, 0.75), generator.uniform(0.1, 0.35)
    value = np.clip(middle + contrast * np.linspace(-1, 1, _COLOURS), 0.05, 1.0)
    hsv = np.stack([hue, saturation, generator.permutation(value)], axis=-1)
    rgb = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    return np.asarray(255.0 * rgb, dtype=np.float32)


def similar_palette(generator: np.random.Generator, colours: FloatArray) -> FloatArray:
    """A palette close to another one, for objects that hardly stand out; ``(4, 3)`` float32."""
    shifted = colours * generator.uniform(0.75, 1.25) + generator.normal(0, 12, colours.shape)
    return np.asarray(np.clip(shifted, 0, 255), dtype=np.float32)


def noise(
    generator: np.random.Generator, height: int, width: int, cell: float, octaves: int = 4
) -> FloatArray:
    """Value noise in several octaves.

    Args:
        generator: to draw from.
        height: pixels.
        width: pixels.
        cell: size of the largest structures, pixels.
        octaves: number of octaves, each half as large and half as strong as the one before.

    Returns:
        ``(height, width)`` float32 in [0, 1].
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        size = max(cell / 2**octave, 1.0)
        rows, columns = int(height / size) + 2, int(width / size) + 2
        grid = generator.random((rows, columns), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - low) / (high - low + 1e-6), dtype=np.float32)


def texture(
    generator: np.random.Generator, height: int, width: int, cell: float, colours: FloatArray
) -> ByteArray:
    """A patterned surface: noise, marble, stripes, checks, spots, patches or a gradient.

    Args:
        generator: to draw from.
        height: pixels.
        width: pixels.
        cell: size of the pattern's structures, pixels.
        colours: ``(K, 3)`` palette.

    Returns:
        ``(height, width, 3)`` uint8 RGB.
    """
    pattern = _PATTERNS[int(generator.integers(len(_PATTERNS)))]
    field = np.clip(pattern(generator, height, width, cell), 0, 1)
    positions = np.linspace(0, len(colours) - 1, 256)
    ramp = np.stack(
        [np.interp(positions, np.arange(len(colours)), colours[:, i]) for i in range(3)], axis=-1
    )
    painted = cv2.LUT(
        cv2.cvtColor((255 * field).astype(np.uint8), cv2.COLOR_GRAY2RGB),
        ramp.astype(np.uint8)[None],
    )
    strength = generator.uniform(0.1, 0.5)
    grain = 1 + strength * (noise(generator, height, width, max(cell / 3, 4.0), 3) - 0.5)
    return _multiply(painted, grain)


def background(
    generator: np.random.Generator, height: int, width: int, colours: list[FloatArray]
) -> ByteArray:
    """A cluttered scene: regions with their own texture, and many shapes with edges in front of them.

    Args:
        generator: to draw from.
        height: pixels.
        width: pixels.
        colours: palettes ``(4, 3)``, one per surface; two or more.

    Returns:
        ``(height, width, 3)`` uint8 RGB.
    """
    unit = min(height, width)
    surfaces = [
        texture(generator, height, width, unit * generator.uniform(0.06, 0.4), chosen)
        for chosen in colours
    ]
    labels = _regions(generator, height, width, len(surfaces))
    gain = np.full((height, width), 1.0, np.float32)
    for _ in range(int(generator.integers(10, 60))):
        shape = _clutter(generator, height, width)
        cv2.fillPoly(labels, [shape], int(generator.integers(len(surfaces))))
        cv2.fillPoly(gain, [shape], float(generator.uniform(0.55, 1.35)))
    scene = surfaces[0].copy()
    for i, surface in enumerate(surfaces[1:], start=1):
        cv2.copyTo(surface, (labels == i).view(np.uint8), scene)
    scene = _multiply(scene, gain)
    return np.asarray(cv2.GaussianBlur(scene, (0, 0), generator.uniform(0.4, 1.3)), dtype=np.uint8)


def _regions(generator: np.random.Generator, height: int, width: int, count: int) -> ByteArray:
    """Index of the surface at each pixel, ``(height, width)``: a horizon, or irregular patches."""
    waves = noise(generator, height, width, 0.5 * min(height, width), 4)
    if generator.random() < 0.5:
        level = generator.uniform(0.25, 0.6)
        rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
        return np.asarray(rows + 0.3 * (waves - 0.5) > level, dtype=np.uint8)
    return np.asarray(np.minimum(waves * count, count - 1), dtype=np.uint8)


def _clutter(generator: np.random.Generator, height: int, width: int) -> NDArray[np.int32]:
    """Outline of one thing in the background, ``(N, 1, 2)`` int32: box, pole or rough polygon."""
    unit = min(height, width)
    size = unit * generator.uniform(0.03, 0.16, 2)
    if generator.random() < 0.3:
        size = unit * np.array([generator.uniform(0.01, 0.04), generator.uniform(0.2, 0.8)])
    count = 4 if generator.random() < 0.6 else int(generator.integers(5, 12))
    turns = np.linspace(0, 2 * np.pi, count, endpoint=False) + np.pi / 4
    radius = 1.0 if count == 4 else generator.uniform(0.6, 1.1, count)
    points = np.stack([np.cos(turns) * radius * size[0], np.sin(turns) * radius * size[1]], -1)
    angle = generator.normal(0, 0.1) if generator.random() < 0.6 else generator.uniform(0, np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = generator.uniform(0, [width, height])
    return np.asarray(np.round(points @ rotation + centre), dtype=np.int32)[:, None]


def _multiply(image: NDArray[Any], gain: FloatArray) -> ByteArray:
    return np.asarray(np.clip(image * gain[..., None], 0, 255), dtype=np.uint8)


def _phase(generator: np.random.Generator, height: int, width: int, cell: float) -> FloatArray:
    """Distance along a random direction in units of two cells, slightly bent."""
    angle = generator.uniform(0, np.pi)
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    straight = (np.cos(angle) * columns + np.sin(angle) * rows) / (2 * cell)
    bend = generator.uniform(0, 1.0) * noise(generator, height, width, 4 * cell, 2)
    return np.asarray(straight + bend, dtype=np.float32)


def _cloudy(generator: np.random.Generator, height: int, width: int, cell: float) -> FloatArray:
    return noise(generator, height, width, 2 * cell, 5)


def _marble(generator: np.random.Generator, height: int, width: int, cell: float) -> FloatArray:
    veins = np.sin(6 * np.pi * noise(generator, height, width, 3 * cell, 4))
    return np.asarray(0.5 + 0.5 * veins, dtype=np.float32)


def _stripes(generator: np.random.Generator, height: int, width: int, cell: float) -> FloatArray:
    wave = np.sin(2 * np.pi * _phase(generator, height, width, cell))
    return np.asarray(0.5 + generator.uniform(0.5, 3.0) * wave, dtype=np.float32)


def _checks(generator: np.random.Generator, height: int, width: int, cell: float) -> FloatArray:
    first = np.sin(2 * np.pi * _phase(generator, height, width, cell))
    second = np.sin(2 * np.pi * _phase(generator, height, width, cell))
    return np.asarray(0.5 + 2 * first * second, dtype=np.float32)


def _spots(generator: np.random.Generator, height: int, width: int, cell: float) -> FloatArray:
    field = 0.4 * noise(generator, height, width, 2 * cell, 3)
    count = min(int(height * width / (2.5 * cell * cell)) + 3, 200)
    for x, y, size in generator.random((count, 3)):
        centre = (int(x * width), int(y * height))
        cv2.circle(field, centre, max(int((0.2 + 0.5 * size) * cell), 1), 0.5 + 0.5 * size, -1)
    return field


def _patches(generator: np.random.Generator, height: int, width: int, cell: float) -> FloatArray:
    steps = np.floor(4 * noise(generator, height, width, 2.5 * cell, 3)) / 3
    return np.asarray(steps, dtype=np.float32)


def _gradient(generator: np.random.Generator, height: int, width: int, cell: float) -> FloatArray:
    slope = _phase(generator, height, width, max(height, width) / 2)
    return np.asarray(slope - slope.min() + 0.2 * noise(generator, height, width, cell, 3) - 0.1)


_Pattern = Callable[[np.random.Generator, int, int, float], FloatArray]
_PATTERNS: tuple[_Pattern, ...] = (
    _cloudy,
    _marble,
    _stripes,
    _checks,
    _spots,
    _patches,
    _gradient,
)
