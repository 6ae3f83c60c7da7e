"""Trackers that use the encoder without an agent: the posterior's mean, the mask's box, or both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.movers import Mover, move_by_both, move_by_mask, move_by_posterior
from bmvtrack.perception import Perception
from bmvtrack.tracker import Result, Tracker
from bmvtrack.tracking.trackers import BoxTracker, TrackerFactory, always

LearnedName = Literal["prior", "mask", "both"]


class PerceptionTracker(BoxTracker):
    """Adapter from the public :class:`~bmvtrack.tracker.Tracker` to :class:`BoxTracker`.

    Args:
        tracker: a tracker of RGB frames.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """See ``BoxTracker``."""
        self._tracker.init(frame, rbbox)
        self._result: Result | None = None

    def update(self, frame: ByteArray) -> FloatArray:
        """See ``BoxTracker``."""
        self._result = self._tracker.update(frame)
        return self._result.rbbox.copy()

    @property
    def mask(self) -> BoolArray | None:
        """The mask predicted in the last frame, ``(H, W)``; None before the first update."""
        return None if self._result is None else self._result.mask

    def axis_aligned(self, rbbox: FloatArray) -> FloatArray:
        """See ``BoxTracker``; these are the bounds of the mask within the box (``masks.bounds_of_mask``)."""
        return geometry.bounds(rbbox) if self._result is None else self._result.limits

    def mahalanobis(self, rbbox: FloatArray) -> float:
        """See ``BoxTracker``; NaN before the first update."""
        return math.nan if self._result is None else self._result.mahalanobis(rbbox)


MOVERS: dict[LearnedName, Mover] = {
    "prior": move_by_posterior,
    "mask": move_by_mask,
    "both": move_by_both,
}
"""How each tracker moves its box: by the posterior's mean (like an untrained agent), to the box of the
predicted mask, or halfway between the two."""


def learned_tracker(
    name: LearnedName, weights: str | Path = DEFAULT_WEIGHTS, device: str = "cpu"
) -> TrackerFactory:
    """The factory of one of these trackers.

    Args:
        name: a key of :data:`MOVERS`.
        weights: a folder, or the name of bundled weights.
        device: device of the encoder.

    Raises:
        UserError: if the weights are missing or invalid.
    """
    return always(PerceptionTracker(Tracker(Perception.load(weights, device), MOVERS[name])))
