"""Rules that move a box by what the network sees through it; trackers are built from them.

A rule takes B boxes at once and holds no state. The agent's rule is in ``agents.tracker``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bmvtrack import geometry, motion
from bmvtrack.arrays import FloatArray
from bmvtrack.devices import to_device
from bmvtrack.masks import mask_boxes
from bmvtrack.percept import Percept

Mover = Callable[[Percept, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(percept of B frames, boxes t ``(B, 5)``, the motion that led to them ``(B, 5)`` in ``object``
coordinates, width and height of the frames ``(B, 2)``) → boxes t+1 ``(B, 5)``, all float64."""

_MOST_GROWTH = 1.25  # of a side from one frame to the next; its inverse limits shrinking


def move_by_posterior(
    percept: Percept, boxes: torch.Tensor, previous_motion: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """Move by the posterior mean, as an agent does before training. A :data:`Mover`."""
    width, height = sizes.to(boxes).unbind(-1)
    return motion.apply(boxes, percept.mean, width, height, "object")


def move_by_mask(
    percept: Percept, boxes: torch.Tensor, previous_motion: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """Move to the box of the predicted mask, as true boxes are taken from true masks. A :data:`Mover`.

    It takes the pixels with a probability over the percept's ``box_threshold``, in parts of at least a
    tenth of the largest; their ``minAreaRect``; the label nearest to the last box; and sides within a
    factor of 1.25 of that box's. Without a mask the box stays.
    """
    found = mask_boxes(percept.probabilities, percept.windows, percept.box_threshold)
    return towards(found, boxes)


def towards(found: FloatArray, boxes: torch.Tensor) -> torch.Tensor:
    """The second half of :func:`move_by_mask`: from the boxes of masks to boxes t+1.

    Args:
        found: ``(B, 5)`` boxes of masks as OpenCV labels them; NaN where there is no mask.
        boxes: ``(B, 5)`` boxes t.

    Returns:
        ``(B, 5)`` boxes t+1, of the dtype and on the device of boxes t.
    """
    before = boxes.cpu().numpy()
    moved = np.where(np.isnan(found), before, geometry.nearest_label(found, before))
    sides = before[:, 2:4]
    moved[:, 2:4] = np.clip(moved[:, 2:4], sides / _MOST_GROWTH, sides * _MOST_GROWTH)
    return to_device(torch.as_tensor(moved).to(boxes.dtype), boxes.device)


def move_by_both(
    percept: Percept, boxes: torch.Tensor, previous_motion: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """Move halfway between :func:`move_by_posterior` and :func:`move_by_mask`. A :data:`Mover`.

    The two motions are averaged in ``object`` coordinates, the scales in their logarithms.
    """
    width, height = sizes.to(boxes).unbind(-1)
    after = move_by_mask(percept, boxes, previous_motion, sizes)
    by_mask = motion.solve(boxes, after, width, height, "object")
    halfway = (percept.mean + by_mask) / 2
    halfway[:, :2] = (percept.mean[:, :2] * by_mask[:, :2]).sqrt()
    moved: torch.Tensor = motion.apply(boxes, halfway, width, height, "object")
    return moved
