"""OpenCV's classical trackers for comparison: CSRT, KCF, MIL and MOSSE.

They track axis-aligned boxes of whole pixels. All but MIL need ``opencv-contrib-python``. MIL seeds its
own random number generator, so no two of its runs are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import cv2
import numpy as np

from bmvtrack import geometry
from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.inputs import upright_box
from bmvtrack.tracking.trackers import BoxTracker, TrackerFactory

Peer = Literal["csrt", "kcf", "mil", "mosse"]
PEERS: tuple[Peer, ...] = get_args(Peer)

_SMALLEST_SIDE = 5
"""Pixels; below it OpenCV's correlation filters have nothing to correlate, and MIL never returns."""


class OpenCVTracker(BoxTracker):
    """One of OpenCV's trackers behind the interface of :class:`BoxTracker`.

    It starts from the bounds of the box, clipped to the frame, and returns axis-aligned boxes. While
    OpenCV reports the object as lost, the box stays where it was and the search continues. If OpenCV cannot
    start from a box (MIL: one that fills the frame), the box never moves.

    Args:
        create: OpenCV's function that creates the tracker.
    """

    upright = True

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create

    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """See :class:`BoxTracker`."""
        height, width = frame.shape[:2]
        self._tracker = self._create()
        self._rbbox: FloatArray = np.array(rbbox, dtype=np.float64)
        try:
            self._tracker.init(_to_bgr(frame), _to_rectangle(rbbox, width, height))
        except cv2.error:
            self._tracker = None

    def update(self, frame: ByteArray) -> FloatArray:
        """See :class:`BoxTracker`."""
        if self._tracker is None:
            return self._rbbox.copy()
        try:
            found, rectangle = self._tracker.update(_to_bgr(frame))
        except cv2.error:  # some fail on a window outside the frame rather than report a loss
            found, rectangle = False, None
        if found:
            self._rbbox = upright_box(np.array(rectangle, dtype=np.float64))
        return self._rbbox.copy()


def opencv_tracker(name: Peer) -> TrackerFactory:
    """The factory of one of OpenCV's trackers.

    Raises:
        UserError: if the installed OpenCV lacks it.
    """
    function = f"Tracker{name.upper()}_create"
    create = getattr(cv2, function, None) or getattr(getattr(cv2, "legacy", None), function, None)
    if create is None:
        raise UserError(
            f"the installed OpenCV has no {name.upper()} tracker; "
            "it comes with opencv-contrib-python: pip install 'bmvtrack[peers]'"
        )

    def factory(sequence: VideoSequence, start: int) -> BoxTracker:
        return OpenCVTracker(create)

    return factory


def _to_bgr(frame: ByteArray) -> ByteArray:
    return np.ascontiguousarray(frame[..., ::-1])


def _to_rectangle(rbbox: FloatArray, width: int, height: int) -> tuple[int, int, int, int]:
    """OpenCV's x, y, w, h in whole pixels, inside the frame, with sides of at least ``_SMALLEST_SIDE``."""
    # A box that covers pixels i to j extends from i - 0.5 to j + 0.5; OpenCV expects i and j + 1.
    edges = np.round(geometry.bounds(rbbox) + 0.5).astype(int)
    limit = np.array([width, height])
    first = np.clip(edges[:2], 0, limit - _SMALLEST_SIDE)
    last = np.clip(edges[2:], first + _SMALLEST_SIDE, limit)
    x, y, w, h = np.concatenate([first, last - first]).tolist()
    return x, y, w, h
