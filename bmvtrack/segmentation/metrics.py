"""Region similarity J and contour accuracy F of DAVIS, and their statistics over a sequence.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation",
CVPR 2016; details (which pixels are boundary, where a bin ends) follow its published evaluation code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from bmvtrack.arrays import BoolArray, ByteArray, FloatArray

BOUNDARY_TOLERANCE = 0.008
"""Largest distance between matching boundaries, as a fraction of the frame's diagonal."""
RECALL_THRESHOLD = 0.5
DECAY_BINS = 4


@dataclass(frozen=True)
class Statistics:
    """J or F of one sequence, or the averages over sequences.

    Args:
        mean: mean over the frames.
        recall: share of the frames above ½.
        decay: mean of the first quarter minus mean of the last; negative if the masks improve.
    """

    mean: float
    recall: float
    decay: float


def region_similarity(predicted: BoolArray, true: BoolArray) -> float:
    """J: intersection over union of two masks ``(H, W)``; 1 if both are empty."""
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def boundary(mask: BoolArray) -> BoolArray:
    """The boundary of a mask, one pixel wide.

    Args:
        mask: ``(H, W)``.

    Returns:
        ``(H, W)``: the pixels, inside or outside the mask, that differ from their right, lower or
        lower right neighbour; at the frame's edge, missing neighbours do not differ.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return np.asarray((mask != right) | (mask != below) | (mask != across))


def contour_accuracy(predicted: BoolArray, true: BoolArray) -> float:
    """F: how well the boundaries of two masks match, F = 2PR/(P + R).

    P is the share of the predicted boundary that has true boundary within :func:`tolerance`, R the share
    of the true boundary that has predicted boundary within it.

    Args:
        predicted: ``(H, W)``.
        true: ``(H, W)``.

    Returns:
        F in [0, 1]: 1 if neither mask has a boundary, 0 if only one has.
    """
    outlines = boundary(predicted), boundary(true)
    counts = [np.count_nonzero(outline) for outline in outlines]
    if not all(counts):
        return float(not any(counts))
    radius = tolerance(*predicted.shape)
    precision = np.count_nonzero(outlines[0] & _dilated(outlines[1], radius)) / counts[0]
    recall = np.count_nonzero(outlines[1] & _dilated(outlines[0], radius)) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def tolerance(height: int, width: int) -> int:
    """Radius in pixels within which boundaries match: ceil(0.008·diagonal), 8 at 854×480."""
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))


def statistics(values: FloatArray) -> Statistics:
    """Mean, recall and decay of J or F over a sequence, without its first and last frame.

    The decay's four bins share their end frames: among N scored frames, numbered from 0, these are
    k(N − 1)/4, k = 0 … 4, rounded half up.

    Args:
        values: ``(T,)`` values of all frames.

    Raises:
        ValueError: if there are fewer than three frames.
    """
    scored = values[1:-1]
    if not scored.size:
        raise ValueError("no frame is scored: the first and the last frame of a sequence are not")
    ends = np.floor(np.linspace(0, len(scored) - 1, DECAY_BINS + 1) + 0.5).astype(int)
    first, last = scored[: ends[1] + 1], scored[ends[-2] :]
    return Statistics(
        mean=float(scored.mean()),
        recall=float((scored > RECALL_THRESHOLD).mean()),
        decay=float(first.mean() - last.mean()),
    )


def average(parts: Sequence[Statistics]) -> Statistics:
    """The mean over sequences; each counts once, regardless of its length."""
    return Statistics(
        mean=float(np.mean([part.mean for part in parts])),
        recall=float(np.mean([part.recall for part in parts])),
        decay=float(np.mean([part.decay for part in parts])),
    )


def _dilated(outline: BoolArray, radius: int) -> BoolArray:
    return np.asarray(cv2.dilate(outline.view(np.uint8), _disk(radius)) > 0)


@lru_cache
def _disk(radius: int) -> ByteArray:
    """A disk: all pixels whose centres are at most ``radius`` away from the middle pixel's."""
    steps = np.arange(-radius, radius + 1)
    return (steps**2 + steps[:, None] ** 2 <= radius**2).astype(np.uint8)
