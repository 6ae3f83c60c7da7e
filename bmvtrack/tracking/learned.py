"""Trackers that need the encoder but no agent: the posterior's mean, the box of the mask, and both."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.movers import Mover, move_by_both, move_by_mask, move_by_posterior
from bmvtrack.perception import Perception
from bmvtrack.tracker import Result, Tracker
from bmvtrack.tracking.trackers import BoxTracker, TrackerFactory

LearnedName = Literal["prior", "mask", "both"]


class PerceptionTracker(BoxTracker):
    """The public :class:`~bmvtrack.tracker.Tracker` as evaluations run it.

    Args:
        tracker: of RGB frames.
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
        """See ``BoxTracker``: those of the mask within the box, see ``masks.bounds_of_mask``."""
        return geometry.bounds(rbbox) if self._result is None else self._result.limits


MOVERS: dict[LearnedName, Mover] = {
    "prior": move_by_posterior,
    "mask": move_by_mask,
    "both": move_by_both,
}
"""By what a tracker of that name moves its box: the posterior's mean (the agent before it has learned
anything), the box of the predicted mask, or halfway to either."""


def learned_tracker(
    name: LearnedName, weights: str | Path = DEFAULT_WEIGHTS, device: str = "cpu"
) -> TrackerFactory:
    """A factory of the tracker of that name.

    Args:
        name: a key of :data:`MOVERS`.
        weights: a folder, or bundled weights by name.
        device: of the encoder.

    Raises:
        UserError: if the weights are missing or not as they should be.
    """
    tracker = PerceptionTracker(Tracker(Perception.load(weights, device), MOVERS[name]))

    def factory(sequence: VideoSequence, start: int) -> BoxTracker:
        return tracker

    return factory
