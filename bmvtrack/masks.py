"""Masks that a network predicts on patches: their moments, their boxes, and their place in the frame."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
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
"""What the numbers of the mask geometry are."""
INSIDE = GEOMETRY.index("mean probability inside the mask")
_SMALLEST_PART = 0.1  # of the largest: smaller parts of a mask do not belong to the object
_LEAST_FILLED = 0.25  # of the box, for a mask to be trusted with its bounds


def mask_geometry(
    probabilities: torch.Tensor, windows: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Moments of a soft mask relative to its box; see :data:`GEOMETRY`.

    Pixels below ½ count nothing. Of an empty mask the area is the smallest there is, the centre is the
    box's and the extents are 0.

    Args:
        probabilities: ``(B, S, S)`` of object.
        windows: ``(B, 4)``.
        boxes: ``(B, 5)``.

    Returns:
        ``(B, 8)`` float32, finite.
    """
    size = probabilities.shape[-1]
    inside = probabilities > 0.5
    weight = torch.where(inside, probabilities, 0.0).to(boxes.dtype)
    columns, rows = weight.sum(dim=1), weight.sum(dim=2)  # (B, S) each: marginals say nearly all
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
    """The rotated boxes of masks on patches, in the frame.

    OpenCV's contours and rectangles, one mask after the other, are many times faster here than
    anything in tensors; the masks are brought to the host in one transfer.

    Args:
        probabilities: ``(B, S, S)``.
        windows: ``(B, 4)``, where the patches lie.
        above: which probability a pixel counts; that of the weights is ``network.box_threshold``.

    Returns:
        ``(B, 5)`` as OpenCV labels them; NaN where no pixel counts.
    """
    masks = (probabilities > above).to(torch.uint8).cpu().numpy()
    outlines = [_outline(mask) for mask in masks]
    counts = np.array([len(outline) for outline in outlines])
    boxes = np.full((len(masks), 5), np.nan)
    found = np.flatnonzero(counts)
    if found.size:
        own = np.repeat(windows.cpu().numpy(), counts, axis=0)  # of each point
        on_patch = np.concatenate(outlines)[:, None].astype(np.float64)
        points = patches.to_frame(on_patch, own, masks.shape[-1])[:, 0]
        boxes[found] = geometry.from_outlines(np.split(points, counts[found].cumsum()[:-1]))
    return boxes


def _outline(mask: ByteArray) -> NDArray[np.int32]:
    """Points around the parts of a mask that belong to the object, ``(K, 2)``; none of an empty one."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = [np.asarray(contour, np.int32).reshape(-1, 2) for contour in contours]
    if len(parts) > 1:
        areas = [cv2.contourArea(part) for part in parts]
        least = _SMALLEST_PART * max(areas)
        parts = [part for part, area in zip(parts, areas, strict=True) if area >= least]
    return np.concatenate(parts) if parts else np.empty((0, 2), np.int32)


def bounds_of_mask(
    probabilities: FloatArray, window: FloatArray, rbbox: FloatArray, above: float
) -> FloatArray:
    """Axis-aligned bounds of what a predicted mask has in common with the predicted box.

    The bounds of a slanted box are larger than those of the object in it; the mask knows better,
    as long as it and the box agree. Where the mask fills less than a quarter of the box, the bounds
    are the box's own.

    Args:
        probabilities: ``(S, S)`` float32 of object, on the patch.
        window: ``(4,)`` where the patch lies in the frame.
        rbbox: ``(5,)`` predicted box.
        above: which probability a pixel counts.

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
    """One patch's mask, back in the frame.

    Args:
        probabilities: ``(S, S)`` of object.
        window: ``(4,)``.
        width: of the frame.
        height: of the frame.

    Returns:
        ``(H, W)`` boolean: probability over ½.
    """
    return np.asarray(patch_in_frame(probabilities, window, width, height) > 0.5)


def patch_in_frame(
    values: torch.Tensor, window: torch.Tensor, width: int, height: int
) -> NDArray[np.float32]:
    """Values on a patch, back in the frame, bilinearly; 0 where the patch says nothing.

    Args:
        values: ``(S, S)``.
        window: ``(4,)``.
        width: of the frame.
        height: of the frame.

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
        borderMode=cv2.BORDER_REPLICATE,  # not blended with 0 up to the edge, where the frame may end
    )
    x, y = np.arange(width), np.arange(height)[:, None]
    within = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    return np.where(within, warped, 0).astype(np.float32)
