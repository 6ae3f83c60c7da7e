"""Where a track breaks, and the numbers that tell why."""

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
        tracker: its name.
        run: with the predicted masks, if the tracker sees any.
        geometry: in which the run's AO is the lower.
        index: in the run of the frame in which its IoU in that geometry breaks; see
            :func:`breaking_index`.
        overlaps: ``(N,)`` IoU by name, NaN where a frame isn't scored: rotated and axis-aligned
            boxes, and of a tracker that sees masks also ``mask`` (with the true mask, where there
            is one) and ``box and mask`` (of the predicted box with the box of the predicted mask).
    """

    tracker: str
    run: Run
    geometry: Geometry
    index: int
    overlaps: dict[str, FloatArray]

    @property
    def name(self) -> str:
        """Tracker and run, fit for a file name."""
        return f"{self.tracker}-{self.run.name}"

    @property
    def frame(self) -> int:
        """Number in the sequence of the frame in which the track breaks."""
        return self.run.start + self.index

    @property
    def average_overlap(self) -> float:
        """AO in :attr:`geometry`, below :data:`LEAST_OVERLAP`."""
        return self.run.scores[self.geometry].ao


def breaking_index(iou: FloatArray) -> int | None:
    """The frame in which a track breaks: up to it, the surplus of IoU over ½ is the greatest.

    Σ (IoU − ½) over the scored frames before it is the greatest; of several such frames the first.
    So every stretch of frames that ends just before it has a mean IoU above ½, and every stretch that
    begins with it one of ½ at most. Neither a dip that passes nor a late touch moves it, as they
    would move the first frame below ½ and the last one above. (The change point of Page's CUSUM
    chart, "Continuous inspection schemes", Biometrika 1954.)

    Args:
        iou: ``(N,)``, NaN where a frame isn't scored.

    Returns:
        Its index, or None where the whole has the greatest surplus: the track holds to its end. A
        track with a mean IoU below ½ always breaks.
    """
    scored = np.flatnonzero(~np.isnan(iou))
    surplus = np.concatenate([[0.0], np.cumsum(iou[scored] - LEAST_OVERLAP)])
    best = int(surplus.argmax())
    return None if best == len(scored) else int(scored[best])


def find_failure(tracker: str, run: Run, sequence: VideoSequence) -> Failure | None:
    """What became of a run whose AO is below ½ in either geometry; None of any other.

    Without true masks only the rotated boxes count: the bounds of a true box that is tilted are larger
    than the object.

    Args:
        tracker: its name.
        run: on the sequence, with its masks if the tracker sees any.
        sequence: with the truth.
    """
    judged = ("rotated",) if sequence.read_mask is None else GEOMETRIES
    lower = min(judged, key=lambda geometry: run.scores[geometry].ao)
    if run.scores[lower].ao >= LEAST_OVERLAP:
        return None
    index = breaking_index(run.overlaps[lower].iou)
    if index is None:  # ½, but for the rounding of a mean
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
