"""Sequences made on the fly from a seed: training and test data that need no download.

A textured object of random outline moves before a cluttered background under a moving camera,
among distractors that may look like it, hide behind it or pass before it, in changing light. Its
motion is drawn from a motion prior, its masks are exact, and its boxes come from the masks as for
real data.
Everything is a function of (seed, t): frames are rendered when asked for, in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from bmvtrack import motion
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data import textures
from bmvtrack.data.actors import Actor, box_axes
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.silhouettes import Silhouette, silhouette
from bmvtrack.errors import UserError
from bmvtrack.prior import MotionPrior, load

SEEDS_PER_SET = 1_000_000
"""Seeds set aside for each ``seed`` of :func:`synthetic_sequences`."""

# Measured motion between real frames is mostly jitter of outlines. Here limbs, ripples and what
# hides the object make their own; what is drawn is the smooth part: an AR(1) process in the prior's
# whitened coordinates, tempered so that both together vary as the prior does.
_PERSISTENCE = 0.8
_TEMPER = np.array([0.3, 0.3, 0.3, 0.55, 0.6])
_DRIFT = 0.03  # typical steady shift per frame, in object units
_SIZES = (0.12, 0.5)  # √(w·h) of an object over that of the frame
_SMALLEST_AREA = 0.012  # of the object's mask in frame 0, over that of the frame
_LEAVING = 0.06  # share of sequences whose object may leave the frame


@dataclass(frozen=True)
class SyntheticOptions:
    """What synthetic sequences look like.

    Args:
        width: of a frame, pixels.
        height: of a frame, pixels.
        length: frames in a sequence.
        distractors: fewest and most other objects in a sequence.
        prior: motion prior in ``object`` coordinates, a name or a JSON file.

    Raises:
        UserError: if frames are smaller than 64 pixels or more than three times as long as wide, a
            sequence has no frames, or the distractors aren't 0 ≤ fewest ≤ most.
    """

    width: int = 320
    height: int = 240
    length: int = 30
    distractors: tuple[int, int] = (0, 4)
    prior: str = "davis16"

    def __post_init__(self) -> None:
        short, long = sorted((self.width, self.height))
        if short < 64 or long > 3 * short:
            raise UserError(
                f"synthetic frames must have sides of at least 64 pixels and at most 3:1, "
                f"not {self.width}×{self.height}"
            )
        if self.length < 1:
            raise UserError(f"a synthetic sequence needs at least 1 frame, not {self.length}")
        if not 0 <= self.distractors[0] <= self.distractors[1]:
            raise UserError(f"distractors must be 0 ≤ fewest ≤ most, not {self.distractors}")


_DEFAULT = SyntheticOptions()


def synthetic_sequence(seed: int, options: SyntheticOptions = _DEFAULT) -> VideoSequence:
    """One sequence, ``synthetic-<seed>``; nothing is drawn before a frame or mask is asked for.

    Frames ``(H, W, 3)`` uint8 RGB, masks ``(H, W)`` boolean of what is visible of the object. Frame
    0 shows all of the object, on more than 1 % of the frame.

    Args:
        seed: not negative; equal seeds and options give equal sequences.
        options: see :class:`SyntheticOptions`.

    Raises:
        UserError: on a negative seed, or a prior that is unknown or not in object coordinates.
    """
    if seed < 0:
        raise UserError(f"the seed of a synthetic sequence must not be negative, not {seed}")
    drawn_from = load(options.prior)
    if (drawn_from.coordinates, drawn_from.labels) != ("object", "continuous"):
        raise UserError(
            f"prior {options.prior!r} is in {drawn_from.coordinates} coordinates with "
            f"{drawn_from.labels} labels; synthetic motion needs object and continuous ones"
        )
    scene = _Scene(seed, options, drawn_from)
    return VideoSequence(f"synthetic-{seed:06d}", options.length, scene.frame, scene.mask)


def synthetic_sequences(
    count: int, seed: int = 0, options: SyntheticOptions = _DEFAULT
) -> list[VideoSequence]:
    """``count`` different sequences; those of different ``seed`` have none in common.

    Raises:
        UserError: if ``count`` is not in 1 … 1,000,000 or :func:`synthetic_sequence` refuses.
    """
    if not 1 <= count <= SEEDS_PER_SET:
        raise UserError(f"ask for 1 to {SEEDS_PER_SET:,} synthetic sequences, not {count}")
    return [synthetic_sequence(seed * SEEDS_PER_SET + i, options) for i in range(count)]


@dataclass(frozen=True)
class _Scene:
    """All of one sequence; the parts are made when first needed and kept."""

    seed: int
    options: SyntheticOptions
    prior: MotionPrior

    def frame(self, t: int) -> ByteArray:
        """Frame t, ``(H, W, 3)`` uint8 RGB."""
        t = range(self.options.length)[t]
        width, height = self.options.width, self.options.height
        view = cv2.warpAffine(
            self._background, self._camera[t], (width, height), borderMode=cv2.BORDER_REFLECT_101
        )
        image: NDArray[np.float32] = view.astype(np.float32)
        for actor in (*self._actors[1], self._actors[0], *self._actors[2]):
            layer = actor.paint(t, width, height)
            if layer is not None:
                window = image[layer.rows, layer.columns]
                window *= 1 - layer.alpha
                window += layer.colours
        return self._developed(image, t)

    def mask(self, t: int) -> BoolArray:
        """Mask of frame t, ``(H, W)``: where more than half of a pixel shows the object."""
        t = range(self.options.length)[t]
        target = self._coverage(self._actors[0], t)
        for actor in self._actors[2]:
            target *= 1 - self._coverage(actor, t)
        return np.asarray(target > 0.5)

    def _coverage(self, actor: Actor, t: int) -> FloatArray:
        width, height = self.options.width, self.options.height
        result = np.zeros((height, width), np.float32)
        covered = actor.cover(t, width, height)
        if covered is not None:
            rows, columns, coverage = covered
            result[rows, columns] = coverage[..., 0] * np.float32(1 / 255)
        return result

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose])

    @cached_property
    def _palettes(self) -> list[FloatArray]:
        """Of the background's surfaces."""
        generator = self._generator(0)
        return [textures.palette(generator) for _ in range(int(generator.integers(2, 5)))]

    @cached_property
    def _background(self) -> ByteArray:
        height, width = (int(1.5 * s) for s in (self.options.height, self.options.width))
        return textures.background(self._generator(1), height, width, self._palettes)

    @cached_property
    def _camera(self) -> FloatArray:
        """From the background to each frame, ``(T, 2, 3)`` affine maps: pan, zoom, turn, shake."""
        generator, length = self._generator(2), self.options.length
        size = np.array([self.options.width, self.options.height])
        frames = np.arange(length)[:, None]
        pan = generator.normal(0, 0.006) * frames * size * generator.uniform(-1, 1, 2)
        sway = generator.uniform(0, 0.03) * size * _waves(generator, length, 2)
        shake = generator.exponential(0.4) * generator.standard_normal((length, 2))
        zoom = np.exp(0.12 * _waves(generator, length, 1)[:, 0])
        angle = generator.uniform(0, 0.1) * _waves(generator, length, 1)[:, 0]
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        linear = np.stack([cos, -sin, sin, cos], axis=-1).reshape(length, 2, 2)
        shift = size / 2 + pan + sway + shake - linear @ (0.75 * size)
        return np.concatenate([linear, shift[:, :, None]], axis=-1)

    @cached_property
    def _actors(self) -> tuple[Actor, list[Actor], list[Actor]]:
        """The target, the distractors behind it, and those before it."""
        generator = self._generator(3)
        target = self._actor(generator, None)
        behind: list[Actor] = []
        before: list[Actor] = []
        low, high = self.options.distractors
        for _ in range(int(generator.integers(low, high + 1))):
            actor = self._actor(generator, target)
            before_it = generator.random() < 0.25 and not self._meet(target, actor)
            (before if before_it else behind).append(actor)
        return target, behind, before

    def _meet(self, first: Actor, second: Actor) -> bool:
        """Whether two objects come near each other in frame 0."""
        windows = [a.cover(0, self.options.width, self.options.height) for a in (first, second)]
        touched = np.zeros((self.options.height, self.options.width), np.uint8)
        for window in windows:
            if window is not None:
                touched[window[0], window[1]] += 1
        return bool(touched.max() > 1)

    def _actor(self, generator: np.random.Generator, target: Actor | None) -> Actor:
        """The target (None given), or a distractor, which may take after the target."""
        coats = self._coats(generator)
        phases = generator.uniform(0.1, 0.7) * np.arange(self.options.length)
        phases += generator.uniform(0, 2 * math.pi)
        if target is None:
            outline, start = _opening(generator, self.options, phases[0])
        else:
            related = generator.random() < 0.4
            coats = target.coats if related and generator.random() < 0.6 else coats
            same = related and generator.random() < 0.6
            outline = target.outline if same else silhouette(generator)
            start = _start(generator, outline, self.options, phases[0], inside=False)
        leaves = target is not None or generator.random() < _LEAVING
        rbboxes = _trajectory(generator, self.prior, self.options, start, outline.upright, leaves)
        shade = generator.uniform(0, 1.0)
        turn = generator.uniform(0, 2 * math.pi)
        return Actor(
            outline,
            coats,
            rbboxes,
            phases,
            (shade * math.cos(turn), shade * math.sin(turn)),
            generator.uniform(0.2, 0.9) if generator.random() < 0.4 else 0.0,
        )

    def _coats(self, generator: np.random.Generator) -> tuple[ByteArray, ByteArray]:
        side = int(0.4 * math.sqrt(self.options.width * self.options.height))
        coats = []
        for _ in range(2):
            colours = textures.palette(generator)
            if generator.random() < 0.3:  # hardly stands out
                chosen = self._palettes[int(generator.integers(len(self._palettes)))]
                colours = textures.similar_palette(generator, chosen)
            cell = side * generator.uniform(0.06, 0.5)
            coats.append(textures.texture(generator, side, side, cell, colours))
        return coats[0], coats[1]

    def _developed(self, image: FloatArray, t: int) -> ByteArray:
        """The scene in the light of frame t, as a noisy sensor sees it."""
        width, height = self.options.width, self.options.height
        gains, gammas, shadow, shift, sigma = self._light
        scale = np.array([[16.0, 0, -16 * shift[t, 0]], [0, 16.0, -16 * shift[t, 1]]])
        field = cv2.warpAffine(shadow, scale, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        levels = (np.arange(256) / 255)[:, None] ** gammas[t] * gains[t] * 255  # (256, 3)
        linear = np.clip(image, 0, 255).astype(np.uint8)
        toned: NDArray[np.float32] = np.asarray(cv2.LUT(linear, levels.astype(np.float32)[None]))
        toned *= field[..., None]
        y, x = self._generator(5, t).integers(0, _GRAIN_MARGIN, 2)
        toned += np.float32(sigma) * _grain(height, width)[y : y + height, x : x + width]
        return np.asarray(np.clip(toned, 0, 255, out=toned), dtype=np.uint8)

    @cached_property
    def _light(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, float]:
        """Gains (T, 3), gammas (T, 1), soft shadows at 1/16 scale, their way (T, 2), noise."""
        generator, length = self._generator(4), self.options.length
        gains = 1 + generator.uniform(0, 0.2) * _waves(generator, length, 1)
        gains = gains * (1 + generator.uniform(0, 0.08) * _waves(generator, length, 3))
        gammas = np.exp(generator.normal(0, 0.15) + 0.1 * _waves(generator, length, 1))
        rows, columns = self.options.height // 16 + 30, self.options.width // 16 + 30
        clouds = textures.noise(generator, rows, columns, generator.uniform(4, 12), 2)
        depth = generator.uniform(0, 0.6)
        shadow = 1.0 - depth * np.clip(3 * (clouds - 0.5), 0, 1)
        shift = 5 + 5 * _waves(generator, length, 2)
        return gains, gammas, shadow.astype(np.float32), shift, generator.exponential(3.0)


_GRAIN_MARGIN = 64


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> FloatArray:
    """Standard normal noise, more of it than one frame: each frame takes another piece."""
    shape = (height + _GRAIN_MARGIN, width + _GRAIN_MARGIN, 3)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _waves(generator: np.random.Generator, length: int, count: int) -> FloatArray:
    """Smooth curves in about ±1, of periods from 15 to 100 frames; ``(length, count)``."""
    periods = generator.uniform(15, 100, (2, 1, count))
    phases = generator.uniform(0, 2 * math.pi, (2, 1, count))
    angles = 2 * math.pi * np.arange(length)[:, None] / periods + phases  # (2, length, count)
    return np.asarray(np.sin(angles).mean(axis=0))


def _opening(
    generator: np.random.Generator, options: SyntheticOptions, phase: float
) -> tuple[Silhouette, FloatArray]:
    """An outline and its first box, all inside the frame and not too small."""
    frame_area = options.width * options.height
    while True:
        outline = silhouette(generator)
        start = _start(generator, outline, options, phase, inside=True)
        if outline.fill * start[2] * start[3] > _SMALLEST_AREA * frame_area:
            return outline, start


def _start(
    generator: np.random.Generator,
    outline: Silhouette,
    options: SyntheticOptions,
    phase: float,
    inside: bool,
) -> FloatArray:
    """A first box of the outline's own aspect ratio, ``(5,)``; centred anywhere if not inside."""
    frame = np.array([options.width, options.height], dtype=np.float64)
    side = math.sqrt(frame.prod()) * generator.uniform(1.15 * _SIZES[0], 0.8 * _SIZES[1])
    natural = outline.rbbox[2:4]
    lean = generator.normal(0, 0.1) if outline.upright else generator.uniform(0, 2 * math.pi)
    size = side * natural / math.sqrt(natural.prod())
    start = np.array([0, 0, *size, outline.rbbox[4] + lean])
    points = np.concatenate([c for _, contours in outline.outline(phase) for c in contours])
    points = points @ box_axes(start).T
    low, high = points.min(axis=0), points.max(axis=0)
    shrink = min(1.0, float((0.84 * frame / (high - low)).min()))
    start[2:4] *= shrink
    if inside:
        start[:2] = generator.uniform(3 - shrink * low, frame - 3 - shrink * high)
    else:
        start[:2] = generator.uniform(0, frame)
    return start


def _trajectory(
    generator: np.random.Generator,
    drawn_from: MotionPrior,
    options: SyntheticOptions,
    start: FloatArray,
    upright: bool,
    leaves: bool,
) -> FloatArray:
    """Boxes ``(T, 5)`` that move by tempered, correlated draws from the prior.

    Shifts turn back at the frame's edge (beyond it where the object may leave) and sizes at their
    limits; the aspect ratio, and the lean of upright objects, are drawn back to the first ones.
    """
    frame = np.array([options.width, options.height], dtype=np.float64)
    temper = _TEMPER * math.exp(generator.normal(0, 0.35))
    velocity = generator.standard_normal(5)
    drift = _DRIFT * generator.normal(0, 1, 2)
    rbboxes = [start]
    for _ in range(options.length - 1):
        rbbox = rbboxes[-1]
        side = math.sqrt(rbbox[2] * rbbox[3])
        edge = (-0.8 if leaves else 0.5) * side
        outward = np.where(rbbox[:2] < edge, -1.0, np.where(rbbox[:2] > frame - edge, 1.0, 0.0))
        away = outward * velocity[3:] > 0
        velocity[3:] = np.where(away, -velocity[3:], velocity[3:])
        drift = np.where(outward * drift > 0, -drift, drift)
        share = side / math.sqrt(frame.prod())
        if share < _SIZES[0]:
            velocity[:2] = np.abs(velocity[:2])
        elif share > _SIZES[1]:
            velocity[:2] = -np.abs(velocity[:2])
        fresh = generator.standard_normal(5)
        velocity = _PERSISTENCE * velocity + math.sqrt(1 - _PERSISTENCE**2) * fresh
        step = drawn_from.unwhiten(temper * velocity)
        step[3:] += drift
        stretch = math.log(rbbox[2] / rbbox[3] * start[3] / start[2])
        step[:2] = np.clip(step[:2] * np.exp(np.array([-0.2, 0.2]) * stretch), 0.5, 2.0)
        if upright:
            step[2] -= 0.15 * (rbbox[4] - start[4])
        rbboxes.append(motion.apply(rbbox, step, frame[0], frame[1], "object"))
    return np.stack(rbboxes)
