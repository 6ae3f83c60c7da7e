"""Rotated boxes: corners, bounds, masks and the four labels of one rectangle.

A rotated box is stored along the last axis of an array, ``(x, y, w, h, α)``: centre and size in pixels,
angle in radians, image axes (y down), α turning from +x towards +y (the sign of ``cv2.minAreaRect``).
Pixel centres have integer coordinates. In a frame without an object the box is NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bmvtrack.arrays import Array, FloatArray, namespace

QUARTER_TURN = math.pi / 2
MINIMUM_SIDE = 1.0
"""Shortest side of a box, in pixels."""
MAXIMUM_SIDE = 4.0
"""Longest side of a box, in units of the frame's longer side."""


def corners(rbbox: Array) -> Array:
    """Corners of rotated boxes: centre + R(α)·(±w/2, ±h/2), in order around the box.

    Args:
        rbbox: ``(..., 5)``, pixels and radians.

    Returns:
        ``(..., 4, 2)`` corner coordinates x, y in pixels.
    """
    xp = namespace(rbbox)
    x, y, w, h, angle = (rbbox[..., i] for i in range(5))
    cos, sin = xp.cos(angle), xp.sin(angle)
    points = []
    for sign_w, sign_h in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
        u, v = sign_w * w, sign_h * h
        points.append(xp.stack([x + u * cos - v * sin, y + u * sin + v * cos], axis=-1))
    result: Array = xp.stack(points, axis=-2)  # (..., 4, 2)
    return result


def bounds(rbbox: Array) -> Array:
    """Axis-aligned bounds of rotated boxes.

    Args:
        rbbox: ``(..., 5)``.

    Returns:
        ``(..., 4)``: left, top, right, bottom in pixels.
    """
    xp = namespace(rbbox)
    x, y, w, h, angle = (rbbox[..., i] for i in range(5))
    cos, sin = xp.abs(xp.cos(angle)), xp.abs(xp.sin(angle))
    half_width = (w * cos + h * sin) / 2
    half_height = (w * sin + h * cos) / 2
    result: Array = xp.stack(
        [x - half_width, y - half_height, x + half_width, y + half_height], axis=-1
    )
    return result


def upright(limits: Array) -> Array:
    """Rotated boxes of angle 0 with the given bounds: the inverse of :func:`bounds` at α = 0.

    Args:
        limits: ``(..., 4)``: left, top, right, bottom in pixels.

    Returns:
        ``(..., 5)`` rotated boxes.
    """
    xp = namespace(limits)
    left, top, right, bottom = (limits[..., i] for i in range(4))
    result: Array = xp.stack(
        [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0 * left], axis=-1
    )
    return result


def from_mask(mask: NDArray[Any]) -> FloatArray | None:
    """The smallest rotated rectangle around all parts of a mask, as OpenCV labels it.

    ``cv2.minAreaRect`` over the points of all external contours; a side shorter than one pixel is set to
    one pixel. The angle lies in [−π/2, 0), OpenCV's range since 4.13, whatever version is installed.

    Args:
        mask: ``(H, W)``, boolean or integer; nonzero is object.

    Returns:
        ``(5,)`` float64, or None where the mask is empty.
    """
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask != 0).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return from_points(np.concatenate(contours)[:, 0]) if contours else None


def from_points(points: NDArray[Any]) -> FloatArray:
    """The smallest rotated rectangle around points; see :func:`from_mask`.

    Args:
        points: ``(N, 2)`` x, y in pixels, N ≥ 1.

    Returns:
        ``(5,)`` float64.
    """
    return np.asarray(from_outlines([points])[0])


def from_outlines(outlines: Sequence[NDArray[Any]]) -> FloatArray:
    """:func:`from_points` for each of B ≥ 1 sets of points.

    Args:
        outlines: B arrays ``(N, 2)``.

    Returns:
        ``(B, 5)`` float64.
    """
    rectangles = [cv2.minAreaRect(np.asarray(points, dtype=np.float32)) for points in outlines]
    x, y, w, h, degrees = np.array([(*xy, *wh, a) for xy, wh, a in rectangles], np.float64).T
    sides = np.maximum(w, MINIMUM_SIDE), np.maximum(h, MINIMUM_SIDE)
    # Up to 4.12 OpenCV's angle lies in (0°, 90°]: another label of the same rectangle.
    return relabel(np.stack([x, y, *sides, np.radians(degrees)], axis=-1), -(degrees // 90) - 1)


def mask_bounds(mask: NDArray[Any]) -> FloatArray:
    """Axis-aligned bounds of a mask's pixels, each of which extends half a pixel from its centre.

    They are up to one pixel wider than the bounds of :func:`from_mask`, which runs through the
    centres of the outermost pixels.

    Args:
        mask: ``(H, W)``, boolean or integer; nonzero is object.

    Returns:
        ``(4,)`` float64: left, top, right, bottom in pixels; NaN where the mask is empty.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return np.full(4, np.nan)
    first, last = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
    return np.concatenate([first - 0.5, last + 0.5])


def relabel(rbbox: Array, quarter_turns: Array) -> Array:
    """Another label of the same rectangle: α + k·90°, w and h swapped for odd k.

    Args:
        rbbox: ``(..., 5)``.
        quarter_turns: ``(...)`` whole numbers k, of the boxes' dtype.

    Returns:
        ``(..., 5)`` boxes with the same corners.
    """
    xp = namespace(rbbox)
    w, h = rbbox[..., 2], rbbox[..., 3]
    odd = quarter_turns % 2 == 1
    angle = rbbox[..., 4] + quarter_turns * QUARTER_TURN
    result: Array = xp.stack(
        [rbbox[..., 0], rbbox[..., 1], xp.where(odd, h, w), xp.where(odd, w, h), angle], axis=-1
    )
    return result


def nearest_label(rbbox: Array, reference: Array) -> Array:
    """Of the four labels of each box, the one with the smallest turn from ``reference``.

    The turn is at most 45°. Angles are not wrapped: the angle of a box that keeps turning adds up.

    Args:
        rbbox: ``(..., 5)`` boxes to relabel.
        reference: ``(..., 5)`` boxes that they follow.

    Returns:
        ``(..., 5)`` relabelled boxes.
    """
    xp = namespace(rbbox, reference)
    turns = xp.round((reference[..., 4] - rbbox[..., 4]) / QUARTER_TURN)
    result: Array = relabel(rbbox, turns)
    return result


def turns_to_level(rbbox: Array) -> Array:
    """Quarter turns to the label whose side w is closest to horizontal, −45° < α ≤ 45°.

    A picture of a box does not show which of its labels is in use. This label can be seen in it.

    Args:
        rbbox: ``(..., 5)``.

    Returns:
        ``(...)`` whole numbers, for :func:`relabel`.
    """
    # Not round, which takes halves to even numbers: a box at 45° would have another label than at 135°.
    turns: Array = namespace(rbbox).floor(-rbbox[..., 4] / QUARTER_TURN + 0.5)
    return turns


def continuous_labels(rbboxes: FloatArray) -> FloatArray:
    """Relabel the boxes of one sequence so that each turns least from the one before.

    Frames without an object (NaN) are skipped: the next box follows the last one seen.

    Args:
        rbboxes: ``(T, 5)``, NaN where there is no object.

    Returns:
        ``(T, 5)`` float64.
    """
    result = np.array(rbboxes, dtype=np.float64)
    present = np.flatnonzero(np.isfinite(result).all(axis=-1))
    for previous, current in itertools.pairwise(present):
        result[current] = nearest_label(result[current], result[previous])
    return result


def clamp(rbbox: Array, width: float | Array, height: float | Array) -> Array:
    """Keep boxes near the frame: sides of 1 px to four frame sizes, centre within one frame size.

    A tracker that has lost its target may drift anywhere; clamping keeps the numbers finite and lets the
    box come back.

    Args:
        rbbox: ``(..., 5)``.
        width: frame width in pixels; a number, or ``(...)`` if frames differ.
        height: frame height in pixels.

    Returns:
        ``(..., 5)``; angle wrapped to ±π.
    """
    xp = namespace(rbbox)
    x, y, w, h, angle = (rbbox[..., i] for i in range(5))
    width, height = width + xp.zeros_like(x), height + xp.zeros_like(y)
    longest = MAXIMUM_SIDE * xp.maximum(width, height)
    shortest = MINIMUM_SIDE + xp.zeros_like(longest)
    result: Array = xp.stack(
        [
            xp.clip(x, -width, 2.0 * width),
            xp.clip(y, -height, 2.0 * height),
            xp.clip(w, shortest, longest),
            xp.clip(h, shortest, longest),
            (angle + math.pi) % (2 * math.pi) - math.pi,
        ],
        axis=-1,
    )
    return result
