"""The frame in which a track breaks, and the numbers that explain why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bmvtrack import geometry
from bmvtrack.arrays import FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.iou import rotated_iou
from bmvtrack.segmentation.metrics import region_similarity
from bmvtrack.tracking.metrics import GEOMETRIES, Geometry
from bmvtrack.tracking.protocols import Run

LEAST_OVERLAP = 0.5
"""Average overlap below which a run is a failure."""


@dataclass(frozen=True, eq=False)
class Failure:
    """A run that lost its object.

    Args:
        tracker: name of the tracker.
        run: the run, with the predicted masks if the tracker predicts any.
        geometry: the geometry in which the run's AO is lower.
        index: index in the run of the frame in which the track breaks in that geometry; see
            :func:`breaking_index`.
        overlaps: ``(N,)`` IoU by name, NaN where a frame is not scored: of the rotated and the
            axis-aligned boxes; if the tracker predicts masks also ``mask`` (with the true mask, where there
            is one) and ``box and mask`` (of the predicted box with the box of the predicted mask).
    """

    tracker: str
    run: Run
    geometry: Geometry
    index: int
    overlaps: dict[str, FloatArray]

    @property
    def name(self) -> str:
        """Tracker and run, usable as a file name."""
        return f"{self.tracker}-{self.run.name}"

    @property
    def frame(self) -> int:
        """Number (in the sequence) of the frame in which the track breaks."""
        return self.run.start + self.index

    @property
    def average_overlap(self) -> float:
        """AO in :attr:`geometry`, below :data:`LEAST_OVERLAP`."""
        return self.run.scores[self.geometry].ao


def breaking_index(iou: FloatArray) -> int | None:
    """The frame in which a track breaks: the one before which Σ (IoU − ½) is largest.

    The sum is over the scored frames before it; of several such frames, the first is taken. Every stretch
    of frames that ends just before it thus has a mean IoU above ½, and every stretch that begins with it a
    mean of at most ½. Unlike the first frame below ½ and the last one above, it is moved neither by a
    temporary dip nor by a late chance overlap. (It is the change point of Page's CUSUM chart, "Continuous
    inspection schemes", Biometrika 1954.)

    Args:
        iou: ``(N,)``, NaN where a frame is not scored.

    Returns:
        The index of the frame, or None if the sum over the whole run is the largest: the track holds to its
        end. A track with a mean IoU below ½ always breaks.
    """
    scored = np.flatnonzero(~np.isnan(iou))
    surplus = np.concatenate([[0.0], np.cumsum(iou[scored] - LEAST_OVERLAP)])
    best = int(surplus.argmax())
    return None if best == len(scored) else int(scored[best])


def find_failure(tracker: str, run: Run, sequence: VideoSequence) -> Failure | None:
    """The failure of a run whose AO is below ½ in either geometry; None for any other run.

    Without true masks only the rotated boxes count, because the bounds of a tilted true box are larger
    than the object.

    Args:
        tracker: name of the tracker.
        run: its run on the sequence, with the masks if the tracker predicts any.
        sequence: the sequence, with the ground truth.
    """
    judged = ("rotated",) if sequence.read_mask is None else GEOMETRIES
    lower = min(judged, key=lambda geometry: run.scores[geometry].ao)
    if run.scores[lower].ao >= LEAST_OVERLAP:
        return None
    index = breaking_index(run.overlaps[lower].iou)
    if index is None:  # an AO of ½ up to rounding
        return None
    overlaps = {name.replace("_", "-"): run.overlaps[name].iou for name in reversed(GEOMETRIES)}
    if any(mask is not None for mask in run.masks):
        if sequence.read_mask is not None:
            overlaps["mask"] = _mask_overlap(run, sequence)
        overlaps["box and mask"] = _agreement(run)
    return Failure(tracker, run, lower, index, overlaps)


def _mask_overlap(run: Run, sequence: VideoSequence) -> FloatArray:
    result = np.full(len(run), np.nan)
    for i, mask in enumerate(run.masks):
        true = sequence.mask(run.start + i)
        if mask is not None and true.any():
            result[i] = region_similarity(mask, true)
    return result


def _agreement(run: Run) -> FloatArray:
    result = np.full(len(run), np.nan)
    for i, mask in enumerate(run.masks):
        box = None if mask is None else geometry.from_mask(mask)
        if box is not None:
            result[i] = rotated_iou(run.boxes[i], box)
    return result
