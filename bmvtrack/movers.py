"""How a box is moved on by what the network sees through it: the rules that trackers are made of.

A rule takes B boxes at once and holds no state. The agent's lies in ``agents.tracker``.
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

    Pixels of probability over the percept's ``box_threshold``, parts over a tenth of the largest,
    ``minAreaRect``, the label nearest to the last box, sides within a factor of 1.25 of it. Where
    there is no mask the box stays.
    """
    found = mask_boxes(percept.probabilities, percept.windows, percept.box_threshold)
    return towards(found, boxes)


def towards(found: FloatArray, boxes: torch.Tensor) -> torch.Tensor:
    """What :func:`move_by_mask` makes of the boxes of masks.

    Args:
        found: ``(B, 5)`` as OpenCV labels them; NaN where there is no mask.
        boxes: t, ``(B, 5)``.

    Returns:
        Boxes t+1 ``(B, 5)``, beside boxes t.
    """
    before = boxes.cpu().numpy()
    moved = np.where(np.isnan(found), before, geometry.nearest_label(found, before))
    sides = before[:, 2:4]
    moved[:, 2:4] = np.clip(moved[:, 2:4], sides / _MOST_GROWTH, sides * _MOST_GROWTH)
    return to_device(torch.as_tensor(moved).to(boxes.dtype), boxes.device)


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
