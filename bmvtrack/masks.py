"""Masks that a network predicts on patches: their moments, boxes, bounds, and position in the frame."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, FloatArray
from bmvtrack.data import patches

GEOMETRY = (
    "log of mask area over box area",
    "mask centre minus box centre, x, in √(w·h)",
    "mask centre minus box centre, y, in √(w·h)",
    "mask extent over box extent, along w",
    "mask extent over box extent, along h",
    "correlation of the mask along w and h",
    "mean probability inside the mask",
    "highest probability",
)
"""The components of the mask geometry, in order."""
INSIDE = GEOMETRY.index("mean probability inside the mask")
_SMALLEST_PART = 0.1  # of the largest part: smaller ones do not belong to the object
_IN_A_PICTURE = 64  # masks; OpenCV is no faster with more
# On sixteen cores, eight threads took longer than one, because of Python's global interpreter lock.
_MOST_THREADS = 4
_LEAST_FILLED = 0.25  # of the box, for a mask to be trusted with its bounds


def mask_geometry(
    probabilities: torch.Tensor, windows: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Moments of a soft mask relative to its box; see :data:`GEOMETRY`.

    Pixels with a probability of at most ½ are ignored. For an empty mask the area is that of half a pixel,
    the centre is the box's and the extents are 0.

    Args:
        probabilities: ``(B, S, S)`` of the object.
        windows: ``(B, 4)``: left, top, right, bottom of the patches in the frame, pixels.
        boxes: ``(B, 5)`` rotated boxes, pixels and radians.

    Returns:
        ``(B, 8)`` float32, finite.
    """
    size = probabilities.shape[-1]
    inside = probabilities > 0.5
    weight = torch.where(inside, probabilities, 0.0).to(boxes.dtype)
    columns, rows = (
        weight.sum(dim=1),
        weight.sum(dim=2),
    )  # (B, S) each: marginals suffice for all but xy
    mass = columns.sum(dim=1)
    safe = mass.clamp_min(1e-9)
    x, y = patches.grid_lines(boxes, windows, size)
    mean_x, mean_y = (columns * x).sum(dim=1) / safe, (rows * y).sum(dim=1) / safe
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    xx = (columns * x.square()).sum(dim=1) / safe
    yy = (rows * y.square()).sum(dim=1) / safe
    xy = ((weight @ x[..., None])[..., 0] * y).sum(dim=1) / safe
    width, height, cos, sin = boxes[:, 2], boxes[:, 3], boxes[:, 4].cos(), boxes[:, 4].sin()
    # Along the sides of the box; a uniform bar of length l has variance l²/12.
    along = (xx * cos**2 + 2 * xy * cos * sin + yy * sin**2).clamp_min(0).sqrt()
    beside = (xx * sin**2 - 2 * xy * cos * sin + yy * cos**2).clamp_min(0).sqrt()
    across = (yy - xx) * cos * sin + xy * (cos**2 - sin**2)
    area = (windows[:, 2:] - windows[:, :2]).prod(dim=1) / size**2 * mass.clamp_min(0.5)
    unit = (width * height).sqrt()
    values = [
        torch.log(area / (width * height)),
        mean_x / unit,
        mean_y / unit,
        math.sqrt(12) * along / width,
        math.sqrt(12) * beside / height,
        across / (along * beside).clamp_min(1e-9 * width * height),
        mass / inside.sum(dim=(1, 2)).clamp_min(1),
        probabilities.flatten(1).amax(dim=1),
    ]
    return torch.stack(values, dim=-1).float()


def mask_boxes(probabilities: torch.Tensor, windows: torch.Tensor, above: float) -> FloatArray:
    """Rotated boxes of masks on patches, in frame coordinates.

    The masks are copied to the host in one transfer. There OpenCV, which traces the outlines of many masks
    in one picture, several pictures in threads, is many times faster than any tensor operations.

    Args:
        probabilities: ``(B, S, S)``.
        windows: ``(B, 4)``: left, top, right, bottom of the patches in the frame, pixels.
        above: probability above which a pixel counts; the weights' own is ``network.box_threshold``.

    Returns:
        ``(B, 5)`` with OpenCV's labels; NaN where no pixel counts.
    """
    if probabilities.device.type != "cpu":
        return boxes_of_pending([PendingMasks(probabilities, windows, above)])
    values, places = probabilities.detach().numpy(), windows.numpy()
    groups, pool = _groups(len(values)), _threads()
    if len(groups) < 2 or pool is None:
        return _joined([_boxes(values[group], places[group], above) for group in groups])
    return _joined(list(pool.map(lambda g: _boxes(values[g], places[g], above), groups)))


class PendingMasks:
    """Binary masks on a GPU that are being copied to the host, which does not wait for them.

    They are copied as bytes, a quarter of what the probabilities take, each with the empty row below it
    that :func:`_outlines` needs.

    Args:
        probabilities: ``(B, S, S)``.
        windows: ``(B, 4)``, see :func:`mask_boxes`.
        above: probability above which a pixel counts.
    """

    def __init__(self, probabilities: torch.Tensor, windows: torch.Tensor, above: float) -> None:
        counted = (probabilities > above).view(torch.uint8)
        self._pictures = ToHost(functional.pad(counted, (0, 0, 0, 1)))
        self._windows = ToHost(windows)

    def arrived(self) -> tuple[NDArray[np.uint8], FloatArray]:
        """The masks ``(B, S + 1, S)`` and their windows, once they have arrived."""
        return self._pictures.numpy(), self._windows.numpy()


class ToHost:
    """An asynchronous copy of a GPU tensor in pinned memory.

    Args:
        tensor: on the GPU.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._copy.copy_(tensor, non_blocking=True)
        self._there = torch.cuda.Event()
        self._there.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> NDArray[Any]:
        """The copy, once it is complete."""
        self._there.synchronize()
        return self._copy.numpy()


def boxes_of_pending(batches: Iterable[PendingMasks]) -> FloatArray:
    """:func:`mask_boxes` of several batches, each as soon as its masks have arrived; concatenated."""
    pool = _threads()
    found: list[FloatArray | Future[FloatArray]] = []
    for batch in batches:
        pictures, windows = batch.arrived()
        for group in _groups(len(pictures)):
            part = pictures[group], windows[group]
            found.append(
                pool.submit(_boxes_of_pictures, *part) if pool else _boxes_of_pictures(*part)
            )
    return _joined([part.result() if isinstance(part, Future) else part for part in found])


def _threads() -> ThreadPoolExecutor | None:
    """The pool in which boxes are found: as many threads as torch has, up to four; None for one."""
    return _pool(os.getpid(), min(torch.get_num_threads(), _MOST_THREADS))


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor | None:
    """The pool of a process: a forked process does not have its parent's threads."""
    return ThreadPoolExecutor(threads) if threads > 1 else None


def _groups(count: int) -> list[slice]:
    """Slices of the masks that form one picture each."""
    return [slice(first, first + _IN_A_PICTURE) for first in range(0, count, _IN_A_PICTURE)]


def _joined(parts: list[FloatArray]) -> FloatArray:
    return np.concatenate(parts) if parts else np.empty((0, 5))


def _boxes(values: NDArray[Any], windows: FloatArray, above: float) -> FloatArray:
    """:func:`mask_boxes` of as many as one picture holds."""
    count, size = values.shape[:2]
    pictures = np.zeros((count, size + 1, size), np.uint8)
    np.greater(values, above, out=pictures.view(np.bool_)[:, :size])
    return _boxes_of_pictures(pictures, windows)


def _boxes_of_pictures(pictures: NDArray[np.uint8], windows: FloatArray) -> FloatArray:
    """:func:`_boxes` of masks with an empty row below each."""
    boxes = np.full((len(pictures), 5), np.nan)
    found, points = _outlines(pictures, windows)
    if points:
        boxes[found] = geometry.from_outlines(points)
    return boxes


def _outlines(
    pictures: NDArray[np.uint8], windows: FloatArray
) -> tuple[NDArray[np.intp], list[NDArray[np.float32]]]:
    """Outline points, in the frame, of the parts of masks that belong to the objects.

    Args:
        pictures: ``(B, S + 1, S)``, masks with an empty row below each.
        windows: ``(B, 4)``, see :func:`mask_boxes`.

    Returns:
        Indices of the M masks that are not empty, and the points ``(K, 2)`` of each.
    """
    size = pictures.shape[2]
    contours, _ = cv2.findContours(
        pictures.reshape(-1, size), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    if not contours:
        return np.empty(0, np.intp), []
    x, y = np.concatenate(contours)[:, 0].T.copy()
    owners = y // (size + 1)
    y -= owners * (size + 1)
    if len(contours) > 1:
        kept = _of_objects(x, y, owners, np.array([len(contour) for contour in contours]))
        x, y, owners = x[kept], y[kept], owners[kept]
    # One row of x and one of y: NumPy is faster with this layout.
    on_patch = np.array([x, y], np.float64).T
    own = windows.T.copy()[:, owners].T
    points = patches.to_frame(on_patch[:, None], own, size)[:, 0].astype(np.float32, order="C")
    counts = np.bincount(owners)
    found = np.flatnonzero(counts)
    limits = [0, *counts.cumsum()[found].tolist()]
    return found, [points[start:end] for start, end in pairwise(limits)]


def _of_objects(
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    owners: NDArray[np.int32],
    lengths: NDArray[np.intp],
) -> NDArray[np.intp]:
    """Select the points of contours with at least a tenth of the area of the largest in their mask.

    Args:
        x: ``(K,)``, all contours concatenated.
        y: ``(K,)``.
        owners: ``(K,)``, index of the mask of each point.
        lengths: number of points of each contour.

    Returns:
        Indices of the points, sorted by mask and otherwise in their original order, on which it depends
        which of two equally small rectangles OpenCV returns.
    """
    ends = lengths.cumsum()
    starts = ends - lengths
    after = np.arange(1, len(x) + 1)
    after[ends - 1] = starts
    areas = np.abs(np.add.reduceat(x * y[after] - x[after] * y, starts))  # twice
    masks = owners[starts]
    largest = np.zeros(masks.max() + 1)
    np.maximum.at(largest, masks, areas)
    kept = np.flatnonzero(np.repeat(areas >= _SMALLEST_PART * largest[masks], lengths))
    return kept[np.argsort(owners[kept], kind="stable")]


def bounds_of_mask(
    probabilities: FloatArray, window: FloatArray, rbbox: FloatArray, above: float
) -> FloatArray:
    """Axis-aligned bounds of the intersection of a predicted mask and the predicted box.

    The bounds of a slanted box are larger than those of the object in it, so the mask is more accurate as
    long as it agrees with the box. Where the mask fills less than a quarter of the box, the bounds of the
    box are returned.

    Args:
        probabilities: ``(S, S)`` float32 of the object, on the patch.
        window: ``(4,)``: left, top, right, bottom of the patch in the frame, pixels.
        rbbox: ``(5,)`` predicted box.
        above: probability above which a pixel counts.

    Returns:
        ``(4,)``: left, top, right, bottom in pixels of the frame.
    """
    size = len(probabilities)
    tensors = torch.from_numpy(np.stack([rbbox])), torch.from_numpy(window[None])
    inside = patches.fill_box(*tensors, size)[0, 0].numpy() > 0
    common = (probabilities > above) & inside
    if common.sum() < _LEAST_FILLED * int(inside.sum()) or not common.any():
        return geometry.bounds(rbbox)
    edges = geometry.mask_bounds(common).reshape(2, 2)
    return np.asarray(patches.to_frame(edges, window, size)).reshape(4)


def mask_in_frame(
    probabilities: torch.Tensor, window: torch.Tensor, width: int, height: int
) -> BoolArray:
    """Map the mask of one patch to the frame.

    Args:
        probabilities: ``(S, S)`` of the object.
        window: ``(4,)``, see :func:`bounds_of_mask`.
        width: of the frame in pixels.
        height: of the frame in pixels.

    Returns:
        ``(H, W)`` boolean: where the probability is over ½.
    """
    return np.asarray(patch_in_frame(probabilities, window, width, height) > 0.5)


def patch_in_frame(
    values: torch.Tensor, window: torch.Tensor, width: int, height: int
) -> NDArray[np.float32]:
    """Map values on a patch to the frame, bilinearly; 0 outside the patch.

    Args:
        values: ``(S, S)``.
        window: ``(4,)``, see :func:`bounds_of_mask`.
        width: of the frame in pixels.
        height: of the frame in pixels.

    Returns:
        ``(H, W)``.
    """
    size = values.shape[-1]
    left, top, right, bottom = (float(value) for value in window.cpu())
    scale_x, scale_y = size / (right - left), size / (bottom - top)
    to_patch = np.array(
        [[scale_x, 0, -left * scale_x - 0.5], [0, scale_y, -top * scale_y - 0.5]], dtype=np.float64
    )
    warped = cv2.warpAffine(
        values.float().cpu().numpy(),
        to_patch,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,  # a blend with 0 would blur the edge of the frame
    )
    x, y = np.arange(width), np.arange(height)[:, None]
    within = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    return np.where(within, warped, 0).astype(np.float32)
