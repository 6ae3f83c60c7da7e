"""Adapter of the tracker for the GOT-10k toolkit, which evaluates on GOT-10k, OTB, VOT, ...

    from bmvtrack.got10k import ToolkitTracker
    from got10k.experiments import ExperimentGOT10k

    experiment = ExperimentGOT10k("GOT-10k", subset="val")
    tracker = ToolkitTracker()
    experiment.run(tracker)
    experiment.report([tracker.name])

The toolkit (``pip install "bmvtrack[got10k]"``; Huang, Zhao and Huang, "GOT-10k", TPAMI 2019) recognizes
a tracker by its methods, so it need not be imported here. Its last release, 0.1.3 of 2019, works with
Python 3.11 and NumPy 2.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.data.sequence import read_image
from bmvtrack.tracker import Tracker

_FIRST_PIXEL = np.array([1.0, 1, 0, 0])


class ToolkitTracker:
    """Follows one object with :class:`~bmvtrack.tracker.Tracker`; boxes are upright.

    Boxes are ``x, y, w, h`` of the pixels they cover, counted from 1, as in OTB and in the trackers
    of the toolkit's author.

    Args:
        weights: a folder, or the name of bundled weights.
        device: ``cpu`` or ``cuda``, for the encoder.
        name: name of the tracker and of its results folder.

    Raises:
        UserError: if the weights or the device do not exist.
    """

    is_deterministic = True
    """One run of each sequence is enough."""

    def __init__(
        self,
        weights: str | Path = DEFAULT_WEIGHTS,
        device: str = "cpu",
        name: str = "bmvtrack",
    ) -> None:
        self.name = name
        self._tracker = Tracker.load(weights, device)

    def init(self, image: Image.Image, box: ArrayLike) -> None:
        """Start on an image from the box ``(4,)`` of the object in it.

        Raises:
            UserError: if the box is invalid or outside the image.
        """
        self._tracker.init(_frame(image), np.asarray(box, dtype=np.float64) - _FIRST_PIXEL)

    def update(self, image: Image.Image) -> FloatArray:
        """The box ``(4,)``, float64, of the object in the next image."""
        box: FloatArray = self._tracker.update(_frame(image)).box + _FIRST_PIXEL
        return box

    def track(
        self, img_files: Sequence[str | Path], box: ArrayLike, visualize: bool = False
    ) -> tuple[FloatArray, FloatArray]:
        """Follow an object through image files from its box in the first one.

        Args:
            img_files: N images.
            box: ``(4,)`` in the first.
            visualize: show each frame in a window of the toolkit.

        Returns:
            ``(N, 4)`` boxes, of which the first is the given one, and ``(N,)`` seconds spent in the
            tracker, excluding reading.

        Raises:
            UserError: if an image cannot be read, or the box is invalid or outside the first.
        """
        boxes, seconds = np.empty((len(img_files), 4)), np.empty(len(img_files))
        boxes[0] = box
        for i, path in enumerate(img_files):
            image = Image.fromarray(read_image(Path(path)))
            began = time.perf_counter()
            if i == 0:
                self.init(image, boxes[0])
            else:
                boxes[i] = self.update(image)
            seconds[i] = time.perf_counter() - began
            if visualize:
                _show(image, boxes[i])
        return boxes, seconds


def _frame(image: Image.Image) -> ByteArray:
    return np.asarray(image.convert("RGB"))


def _show(image: Any, box: FloatArray) -> None:
    from got10k.utils.viz import show_frame

    show_frame(image, box)
