"""Intersection over union of axis-aligned bounds and of rotated boxes.

:func:`rotated_iou` is exact polygon clipping by shapely, for the single environment and for
evaluation. :func:`rotated_iou_torch` computes the same for batches of tensors on any device.
"""

from __future__ import annotations

import numpy as np
import shapely
import torch

from bmvtrack.arrays import Array, FloatArray, namespace
from bmvtrack.geometry import corners

_GRID = 1e-9
"""Size in pixels of the grid to which shapely rounds corners."""


def bounds_iou(first: Array, second: Array) -> Array:
    """IoU of axis-aligned bounds.

    Args:
        first: ``(..., 4)``: left, top, right, bottom.
        second: ``(..., 4)``, broadcast against ``first``.

    Returns:
        ``(...)`` in [0, 1]; 0 where the union is empty; NaN where a box is NaN.
    """
    xp = namespace(first, second)
    zero = 0 * (first[..., 0] + second[..., 0])
    width = xp.minimum(first[..., 2], second[..., 2]) - xp.maximum(first[..., 0], second[..., 0])
    height = xp.minimum(first[..., 3], second[..., 3]) - xp.maximum(first[..., 1], second[..., 1])
    intersection = xp.maximum(width, zero) * xp.maximum(height, zero)
    areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (first, second)]
    union = areas[0] + areas[1] - intersection
    result: Array = xp.where(union == 0, zero, intersection / xp.where(union == 0, 1 + zero, union))
    return result


def rotated_iou(first: FloatArray, second: FloatArray) -> FloatArray:
    """IoU of rotated boxes by shapely: the reference implementation.

    Args:
        first: ``(..., 5)`` rotated boxes.
        second: ``(..., 5)``, broadcast against ``first``.

    Returns:
        ``(...)`` float64 in [0, 1]; NaN where a box is NaN.
    """
    first, second = np.broadcast_arrays(
        np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    )
    result = np.full(first.shape[:-1], np.nan)
    valid = np.isfinite(first).all(axis=-1) & np.isfinite(second).all(axis=-1)
    polygons = [shapely.polygons(corners(b)) for b in _in_axes(first[valid], second[valid])]
    # Without a grid, GEOS finds four points in common between rectangles that differ by one ulp.
    shared = shapely.intersection(polygons[0], polygons[1], grid_size=_GRID)
    intersection = shapely.area(shared)
    union = shapely.area(polygons[0]) + shapely.area(polygons[1]) - intersection
    ratio = np.where(union > 0, intersection / np.where(union > 0, union, 1.0), 0.0)
    result[valid] = np.minimum(ratio, 1.0)
    return result


def _in_axes(first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """N pairs of boxes ``(N, 5)`` in coordinates along the first one's sides, about its centre.

    Differences of large numbers would lose digits, and GEOS snaps slanted sides that nearly coincide to each
    other wrongly: boxes at 45° that differ by two ulp would have an IoU of 0.06.
    """
    x, y = (second[:, i] - first[:, i] for i in (0, 1))
    cos, sin = np.cos(first[:, 4]), np.sin(first[:, 4])
    turned = second.copy()
    turned[:, 0], turned[:, 1] = cos * x + sin * y, cos * y - sin * x
    turned[:, 4] -= first[:, 4]
    level = first.copy()
    level[:, [0, 1, 4]] = 0
    return level, turned


def rotated_iou_torch(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of rotated boxes, batched on any device, differentiable almost everywhere.

    One rectangle is clipped by the four half-planes of the other (Sutherland–Hodgman). To keep
    shapes fixed, a vertex outside a half-plane is not dropped but projected onto its border: the
    detour runs along the border and encloses no area. Computed in float64.

    Args:
        first: ``(..., 5)`` rotated boxes.
        second: ``(..., 5)``, broadcast against ``first``.

    Returns:
        ``(...)`` in [0, 1], of the dtype of ``first``.
    """
    dtype = first.dtype
    first, second = torch.broadcast_tensors(first.double(), second.double())
    origin = torch.nn.functional.pad(second[..., :2], (0, 3))  # of the half-planes: small numbers
    polygon, clip = corners(first - origin), corners(second - origin)  # (..., 4, 2)
    for i in range(4):
        start, end = clip[..., i, :], clip[..., (i + 1) % 4, :]
        polygon = _clip_by_half_plane(polygon, start, end)  # doubles the number of vertices
    following = polygon.roll(-1, dims=-2)
    cross = polygon[..., 0] * following[..., 1] - polygon[..., 1] * following[..., 0]
    intersection = cross.sum(dim=-1).div(2).clamp_min(0)
    union = first[..., 2] * first[..., 3] + second[..., 2] * second[..., 3] - intersection
    return (intersection / union.clamp_min(torch.finfo(torch.float64).tiny)).clamp(max=1).to(dtype)


def _clip_by_half_plane(
    polygon: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """Clip ``(..., N, 2)`` by the inner side of the edge start→end; returns ``(..., 2N, 2)``."""
    direction = torch.nn.functional.normalize(end - start, dim=-1)
    normal = torch.stack([-direction[..., 1], direction[..., 0]], dim=-1)[..., None, :]
    distance = ((polygon - start[..., None, :]) * normal).sum(dim=-1, keepdim=True)  # inside > 0
    next_distance = distance.roll(-1, dims=-2)
    kept = polygon - distance.clamp(max=0) * normal
    crosses = (distance > 0) != (next_distance > 0)
    step = torch.where(crosses, distance - next_distance, torch.ones_like(distance))
    crossing = polygon + (distance / step) * (polygon.roll(-1, dims=-2) - polygon)
    vertices = torch.stack([kept, torch.where(crosses, crossing, kept)], dim=-2)
    return vertices.flatten(-3, -2)
