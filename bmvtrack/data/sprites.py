"""Objects that move through a synthetic scene: outline, textures and boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.data.silhouettes import Silhouette


def box_axes(rbbox: FloatArray) -> FloatArray:
    """R(α)·diag(w, h): from unit box coordinates to pixels around the box's centre, ``(2, 2)``."""
    cos, sin = math.cos(rbbox[4]), math.sin(rbbox[4])
    return np.array([[cos, -sin], [sin, cos]]) * rbbox[2:4]


@dataclass(frozen=True, eq=False)
class Layer:
    """The part of a frame that an object covers: a window, and colours and coverage there.

    Attributes:
        rows: of the window in the frame.
        columns: likewise.
        picture: ``(h, w, 4)`` float32, colours in 0 … 255 times coverage, and coverage in [0, 1].
    """

    rows: slice
    columns: slice
    picture: NDArray[np.float32]

    def lay_over(self, image: NDArray[np.float32]) -> None:
        """Composite the object over a frame ``(H, W, 3)`` float32, in place."""
        window = image[self.rows, self.columns]
        coverage = np.asarray(cv2.extractChannel(self.picture, 3), np.float32)
        window *= in_three(1 - coverage)
        window += cv2.cvtColor(self.picture, cv2.COLOR_RGBA2RGB)


@dataclass(frozen=True, eq=False)
class TexturedSprite:
    """A moving object: outline, textures, and its position in each frame."""

    outline: Silhouette
    skins: tuple[ByteArray, ByteArray]  # main and accent texture, each (S, S, 3)
    rbboxes: FloatArray  # (T, 5)
    phases: FloatArray  # (T,) of limbs and ripples, radians
    light: tuple[float, float]  # strength of shading along x and y
    shutter: float  # share of the time between frames that the shutter is open

    def cover(self, t: int, width: int, height: int) -> tuple[slice, slice, ByteArray] | None:
        """Window and coverage ``(h, w, 2)`` in 0 … 255, of all parts and of accented parts."""
        rbbox = self.rbboxes[t]
        linear, centre = box_axes(rbbox), rbbox[:2]
        parts = [
            (part.accent, [c @ linear.T + centre for c in contours])
            for part, contours in self.outline.outline(self.phases[t])
        ]
        points = np.concatenate([c for _, contours in parts for c in contours])
        blur = displacement(self.rbboxes, t, self.shutter)
        covered = window_of(points, blur, width, height)
        if covered is None:
            return None
        rows, columns = covered
        left, top = columns.start, rows.start
        window = (rows.stop - rows.start, columns.stop - columns.start)
        whole, accented = np.zeros(window, np.uint8), np.zeros(window, np.uint8)
        for accent, contours in parts:
            shifted = [np.round(16 * (c - (left, top))).astype(np.int32) for c in contours]
            cv2.fillPoly(whole, shifted, 255, cv2.LINE_AA, 4)
            cv2.fillPoly(accented, shifted, 255 if accent else 0, cv2.LINE_AA, 4)
        return rows, columns, np.stack([whole, accented], axis=-1)

    def paint(self, t: int, width: int, height: int) -> Layer | None:
        """The object in frame t; None if it is out of the frame."""
        covered = self.cover(t, width, height)
        if covered is None:
            return None
        rows, columns, coverage = covered
        whole, accented = coverage[..., 0], coverage[..., 1]
        size = max(self.skins[0].shape)
        linear = box_axes(self.rbboxes[t]) / size
        corner = np.array([columns.start, rows.start])
        shift = self.rbboxes[t][:2] - corner - linear @ np.full(2, size / 2)
        affine = np.concatenate([linear, shift[:, None]], axis=1)
        main, accent = (
            cv2.warpAffine(skin, affine, whole.shape[::-1], borderMode=cv2.BORDER_REFLECT_101)
            for skin in self.skins
        )
        colours = main.astype(np.float32)
        colours += (accent - colours) * in_three(accented * np.float32(1 / 255))
        alpha = whole * np.float32(1 / 255)
        colours *= in_three(self._shading(alpha) * alpha)
        picture = np.asarray(cv2.merge([colours, alpha]), np.float32)
        return Layer(
            rows, columns, motion_blur(picture, displacement(self.rbboxes, t, self.shutter))
        )

    def _shading(self, alpha: FloatArray) -> FloatArray:
        """Shading of a rounded body: brighter towards the light, darker at the edges."""
        reach = max(min(alpha.shape) // 4, 3)
        relief = cv2.blur(cv2.blur(alpha, (reach, reach)), (reach, reach))
        slope_x, slope_y = (cv2.Sobel(relief, -1, i, 1 - i, scale=reach / 8) for i in (1, 0))
        shade = 1 + self.light[0] * slope_x + self.light[1] * slope_y + 0.3 * (relief - 0.8)
        return np.asarray(np.clip(shade, 0.35, 1.7), dtype=np.float32)


def in_three(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(h, w)`` float32 repeated for three colours: numpy is slow at broadcasting over so short an axis."""
    return np.asarray(cv2.cvtColor(values, cv2.COLOR_GRAY2RGB), np.float32)


def motion_blur(image: NDArray[np.float32], displacement: FloatArray) -> NDArray[np.float32]:
    """Blur an image ``(h, w, C)`` that moves by ``displacement``, ``(2,)`` pixels, during the exposure."""
    reach = math.ceil(np.abs(displacement).max() / 2)
    if reach < 1:
        return image
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    ends = np.round(16 * (reach + np.array([-displacement, displacement]) / 2)).astype(int)
    cv2.line(kernel, ends[0].tolist(), ends[1].tolist(), 1.0, 1, cv2.LINE_8, 4)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()))


def window_of(
    points: FloatArray, blur: FloatArray, width: int, height: int
) -> tuple[slice, slice] | None:
    """Rows and columns of a frame where points, blurred by motion, may be visible; None if nowhere.

    Args:
        points: ``(N, 2)`` x, y in pixels.
        blur: ``(2,)``, their :func:`displacement`.
        width: frame width in pixels.
        height: frame height in pixels.
    """
    margin = 3 + int(np.abs(blur).max())
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + margin, (width, height))
    if (low >= high).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def displacement(rbboxes: FloatArray, t: int, shutter: float) -> FloatArray:
    """Displacement of an object's centre while the shutter is open in frame t, ``(2,)`` pixels.

    Args:
        rbboxes: ``(T, 5)``.
        t: frame.
        shutter: share of the time between frames that the shutter is open.
    """
    before, after = rbboxes[max(t - 1, 0)], rbboxes[min(t + 1, len(rbboxes) - 1)]
    return np.asarray(shutter * (after - before)[:2] / 2)
