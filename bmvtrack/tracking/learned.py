"""Trackers that need the encoder but no agent: the posterior's mean, and the box of the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from bmvtrack import geometry, motion
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data import patches
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.perception import DEFAULT_WEIGHTS, Percept, Perception, mask_in_frame
from bmvtrack.tracking.trackers import Tracker, TrackerFactory

_SMALLEST_PART = 0.1  # of the largest: smaller parts of a mask do not belong to the object
_LEAST_FILLED = 0.25  # of the box, for a mask to be trusted with its bounds
_MOST_GROWTH = 1.25  # of a side, and its inverse, from one frame to the next

LearnedName = Literal["prior", "mask"]


class PerceptionTracker(Tracker):
    """What trackers that look through the encoder have in common.

    Args:
        perception: the encoder.
    """

    def __init__(self, perception: Perception) -> None:
        self.perception = perception

    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """See ``Tracker``."""
        self._box: FloatArray = np.asarray(rbbox, dtype=np.float64)
        self._size = frame.shape[1], frame.shape[0]
        self._percept: Percept | None = None

    def update(self, frame: ByteArray) -> FloatArray:
        """See ``Tracker``."""
        self._percept = self.perception.look(frame, self._box)
        self._box = geometry.clamp(self._next_box(self._percept), *self._size)
        return self._box.copy()

    @property
    def mask(self) -> BoolArray | None:
        """The mask predicted in the last frame, ``(H, W)``; None before the first update."""
        if self._percept is None:
            return None
        return mask_in_frame(self._percept.probabilities[0], self._percept.windows[0], *self._size)

    def axis_aligned(self, rbbox: FloatArray) -> FloatArray:
        """See ``Tracker``: those of the mask within the box, see :func:`bounds_of_mask`."""
        return (
            geometry.bounds(rbbox)
            if self._percept is None
            else bounds_of_mask(self._percept, rbbox)
        )

    def _next_box(self, percept: Percept) -> FloatArray:
        raise NotImplementedError


class PosteriorTracker(PerceptionTracker):
    """Moves the box by the posterior's mean: the agent before it has learned anything."""

    name = "prior"

    def _next_box(self, percept: Percept) -> FloatArray:
        width, height = self._size
        return motion.apply(self._box, percept.mean[0].cpu().numpy(), width, height, "object")


class MaskTracker(PerceptionTracker):
    """Takes the box of the predicted mask, as the true boxes are taken from true masks.

    Probability over ½, parts over a tenth of the largest, ``minAreaRect``, the label nearest to the
    last box, sides within a factor of 1.25 of it. Where there is no mask the box stays.
    """

    name = "mask"

    def _next_box(self, percept: Percept) -> FloatArray:
        box = mask_box(percept.probabilities[0], percept.windows[0])
        if box is None:
            return self._box
        box = geometry.nearest_label(box, self._box)
        sides = self._box[2:4]
        box[2:4] = np.clip(box[2:4], sides / _MOST_GROWTH, sides * _MOST_GROWTH)
        return box


def mask_box(probabilities: torch.Tensor, window: torch.Tensor) -> FloatArray | None:
    """The rotated box of a mask on a patch, in the frame.

    Args:
        probabilities: ``(S, S)``.
        window: ``(4,)``, where the patch lies.

    Returns:
        ``(5,)`` as OpenCV labels it, or None where no probability is over ½.
    """
    mask = (probabilities > 0.5).to(torch.uint8).cpu().numpy()
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    areas = np.array([cv2.contourArea(contour) for contour in contours])
    kept = [
        c for c, area in zip(contours, areas, strict=True) if area >= _SMALLEST_PART * areas.max()
    ]
    points = np.concatenate(kept)[:, 0].astype(np.float64)
    in_frame = patches.to_frame(points, window.cpu().numpy(), probabilities.shape[-1])
    return geometry.from_points(in_frame)


def bounds_of_mask(percept: Percept, rbbox: FloatArray) -> FloatArray:
    """Axis-aligned bounds of what the predicted mask has in common with the predicted box.

    The bounds of a slanted box are larger than those of the object in it; the mask knows better,
    as long as it and the box agree. Where the mask fills less than a quarter of the box, the bounds
    are the box's own.

    Args:
        percept: that the box was predicted from, a batch of one.
        rbbox: ``(5,)`` predicted box.

    Returns:
        ``(4,)``: left, top, right, bottom in pixels of the frame.
    """
    size = percept.probabilities.shape[-1]
    box = torch.as_tensor(rbbox, dtype=torch.float64, device=percept.windows.device)[None]
    inside = patches.fill_box(box, percept.windows, size)[0, 0] > 0
    common = ((percept.probabilities[0] > 0.5) & inside).cpu().numpy()
    if common.sum() < _LEAST_FILLED * int(inside.sum()) or not common.any():
        return geometry.bounds(rbbox)
    edges = geometry.mask_bounds(common).reshape(2, 2)
    in_frame = patches.to_frame(edges, percept.windows[0].cpu().numpy(), size)
    return np.asarray(in_frame).reshape(4)


_TRACKERS: dict[LearnedName, type[PerceptionTracker]] = {
    "prior": PosteriorTracker,
    "mask": MaskTracker,
}


def learned_tracker(
    name: LearnedName, weights: str | Path = DEFAULT_WEIGHTS, device: str = "cpu"
) -> TrackerFactory:
    """A factory of the tracker of that name.

    Args:
        name: ``prior`` or ``mask``.
        weights: a folder, or bundled weights by name.
        device: of the encoder.

    Raises:
        UserError: if the weights are missing or not as they should be.
    """
    tracker = _TRACKERS[name](Perception.load(weights, device))

    def factory(sequence: VideoSequence, start: int) -> Tracker:
        return tracker

    return factory
