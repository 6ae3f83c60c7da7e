"""Scenes that are rendered from a seed: objects that move before a background, seen by a camera.

The objects and the background come from :mod:`bmvtrack.data.synthetic` (procedural) and
:mod:`bmvtrack.data.cutouts` (cut out of photographs). Camera, light, noise, trajectories and occlusion
are here. Everything is a function of (seed, t): frames are rendered on demand, in any order.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from bmvtrack import motion
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data import textures
from bmvtrack.data.sprites import Layer, in_three
from bmvtrack.errors import UserError
from bmvtrack.prior import MotionPrior, load

# Measured motion between real frames is mostly jitter of outlines. Here limbs, ripples and occluders
# make such jitter; what is drawn is the smooth part: an AR(1) process in the prior's whitened
# coordinates, tempered so that both together vary as the prior does.
_PERSISTENCE = 0.8
_TEMPER = np.array([0.3, 0.3, 0.3, 0.55, 0.6])
_DRIFT = 0.03  # typical steady shift per frame, in object units
_SIZES = (0.12, 0.5)  # smallest and largest √(w·h) of an object relative to that of the frame
_LEAVING = 0.06  # share of sequences whose target may leave the frame
_BLURRED = 0.4  # share of objects that are blurred by their motion


@dataclass(frozen=True)
class SceneOptions:
    """Options of a scene.

    Args:
        width: frame width in pixels.
        height: frame height in pixels.
        length: number of frames in a sequence.
        distractors: fewest and most other objects in a sequence.
        prior: motion prior in ``object`` coordinates, a name or a JSON file.

    Raises:
        UserError: if a side of the frames is shorter than 64 pixels or more than three times as long as
            the other, a sequence has no frames, or the distractors are not 0 ≤ fewest ≤ most.
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
                f"synthetic frames must have sides of at least 64 pixels and a ratio of at most 3:1, "
                f"not {self.width}×{self.height}"
            )
        if self.length < 1:
            raise UserError(f"a synthetic sequence needs at least 1 frame, not {self.length}")
        if not 0 <= self.distractors[0] <= self.distractors[1]:
            raise UserError(f"distractors must be 0 ≤ fewest ≤ most, not {self.distractors}")


class Sprite(Protocol):
    """An object that moves through a scene."""

    def cover(self, t: int, width: int, height: int) -> tuple[slice, slice, ByteArray] | None:
        """Window of frame t and coverage there, ``(h, w, K)`` in 0 … 255, the first that of all parts."""

    def paint(self, t: int, width: int, height: int) -> Layer | None:
        """The object in frame t; None if it is out of the frame."""


@dataclass(frozen=True)
class Scene:
    """The scene of one sequence; its parts are made when first needed, and kept.

    Args:
        seed: of all random numbers.
        options: see :class:`SceneOptions`.
        prior: of the motion, in ``object`` coordinates.
    """

    seed: int
    options: SceneOptions
    prior: MotionPrior

    @property
    @abstractmethod
    def background(self) -> ByteArray:
        """``(3H/2, 3W/2, 3)`` uint8 RGB."""

    @abstractmethod
    def make_sprite(self, generator: np.random.Generator, target: Sprite | None) -> Sprite:
        """The target, if ``target`` is None; otherwise a distractor, which may resemble the target."""

    @cached_property
    def sprites(self) -> tuple[Sprite, list[Sprite], list[Sprite]]:
        """The target, the distractors behind it, and those in front of it."""
        generator = self.generator(3)
        target = self.make_sprite(generator, None)
        behind: list[Sprite] = []
        before: list[Sprite] = []
        low, high = self.options.distractors
        for _ in range(int(generator.integers(low, high + 1))):
            sprite = self.make_sprite(generator, target)
            before_it = generator.random() < 0.25 and not self.meet(target, sprite)
            (before if before_it else behind).append(sprite)
        return target, behind, before

    def path(
        self,
        generator: np.random.Generator,
        start: FloatArray,
        upright: bool,
        target: Sprite | None,
    ) -> FloatArray:
        """Boxes ``(T, 5)`` that move from ``start``, ``(5,)``, by tempered, correlated draws from the prior.

        Shifts are reflected at the frame's edge and sizes at their limits; the aspect ratio, and the lean of
        upright objects, are pulled back to their initial values. Distractors, and some targets (``target``
        is None), are reflected only beyond the edge.
        """
        leaves = target is not None or generator.random() < _LEAVING
        frame = np.array([self.options.width, self.options.height], dtype=np.float64)
        temper = _TEMPER * math.exp(generator.normal(0, 0.35))
        velocity = generator.standard_normal(5)
        drift = _DRIFT * generator.normal(0, 1, 2)
        rbboxes = [start]
        for _ in range(self.options.length - 1):
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
            step = self.prior.unwhiten(temper * velocity)
            step[3:] += drift
            stretch = math.log(rbbox[2] / rbbox[3] * start[3] / start[2])
            step[:2] = np.clip(step[:2] * np.exp(np.array([-0.2, 0.2]) * stretch), 0.5, 2.0)
            if upright:
                step[2] -= 0.15 * (rbbox[4] - start[4])
            rbboxes.append(motion.apply(rbbox, step, frame[0], frame[1], "object"))
        return np.stack(rbboxes)

    def frame(self, t: int) -> ByteArray:
        """Frame t, ``(H, W, 3)`` uint8 RGB."""
        t = range(self.options.length)[t]
        width, height = self.options.width, self.options.height
        view = cv2.warpAffine(
            self.background, self._camera[t], (width, height), borderMode=cv2.BORDER_REFLECT_101
        )
        image: NDArray[np.float32] = view.astype(np.float32)
        for sprite in (*self.sprites[1], self.sprites[0], *self.sprites[2]):
            layer = sprite.paint(t, width, height)
            if layer is not None:
                layer.lay_over(image)
        return self._developed(image, t)

    def mask(self, t: int) -> BoolArray:
        """Mask of frame t, ``(H, W)``: pixels of which more than half shows the object."""
        t = range(self.options.length)[t]
        target = self._coverage(self.sprites[0], t)
        for sprite in self.sprites[2]:
            target *= 1 - self._coverage(sprite, t)
        return np.asarray(target > 0.5)

    def _coverage(self, sprite: Sprite, t: int) -> FloatArray:
        width, height = self.options.width, self.options.height
        result = np.zeros((height, width), np.float32)
        covered = sprite.cover(t, width, height)
        if covered is not None:
            rows, columns, coverage = covered
            result[rows, columns] = coverage[..., 0] * np.float32(1 / 255)
        return result

    def generator(self, *purpose: int) -> np.random.Generator:
        """The random number generator of one purpose."""
        return np.random.default_rng([self.seed, *purpose])

    @cached_property
    def _camera(self) -> FloatArray:
        """Affine maps from the background to each frame, ``(T, 2, 3)``: pan, zoom, turn, shake."""
        generator, length = self.generator(2), self.options.length
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

    def meet(self, first: Sprite, second: Sprite) -> bool:
        """Whether the windows of two objects overlap in frame 0."""
        windows = [a.cover(0, self.options.width, self.options.height) for a in (first, second)]
        touched = np.zeros((self.options.height, self.options.width), np.uint8)
        for window in windows:
            if window is not None:
                touched[window[0], window[1]] += 1
        return bool(touched.max() > 1)

    def _developed(self, image: FloatArray, t: int) -> ByteArray:
        """Apply the light of frame t and sensor noise to an image of the scene, which is overwritten."""
        width, height = self.options.width, self.options.height
        gains, gammas, shadow, shift, sigma = self._light
        scale = np.array([[16.0, 0, -16 * shift[t, 0]], [0, 16.0, -16 * shift[t, 1]]])
        field = cv2.warpAffine(shadow, scale, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        levels = (np.arange(256) / 255)[:, None] ** gammas[t] * gains[t] * 255  # (256, 3)
        linear = np.clip(image, 0, 255, out=image).astype(np.uint8)
        toned: NDArray[np.float32] = np.asarray(cv2.LUT(linear, levels.astype(np.float32)[None]))
        toned *= in_three(np.asarray(field, dtype=np.float32))
        y, x = self.generator(5, t).integers(0, _GRAIN_MARGIN, 2)
        toned += np.float32(sigma) * _grain(height, width)[y : y + height, x : x + width]
        return np.asarray(np.clip(toned, 0, 255, out=toned), dtype=np.uint8)

    @cached_property
    def _light(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, float]:
        """Gains (T, 3), gammas (T, 1), soft shadows at 1/16 scale, their path (T, 2), noise."""
        generator, length = self.generator(4), self.options.length
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
    """Standard normal noise, larger than a frame: each frame takes a different piece."""
    shape = (height + _GRAIN_MARGIN, width + _GRAIN_MARGIN, 3)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _waves(generator: np.random.Generator, length: int, count: int) -> FloatArray:
    """Smooth curves in about ±1, with periods from 15 to 100 frames; ``(length, count)``."""
    periods = generator.uniform(15, 100, (2, 1, count))
    phases = generator.uniform(0, 2 * math.pi, (2, 1, count))
    angles = 2 * math.pi * np.arange(length)[:, None] / periods + phases  # (2, length, count)
    return np.asarray(np.sin(angles).mean(axis=0))


def checked_prior(name: str) -> MotionPrior:
    """A motion prior that objects can move by.

    Raises:
        UserError: if it is unknown, or not in object coordinates with continuous labels.
    """
    drawn_from = load(name)
    if (drawn_from.coordinates, drawn_from.labels) != ("object", "continuous"):
        raise UserError(
            f"prior {name!r} is in {drawn_from.coordinates} coordinates with "
            f"{drawn_from.labels} labels; "
            "synthetic motion needs object coordinates and continuous labels"
        )
    return drawn_from


def first_side(generator: np.random.Generator, frame: FloatArray) -> float:
    """√(w·h) of an object in frame 0, for a frame of width and height ``(2,)``; all in pixels."""
    return math.sqrt(frame.prod()) * generator.uniform(1.15 * _SIZES[0], 0.8 * _SIZES[1])


def shutter(generator: np.random.Generator) -> float:
    """Share of the time between frames that the shutter is open for an object; 0 if it is not blurred."""
    return generator.uniform(0.2, 0.9) if generator.random() < _BLURRED else 0.0
