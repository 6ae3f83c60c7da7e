"""Sequences made from photographs: an object cut out of one moves over another.

Stills with masks (DUTS) provide real textures, real outlines and real backgrounds, which contain a salient
object that is not the target; a :class:`~bmvtrack.data.scene.Scene` moves them. Thousands of stills give an
endless supply of sequences, while real videos with masks are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data.scene import (
    Scene,
    SceneOptions,
    Sprite,
    checked_prior,
    first_side,
    shutter,
)
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.sprites import Layer, box_axes, displacement, motion_blur, window_of
from bmvtrack.data.synthetic import SEEDS_PER_SET
from bmvtrack.errors import UserError

_AREA = (0.02, 0.7)  # area of an object's mask relative to its image, for it to be cut out
# Share of the perimeter of the mask's bounds: with more of it at the image's edge, the object is cut off.
_MOST_CUT = 0.1
_TRIES = 64
_BEND = 0.05  # typical size of bends, relative to the object's


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object cut out of a photograph.

    Attributes:
        picture: ``(h, w, 4)`` uint8, RGB and opacity, with a transparent border.
        rbbox: ``(5,)`` the object's box in the picture.
    """

    picture: ByteArray
    rbbox: FloatArray


def cut_out(image: ByteArray, mask: BoolArray) -> Cutout | None:
    """Cut the object of a mask out of an image; None if it is too small, too large, or cut off.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        mask: ``(H, W)``.
    """
    rbbox = geometry.from_mask(mask)
    if rbbox is None or not _AREA[0] < mask.mean() < _AREA[1]:
        return None
    left, top, right, bottom = (round(limit) for limit in geometry.mask_bounds(mask))
    edges = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    if edges > _MOST_CUT * 2 * (right - left + bottom - top):
        return None
    margin = 2 + max(right - left, bottom - top) // 8  # for bends
    opacity = cv2.GaussianBlur(mask.astype(np.uint8) * 255, (3, 3), 0)
    layers = np.dstack([image, np.minimum(opacity, mask * np.uint8(255))])
    padded = cv2.copyMakeBorder(layers, *(margin,) * 4, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    picture = padded[top : bottom + 2 * margin + 1, left : right + 2 * margin + 1]
    rbbox[:2] += margin - np.array([left, top])
    return Cutout(np.ascontiguousarray(picture), rbbox)


def cutout_sequences(
    stills: Sequence[VideoSequence],
    count: int,
    seed: int = 0,
    options: SceneOptions = SceneOptions(),  # noqa: B008 (it cannot change)
) -> list[VideoSequence]:
    """``count`` sequences, ``cutouts-<seed>``; different values of ``seed`` give different ones.

    Args:
        stills: photographs with masks, as sequences of one frame.
        count: at most 1,000,000.
        seed: not negative.
        options: see :class:`~bmvtrack.data.scene.SceneOptions`.

    Raises:
        UserError: if there are fewer than two stills, or if ``count`` or ``seed`` is out of range.
    """
    if len(stills) < 2:
        raise UserError(f"cut-outs need at least 2 images with masks, not {len(stills)}")
    if not 1 <= count <= SEEDS_PER_SET or seed < 0:
        raise UserError(
            f"the number of cut-out sequences must be 1 to {SEEDS_PER_SET:,} and their seed not negative, "
            f"not {count} and {seed}"
        )
    prior = checked_prior(options.prior)
    sequences = []
    for number in range(seed * SEEDS_PER_SET, seed * SEEDS_PER_SET + count):
        scene = _CutoutScene(number, options, prior, stills)
        name = f"cutouts-{number:06d}"
        sequences.append(VideoSequence(name, options.length, scene.frame, scene.mask))
    return sequences


@dataclass(frozen=True)
class _CutoutScene(Scene):
    """Cut-outs before a photograph."""

    stills: Sequence[VideoSequence]

    @cached_property
    def background(self) -> ByteArray:
        """See ``Scene``."""
        generator = self.generator(1)
        image = self.stills[int(generator.integers(len(self.stills)))].frame(0)
        height, width = (int(1.5 * s) for s in (self.options.height, self.options.width))
        scale = max(height / image.shape[0], width / image.shape[1])
        size = math.ceil(scale * image.shape[1]), math.ceil(scale * image.shape[0])
        enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        top, left = (
            int(generator.integers(a - b + 1))
            for a, b in zip(enlarged.shape, (height, width), strict=False)
        )
        view = enlarged[top : top + height, left : left + width]
        return np.ascontiguousarray(view[:, ::-1] if generator.random() < 0.5 else view)

    def make_sprite(self, generator: np.random.Generator, target: Sprite | None) -> Sprite:
        """See ``Scene``."""
        assert target is None or isinstance(target, _CutoutSprite)
        alike = target is not None and generator.random() < 0.25
        cutout = target.cutout if alike and target is not None else self._cutout(generator)
        frame = np.array([self.options.width, self.options.height], dtype=np.float64)
        start = cutout.rbbox.copy()
        start[2:4] *= first_side(generator, frame) / math.sqrt(start[2] * start[3])
        start[4] += generator.normal(0, 0.1)
        extent = np.abs(box_axes(start)).sum(axis=1)  # of its axis-aligned bounds
        start[2:4] *= min(1.0, float((0.84 * frame / extent).min()))
        reach = np.abs(box_axes(start)).sum(axis=1) / 2 + 3
        start[:2] = (
            generator.uniform(reach, frame - reach)
            if target is None
            else generator.uniform(0, frame)
        )
        rbboxes = self.path(generator, start, True, target)
        phases = generator.uniform(0.05, 0.6) * np.arange(self.options.length)
        return _CutoutSprite(
            cutout,
            rbboxes,
            phases[:, None] + generator.uniform(0, 2 * math.pi, 2),
            _BEND * generator.normal(0, 1, 2),
            generator.uniform(0.4, 1.2, 2) * math.pi,
            shutter(generator),
        )

    def _cutout(self, generator: np.random.Generator) -> Cutout:
        for _ in range(_TRIES):
            still = self.stills[int(generator.integers(len(self.stills)))]
            cutout = cut_out(still.frame(0), still.mask(0))
            if cutout is not None:
                return cutout
        raise UserError(
            f"none of {_TRIES} images has an object that can be cut out; it must be whole, not at the edge, "
            f"and cover between {_AREA[0]:.0%} and {_AREA[1]:.0%} of the image"
        )


@dataclass(frozen=True, eq=False)
class _CutoutSprite:
    """A cut-out that moves and bends."""

    cutout: Cutout
    rbboxes: FloatArray  # (T, 5)
    phases: FloatArray  # (T, 2) of the bends along the object's two sides, radians
    bends: FloatArray  # (2,) amplitude, relative to the object's size
    waves: FloatArray  # (2,) radians across the object's size
    shutter: float  # share of the time between frames that the shutter is open

    def cover(self, t: int, width: int, height: int) -> tuple[slice, slice, ByteArray] | None:
        """See ``Sprite``."""
        window = self._window(t, width, height)
        if window is None:
            return None
        return *window, self._seen(t, *window)[..., 3:]

    def paint(self, t: int, width: int, height: int) -> Layer | None:
        """See ``Sprite``."""
        window = self._window(t, width, height)
        if window is None:
            return None
        picture: NDArray[np.float32] = self._seen(t, *window).astype(np.float32)
        opacity = cv2.extractChannel(picture, 3) * np.float32(1 / 255)
        scale = cv2.cvtColor(opacity, cv2.COLOR_GRAY2RGBA)
        scale[..., 3] = 1 / 255
        picture *= scale
        return Layer(*window, motion_blur(picture, displacement(self.rbboxes, t, self.shutter)))

    def _window(self, t: int, width: int, height: int) -> tuple[slice, slice] | None:
        """Rows and columns of frame t that the cut-out may cover."""
        corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * self.cutout.picture.shape[1::-1]
        points = (corners - self.cutout.rbbox[:2]) @ self._linear[t].T + self.rbboxes[t, :2]
        return window_of(points, displacement(self.rbboxes, t, self.shutter), width, height)

    @cached_property
    def _linear(self) -> FloatArray:
        """From the picture to the frames, both around the object's centre: ``(T, 2, 2)``."""
        inverse = np.linalg.inv(box_axes(self.cutout.rbbox))
        return np.stack([box_axes(rbbox) @ inverse for rbbox in self.rbboxes])

    @cached_property
    def _inverse(self) -> FloatArray:
        return np.linalg.inv(self._linear)

    def _seen(self, t: int, rows: slice, columns: slice) -> ByteArray:
        """The picture in a window of frame t, ``(h, w, 4)``."""
        centre, side = self.cutout.rbbox[:2], math.sqrt(self.cutout.rbbox[2:4].prod())
        x, y = self.rbboxes[t, :2]
        # From the object's centre to pixels of the window along the picture's axes, ``(2, w)`` + ``(2, h)``.
        beside = self._inverse[t, :, :1] * (np.arange(columns.start, columns.stop) - x)
        below = self._inverse[t, :, 1:] * (np.arange(rows.start, rows.stop) - y)
        # Bends: x of the picture depends on sin(wave · y / side + phase), y on x likewise. As the sine of a
        # sum, it needs no sines of whole windows: each map is a product of four columns and four rows.
        scale = (self.waves / side)[:, None]
        across = scale * beside[::-1] + self.phases[t][:, None]
        along = scale * below[::-1]
        height = side * self.bends[:, None]
        of_columns = [beside + centre[:, None], np.ones_like(beside)]
        of_columns += [height * np.sin(across), height * np.cos(across)]
        of_rows = [np.ones_like(below), below, np.cos(along), np.sin(along)]
        by_row = np.stack(of_rows, axis=-1, dtype=np.float32)  # float32 is exact to 1e-4 pixels
        maps = by_row @ np.stack(of_columns, axis=1, dtype=np.float32)
        shrunk = math.sqrt(self.rbboxes[t, 2:4].prod()) / side
        picture = self.cutout.picture
        if shrunk < 0.5:  # without aliasing
            picture = np.asarray(cv2.blur(picture, (round(1 / shrunk),) * 2), np.uint8)
        return np.asarray(cv2.remap(picture, maps[0], maps[1], cv2.INTER_LINEAR), np.uint8)
