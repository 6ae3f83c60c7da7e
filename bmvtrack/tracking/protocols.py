"""Evaluation protocols: one pass, from several starting frames, from imprecise first boxes.

OPE, TRE and SRE are the one-pass, temporal and spatial robustness evaluations of the object
tracking benchmark (Wu, Lim and Yang, "Online Object Tracking: A Benchmark", CVPR 2013).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import torch

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.inputs import can_start, refusal
from bmvtrack.tracking.metrics import (
    GEOMETRIES,
    Geometry,
    Overlap,
    Scores,
    axis_aligned_overlap,
    rotated_overlap,
    score,
)
from bmvtrack.tracking.trackers import TrackerFactory

Protocol = Literal["ope", "tre", "sre"]

_SHIFT = 0.1  # of the box's size, along its own axes
_SCALES = (0.8, 0.9, 1.1, 1.2)


@dataclass(frozen=True, eq=False)
class Run:
    """The output of a tracker from one start in one sequence.

    Args:
        sequence: name of the sequence.
        start: first frame.
        boxes: ``(N, 5)`` rotated boxes of frames start … start + N − 1; the first one was given.
        limits: ``(N, 4)`` axis-aligned bounds in the same frames.
        seconds: time spent in the tracker, without reading frames.
        overlaps: overlaps with the true boxes, in both geometries.
        distances: ``(N,)`` squared Mahalanobis distance of each true box from the tracker's Gaussian; NaN in
            the first frame, without an object, and for trackers that have none.
        label: distinguishes the runs of one sequence; empty if there is only one.
        masks: N predicted masks ``(H, W)``, None where there is none; empty if masks were not kept.
    """

    sequence: str
    start: int
    boxes: FloatArray
    limits: FloatArray
    seconds: float
    overlaps: dict[Geometry, Overlap] = field(repr=False)
    distances: FloatArray = field(repr=False)
    label: str = ""
    masks: tuple[BoolArray | None, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def name(self) -> str:
        """Sequence and label, usable as a file name."""
        return f"{self.sequence}-{self.label}" if self.label else self.sequence

    def without_masks(self) -> Run:
        """The same run, without its masks."""
        return replace(self, masks=())

    @cached_property
    def scores(self) -> dict[Geometry, Scores]:
        """All metrics in both geometries."""
        return {geometry: score(self.overlaps[geometry]) for geometry in GEOMETRIES}


def check_sequence(sequence: VideoSequence) -> None:
    """Read a whole sequence once, so that nothing fails in the middle of an evaluation.

    Raises:
        UserError: if a frame or mask is unreadable, frames differ in size from each other or from their
            masks, or there is no object in the first frame, or in no later one.
    """
    sequence.check_frame_sizes()
    if not sequence.present[0]:
        raise UserError(
            f"sequence {sequence.name!r}: the mask of its first frame is empty, so there is no box "
            "to start from; leave the sequence out or trim it to where the object is visible"
        )
    if reason := refusal(sequence.boxes[0], *sequence.size):
        raise UserError(
            f"sequence {sequence.name!r}: the box of its first frame {reason}; leave the sequence out or "
            "trim it to where the object is visible"
        )
    if not sequence.present[1:].any():
        raise UserError(
            f"sequence {sequence.name!r} has no object after its first frame: nothing to score"
        )


def first_box(sequence: VideoSequence, start: int, upright: bool) -> FloatArray:
    """The true box ``(5,)`` of a frame, or the axis-aligned box of its mask's bounds.

    Labels are continuous along a sequence, so the angle of an object that keeps turning grows without
    limit; the box returned has its angle reduced to one turn.
    """
    if upright:
        return geometry.upright(sequence.mask_bounds[start])
    box = np.array(sequence.boxes[start])
    if abs(box[4]) > 2 * math.pi:
        box[4] = math.remainder(box[4], 2 * math.pi)
    return box


def one_pass(
    factory: TrackerFactory,
    sequence: VideoSequence,
    start: int = 0,
    box: FloatArray | None = None,
    label: str = "",
    keep_masks: bool = False,
) -> Run:
    """Run a tracker from a frame with an object in it to the end of the sequence.

    Args:
        factory: creates the tracker.
        sequence: sequence to track in.
        start: first frame.
        box: ``(5,)`` first box for the tracker; None: the true one.
        label: label of the run.
        keep_masks: keep the tracker's predicted masks, for pictures.
    """
    tracker = factory(sequence, start)
    if box is None:
        box = first_box(sequence, start, tracker.upright)
    boxes, limits, distances, masks, seconds = [], [], [], [], 0.0
    for t in range(start, len(sequence)):
        frame = sequence.frame(t)
        began = time.perf_counter()
        if t == start:
            tracker.init(frame, box)
        else:
            box = tracker.update(frame)
        limits.append(tracker.axis_aligned(box))
        seconds += time.perf_counter() - began
        boxes.append(box)
        distances.append(tracker.mahalanobis(sequence.boxes[t]))
        if keep_masks:
            masks.append(None if tracker.mask is None else tracker.mask.copy())
    overlaps: dict[Geometry, Overlap] = {
        "axis_aligned": axis_aligned_overlap(np.stack(limits), sequence.mask_bounds[start:]),
        "rotated": rotated_overlap(np.stack(boxes), sequence.boxes[start:]),
    }
    return Run(
        sequence.name,
        start,
        np.stack(boxes),
        np.stack(limits),
        seconds,
        overlaps,
        np.array(distances),
        label,
        tuple(masks),
    )


def temporal_starts(sequence: VideoSequence, segments: int) -> list[int]:
    """First frames of TRE: spread evenly, each with an object in it and in a later frame.

    Frames whose box a tracker would refuse (:func:`~bmvtrack.inputs.can_start`) are excluded. The k-th start
    is the remaining frame nearest to k·T/segments; duplicates are dropped.

    Raises:
        UserError: if ``segments`` is less than 1, or no frame is suitable.
    """
    if segments < 1:
        raise UserError(f"TRE needs at least 1 segment, not {segments}")
    size = sequence.size
    shown = np.flatnonzero(sequence.present)[:-1]
    possible = np.array([t for t in shown if can_start(sequence.boxes[t], *size)], dtype=np.intp)
    if not possible.size:
        raise UserError(
            f"sequence {sequence.name!r} has no frame to start from: none has an object in it and in "
            "a later frame"
        )
    wanted = np.arange(segments) * len(sequence) / segments
    nearest = np.abs(possible - wanted[:, None]).argmin(axis=1)  # (segments,)
    return sorted({int(possible[i]) for i in nearest})


def spatial_boxes(box: FloatArray, width: int, height: int) -> dict[str, FloatArray]:
    """First boxes of SRE: eight shifted by a tenth of the size, four scaled by 0.8, 0.9, 1.1, 1.2.

    Shifts go along the box's own axes and diagonals; scaling is about the centre. A box that a tracker
    would refuse (:func:`~bmvtrack.inputs.can_start`) is replaced by the true box.

    Args:
        box: ``(5,)`` true box.
        width: width of the frame.
        height: height of the frame.

    Returns:
        Twelve boxes ``(5,)`` by label.
    """
    cos, sin = np.cos(box[4]), np.sin(box[4])
    boxes = {}
    for row, down in (("up", -1), ("", 0), ("down", 1)):
        for column, right in (("left", -1), ("", 0), ("right", 1)):
            if row or column:
                u, v = _SHIFT * right * box[2], _SHIFT * down * box[3]
                shift = np.array([u * cos - v * sin, u * sin + v * cos, 0, 0, 0])
                boxes["shift-" + "-".join(filter(None, (row, column)))] = box + shift
    for scale in _SCALES:
        boxes[f"scale-{scale}"] = box * np.array([1, 1, scale, scale, 1])
    return {
        label: moved if can_start(moved, width, height) else box for label, moved in boxes.items()
    }


def run_protocol(
    protocol: Protocol,
    factory: TrackerFactory,
    sequence: VideoSequence,
    segments: int = 10,
    keep_masks: bool = False,
) -> list[Run]:
    """All runs of one tracker on one sequence: one (OPE), up to ``segments`` (TRE) or 12 (SRE).

    Masks are kept for the first run only.
    """
    cases: list[tuple[int, FloatArray | None, str]]
    if protocol == "ope":
        cases = [(0, None, "")]
    elif protocol == "tre":
        cases = [(t, None, f"from-{t:05d}") for t in temporal_starts(sequence, segments)]
    else:
        true_box = first_box(sequence, 0, factory(sequence, 0).upright)
        cases = [(0, box, label) for label, box in spatial_boxes(true_box, *sequence.size).items()]
    return [
        one_pass(factory, sequence, start, box, label, keep_masks and i == 0)
        for i, (start, box, label) in enumerate(cases)
    ]


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit OpenCV and torch to one CPU thread, so that frame rates are comparable; restored on exit."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
