"""How a box is moved on by what the network sees through it: the rules that trackers are made of.

A rule takes B boxes at once and holds no state. The agent's lies in ``agents.tracker``.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from bmvtrack import geometry, motion
from bmvtrack.arrays import FloatArray
from bmvtrack.data import patches
from bmvtrack.perception import Percept

Mover = Callable[[Percept, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(percept of B frames, boxes t ``(B, 5)``, the motion that led to them ``(B, 5)`` in ``object``
coordinates, width and height of the frames ``(B, 2)``) → boxes t+1 ``(B, 5)``, all float64."""

IN_BOX = 0.125
"""Probability of object over which a pixel of a mask counts for its box.

⅛ and not ½, which is where the *mask* ends: a box that is too small hides from the next frame what it left
out, and shrinks until the track is lost; one that is too large still shows all of it. Chosen on the
DAVIS16 training sequences upside down and on synthetic ones (docs/results.md).
"""
_SMALLEST_PART = 0.1  # of the largest: smaller parts of a mask do not belong to the object
_MOST_GROWTH = 1.25  # of a side, and its inverse, from one frame to the next


def move_by_posterior(
    percept: Percept, boxes: torch.Tensor, previous_motion: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """By the posterior's mean: the agent before it has learned anything. A :data:`Mover`."""
    width, height = sizes.to(boxes).unbind(-1)
    return motion.apply(boxes, percept.mean, width, height, "object")


def move_by_mask(
    percept: Percept, boxes: torch.Tensor, previous_motion: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """To the box of the predicted mask, as true boxes are taken from true masks. A :data:`Mover`.

    Probability over :data:`IN_BOX`, parts over a tenth of the largest, ``minAreaRect``, the label nearest
    to the last box, sides within a factor of 1.25 of it. Where there is no mask the box stays.
    """
    before = boxes.cpu().numpy()
    moved = mask_boxes(percept.probabilities, percept.windows)
    moved = np.where(np.isnan(moved), before, geometry.nearest_label(moved, before))
    sides = before[:, 2:4]
    moved[:, 2:4] = np.clip(moved[:, 2:4], sides / _MOST_GROWTH, sides * _MOST_GROWTH)
    return torch.as_tensor(moved).to(boxes)


def move_by_both(
    percept: Percept, boxes: torch.Tensor, previous_motion: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """Halfway between :func:`move_by_posterior` and :func:`move_by_mask`. A :data:`Mover`.

    Halfway in ``object`` coordinates, of the scales in their logarithms.
    """
    width, height = sizes.to(boxes).unbind(-1)
    after = move_by_mask(percept, boxes, previous_motion, sizes)
    by_mask = motion.solve(boxes, after, width, height, "object")
    halfway = (percept.mean + by_mask) / 2
    halfway[:, :2] = (percept.mean[:, :2] * by_mask[:, :2]).sqrt()
    moved: torch.Tensor = motion.apply(boxes, halfway, width, height, "object")
    return moved


def mask_boxes(probabilities: torch.Tensor, windows: torch.Tensor) -> FloatArray:
    """The rotated boxes of masks on patches, in the frame.

    OpenCV's contours and rectangles, one mask after the other, are many times faster here than
    anything in tensors; the masks are brought to the host in one transfer.

    Args:
        probabilities: ``(B, S, S)``.
        windows: ``(B, 4)``, where the patches lie.

    Returns:
        ``(B, 5)`` as OpenCV labels them; NaN where no probability is over :data:`IN_BOX`.
    """
    masks = (probabilities > IN_BOX).to(torch.uint8).cpu().numpy()
    boxes = np.full((len(masks), 5), np.nan)
    for box, mask, window in zip(boxes, masks, windows.cpu().numpy(), strict=True):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        if contours:
            areas = np.array([cv2.contourArea(contour) for contour in contours])
            large = np.flatnonzero(areas >= _SMALLEST_PART * areas.max())
            points = np.concatenate([contours[i] for i in large])[:, 0].astype(np.float64)
            box[:] = geometry.from_points(patches.to_frame(points, window, mask.shape[-1]))
    return boxes
