"""The tracker interface, and the two trackers at the ends of the scale: one never moves, one is an oracle.

A :data:`TrackerFactory` returns the tracker for a run, given the sequence and the first frame. Only the
oracle uses the sequence; all others see only the frames that they are given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from bmvtrack import geometry, motion
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data.sequence import VideoSequence


class BoxTracker(ABC):
    """A tracker that follows one object from a given first box.

    Attributes:
        upright: whether its boxes are axis-aligned; an evaluation then starts it from the object's
            axis-aligned bounds.
    """

    upright: ClassVar[bool] = False

    @abstractmethod
    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """(Re)start on a frame ``(H, W, 3)``, uint8 RGB, from the box ``(5,)`` of the object in it."""

    @abstractmethod
    def update(self, frame: ByteArray) -> FloatArray:
        """The box ``(5,)``, float64, of the object in the next frame ``(H, W, 3)``, uint8 RGB."""

    @property
    def mask(self) -> BoolArray | None:
        """``(H, W)`` mask of the object in the latest frame; None if the tracker predicts no masks."""
        return None

    def axis_aligned(self, rbbox: FloatArray) -> FloatArray:
        """Axis-aligned bounds ``(4,)`` of the object in the latest frame, in pixels.

        By default the bounds of the box that :meth:`update` returned. A tracker with masks can do better: a
        thin tilted object fills little of these bounds, but its mask gives the true ones.

        Args:
            rbbox: ``(5,)`` latest box.
        """
        return geometry.bounds(rbbox)

    def mahalanobis(self, rbbox: FloatArray) -> float:
        """Squared Mahalanobis distance of a box from the tracker's Gaussian for the latest frame; NaN if it
        has none.

        Args:
            rbbox: ``(5,)`` true box, NaN without object.
        """
        return math.nan


TrackerFactory = Callable[[VideoSequence, int], BoxTracker]
"""Returns a tracker for a run, given the sequence and the starting frame; it may return the same tracker
every time, since ``init`` restarts it."""


def always(tracker: BoxTracker) -> TrackerFactory:
    """The factory that returns one tracker for every run."""
    return lambda sequence, start: tracker


class StaticTracker(BoxTracker):
    """Never moves its box: the lower bound that any tracker must beat."""

    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """See :class:`BoxTracker`."""
        self._rbbox: FloatArray = np.array(rbbox, dtype=np.float64)

    def update(self, frame: ByteArray) -> FloatArray:
        """See :class:`BoxTracker`."""
        return self._rbbox.copy()


class OracleTracker(BoxTracker):
    """Moves its box by the true motion G_t (paper Eq. 4–5): the upper bound for an agent.

    While there is no object the box stays in place; it then moves by the motion between the true boxes
    before and after the gap.

    Args:
        sequence: the sequence, with the true boxes.
        start: first frame of the run, with an object in it.
    """

    def __init__(self, sequence: VideoSequence, start: int) -> None:
        self._boxes, self._size = sequence.boxes, sequence.size
        self._t = self._seen = start

    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """See :class:`BoxTracker`."""
        self._rbbox: FloatArray = np.array(rbbox, dtype=np.float64)

    def update(self, frame: ByteArray) -> FloatArray:
        """See :class:`BoxTracker`."""
        self._t += 1
        before, after = self._boxes[self._seen], self._boxes[self._t]
        if np.isfinite(after).all():
            true_motion = motion.solve(before, after, *self._size, "frame")
            self._rbbox = motion.apply(self._rbbox, true_motion, *self._size, "frame")
            self._seen = self._t
        return self._rbbox.copy()


def static_tracker(sequence: VideoSequence, start: int) -> BoxTracker:
    """The factory of :class:`StaticTracker`; :class:`OracleTracker` is its own factory."""
    return StaticTracker()
