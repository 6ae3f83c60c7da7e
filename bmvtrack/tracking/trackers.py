"""What a tracker is, and the two that mark the ends of the scale: one never moves, one knows all.

A :data:`TrackerFactory` gives the tracker of a run, from the sequence and the first frame. Only the
oracle looks at the sequence; all others see nothing but the frames they are given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from bmvtrack import geometry, motion
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data.sequence import VideoSequence


class BoxTracker(ABC):
    """Follows one object from a given first box.

    Attributes:
        upright: whether its boxes are axis-aligned; evaluation then starts it from the object's
            axis-aligned bounds, as it expects.
    """

    upright: ClassVar[bool] = False

    @abstractmethod
    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """Start anew on a frame ``(H, W, 3)``, uint8 RGB, from the box ``(5,)`` of the object in it."""

    @abstractmethod
    def update(self, frame: ByteArray) -> FloatArray:
        """The box ``(5,)``, float64, of the object in the next frame ``(H, W, 3)``, uint8 RGB."""

    @property
    def mask(self) -> BoolArray | None:
        """``(H, W)``, the object in the latest frame; None if the tracker sees no masks."""
        return None

    def axis_aligned(self, rbbox: FloatArray) -> FloatArray:
        """Axis-aligned bounds ``(4,)`` of the object in the latest frame, in pixels.

        Those of the box that :meth:`update` has returned, unless the tracker knows better: a thin
        object that lies askew fills little of them, and of its mask the true bounds can be read.

        Args:
            rbbox: ``(5,)``, the latest box.
        """
        return geometry.bounds(rbbox)


TrackerFactory = Callable[[VideoSequence, int], BoxTracker]
"""Gives a tracker for a run, from the sequence and the frame it starts on; it may be the same one again,
since ``init`` starts it anew."""


class StaticTracker(BoxTracker):
    """Never moves its box: what a tracker must beat to be one."""

    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """See :class:`BoxTracker`."""
        self._rbbox: FloatArray = np.array(rbbox, dtype=np.float64)

    def update(self, frame: ByteArray) -> FloatArray:
        """See :class:`BoxTracker`."""
        return self._rbbox.copy()


class OracleTracker(BoxTracker):
    """Moves its box by the true motion G_t (paper Eq. 4–5): what an agent could reach at best.

    While there is no object the box rests; it then moves by the motion between the true boxes
    before and after.

    Args:
        sequence: with the true boxes.
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
    """The factory of :class:`StaticTracker`; that of :class:`OracleTracker` is the class itself."""
    return StaticTracker()
