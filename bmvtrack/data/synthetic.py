"""Sequences made on the fly from a seed: training and test data that need no download.

A textured object with a random outline moves before a cluttered background under a moving camera,
among distractors that may look like it, be hidden behind it or pass in front of it, in changing light. Its
motion is drawn from a motion prior, its masks are exact, and its boxes come from the masks as for
real data.
Everything is a function of (seed, t): frames are rendered on demand, in any order.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.data import textures
from bmvtrack.data.scene import (
    Scene,
    SceneOptions,
    Sprite,
    checked_prior,
    first_side,
    shutter,
)
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.silhouettes import Silhouette, silhouette
from bmvtrack.data.sprites import TexturedSprite, box_axes
from bmvtrack.errors import UserError

SEEDS_PER_SET = 1_000_000
"""Number of seeds reserved for each ``seed`` of :func:`synthetic_sequences`."""

SEED_STRIDE = 1_000
"""Step between the sets of runs with consecutive seeds: no run is trained on another's test set."""
_SMALLEST_AREA = 0.012  # of the object's mask in frame 0, relative to the frame's


_DEFAULT = SceneOptions()


def synthetic_sequence(seed: int, options: SceneOptions = _DEFAULT) -> VideoSequence:
    """One sequence, ``synthetic-<seed>``; nothing is rendered before a frame or mask is requested.

    Frames are ``(H, W, 3)`` uint8 RGB, masks ``(H, W)`` boolean and show the visible part of the object.
    Frame 0 shows the whole object, on more than 1 % of the frame.

    Args:
        seed: not negative; equal seeds and options give equal sequences.
        options: see :class:`SceneOptions`.

    Raises:
        UserError: if the seed is negative, or the prior is unknown or not in object coordinates.
    """
    if seed < 0:
        raise UserError(f"the seed of a synthetic sequence must not be negative, but it is {seed}")
    scene = _TexturedScene(seed, options, checked_prior(options.prior))
    return VideoSequence(f"synthetic-{seed:06d}", options.length, scene.frame, scene.mask)


def synthetic_sequences(
    count: int, seed: int = 0, options: SceneOptions = _DEFAULT
) -> list[VideoSequence]:
    """``count`` different sequences; sets with different ``seed`` have none in common.

    Raises:
        UserError: if ``count`` is not in 1 … 1,000,000, or for the reasons of :func:`synthetic_sequence`.
    """
    if not 1 <= count <= SEEDS_PER_SET:
        raise UserError(
            f"the number of synthetic sequences must be 1 to {SEEDS_PER_SET:,}, not {count}"
        )
    return [synthetic_sequence(seed * SEEDS_PER_SET + i, options) for i in range(count)]


class _TexturedScene(Scene):
    """Procedural objects before a procedural background."""

    @cached_property
    def _palettes(self) -> list[FloatArray]:
        """Palettes of the background's surfaces."""
        generator = self.generator(0)
        return [textures.palette(generator) for _ in range(int(generator.integers(2, 5)))]

    @cached_property
    def background(self) -> ByteArray:
        """See ``Scene``."""
        height, width = (int(1.5 * s) for s in (self.options.height, self.options.width))
        return textures.background(self.generator(1), height, width, self._palettes)

    def make_sprite(self, generator: np.random.Generator, target: Sprite | None) -> TexturedSprite:
        """See ``Scene``."""
        assert target is None or isinstance(target, TexturedSprite)
        skins = self._skins(generator)
        phases = generator.uniform(0.1, 0.7) * np.arange(self.options.length)
        phases += generator.uniform(0, 2 * math.pi)
        if target is None:
            outline, start = _opening(generator, self.options, phases[0])
        else:
            related = generator.random() < 0.4
            skins = target.skins if related and generator.random() < 0.6 else skins
            same = related and generator.random() < 0.6
            outline = target.outline if same else silhouette(generator)
            start = _start(generator, outline, self.options, phases[0], inside=False)
        rbboxes = self.path(generator, start, outline.upright, target)
        shade = generator.uniform(0, 1.0)
        turn = generator.uniform(0, 2 * math.pi)
        return TexturedSprite(
            outline,
            skins,
            rbboxes,
            phases,
            (shade * math.cos(turn), shade * math.sin(turn)),
            shutter(generator),
        )

    def _skins(self, generator: np.random.Generator) -> tuple[ByteArray, ByteArray]:
        side = int(0.4 * math.sqrt(self.options.width * self.options.height))
        skins = []
        for _ in range(2):
            colours = textures.palette(generator)
            if generator.random() < 0.3:  # hardly stands out
                chosen = self._palettes[int(generator.integers(len(self._palettes)))]
                colours = textures.similar_palette(generator, chosen)
            cell = side * generator.uniform(0.06, 0.5)
            skins.append(textures.texture(generator, side, side, cell, colours))
        return skins[0], skins[1]


def _opening(
    generator: np.random.Generator, options: SceneOptions, phase: float
) -> tuple[Silhouette, FloatArray]:
    """An outline and its first box, entirely inside the frame and not too small."""
    frame_area = options.width * options.height
    while True:
        outline = silhouette(generator)
        start = _start(generator, outline, options, phase, inside=True)
        if outline.fill * start[2] * start[3] > _SMALLEST_AREA * frame_area:
            return outline, start


def _start(
    generator: np.random.Generator,
    outline: Silhouette,
    options: SceneOptions,
    phase: float,
    inside: bool,
) -> FloatArray:
    """A first box with the outline's aspect ratio, ``(5,)``; centred anywhere if ``inside`` is False."""
    frame = np.array([options.width, options.height], dtype=np.float64)
    side = first_side(generator, frame)
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
