"""Tracking metrics as defined by the benchmarks' own tools, for one run and averaged.

They are computed from two numbers per frame: the overlap (IoU) of the predicted and the true box, and the
distance between their centres. Both are NaN in frames that are not scored: a run's first frame, whose box
was given, and frames without an object. A frame with an object but no finite prediction has an overlap of 0.
(OTB's own tools do score the first frame, as a success.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from bmvtrack.arrays import FloatArray
from bmvtrack.iou import bounds_iou, rotated_iou

Geometry = Literal["axis_aligned", "rotated"]
GEOMETRIES: tuple[Geometry, ...] = get_args(Geometry)

THRESHOLDS: FloatArray = np.linspace(0, 1, 21)
"""Overlap thresholds of the success curve (OTB)."""
PIXELS: FloatArray = np.arange(51.0)
"""Distance thresholds of the precision curve, in pixels (OTB)."""
PRECISION_PIXELS = 20
LEVELS = (50, 90, 99)
"""Probabilities, in per cent, of the regions whose :func:`coverage` is reported."""


@dataclass(frozen=True)
class Overlap:
    """How well the boxes of one run match the true ones.

    Args:
        iou: ``(N,)`` in [0, 1], NaN where a frame is not scored.
        centre_error: ``(N,)`` in pixels, NaN where a frame is not scored, infinite without a prediction.
    """

    iou: FloatArray
    centre_error: FloatArray


@dataclass(frozen=True)
class Scores:
    """The metrics of a run, or their averages over runs.

    Args:
        ao: average overlap, the mean IoU.
        sr50: share of frames with IoU > 0.5.
        sr75: share of frames with IoU > 0.75.
        auc: area under the success curve; 20/21 for a perfect tracker, as no IoU is above 1.
        precision20: share of frames with a centre error of at most 20 pixels.
        success: ``(21,)`` success curve over :data:`THRESHOLDS`.
        precision: ``(51,)`` precision curve over :data:`PIXELS`.
    """

    ao: float
    sr50: float
    sr75: float
    auc: float
    precision20: float
    success: FloatArray
    precision: FloatArray


def rotated_overlap(predicted: FloatArray, true: FloatArray) -> Overlap:
    """Overlap of a run's rotated boxes; all frames but the first are scored.

    Args:
        predicted: ``(N, 5)`` rotated boxes.
        true: ``(N, 5)``, NaN where there is no object.
    """
    centres = predicted[:, :2], true[:, :2]
    return _overlap(rotated_iou, predicted, true, *centres)


def axis_aligned_overlap(predicted: FloatArray, true: FloatArray) -> Overlap:
    """Overlap of a run's axis-aligned bounds; all frames but the first are scored.

    Args:
        predicted: ``(N, 4)``: left, top, right, bottom in pixels.
        true: ``(N, 4)``, NaN where there is no object.
    """
    centres = [(limits[:, :2] + limits[:, 2:]) / 2 for limits in (predicted, true)]
    return _overlap(bounds_iou, predicted, true, *centres)


def success_curve(iou: FloatArray) -> FloatArray:
    """Share of the scored frames with an IoU strictly above each of 21 thresholds, ``(21,)``."""
    return np.asarray((_scored(iou)[:, None] > THRESHOLDS).mean(axis=0))


def success_rate(iou: FloatArray, threshold: float) -> float:
    """Share of the scored frames with an IoU strictly above ``threshold``."""
    return float((_scored(iou) > threshold).mean())


def precision_curve(centre_error: FloatArray) -> FloatArray:
    """Share of the scored frames with a centre error of at most 0, 1 … 50 pixels, ``(51,)``."""
    return np.asarray((_scored(centre_error)[:, None] <= PIXELS).mean(axis=0))


def score(overlap: Overlap) -> Scores:
    """All metrics of one run.

    Raises:
        ValueError: if no frame is scored.
    """
    success, precision = success_curve(overlap.iou), precision_curve(overlap.centre_error)
    return Scores(
        ao=float(_scored(overlap.iou).mean()),
        sr50=success_rate(overlap.iou, 0.5),
        sr75=success_rate(overlap.iou, 0.75),
        auc=float(success.mean()),
        precision20=float(precision[PRECISION_PIXELS]),
        success=success,
        precision=precision,
    )


def coverage(distances: FloatArray) -> dict[str, float]:
    """Share of the frames in which the true motion lies in the Gaussian's region of each of :data:`LEVELS`.

    Args:
        distances: ``(N,)`` squared Mahalanobis distances of true motions, N ≥ 1; χ² with five degrees of
            freedom if the Gaussians are right, and the shares are then the levels.

    Returns:
        Shares by level: "50", "90", "99".
    """
    halves = torch.from_numpy(distances) / 2
    probabilities = torch.special.gammainc(torch.full_like(halves, 5 / 2), halves)
    return {str(level): float((probabilities <= level / 100).double().mean()) for level in LEVELS}


def average(scores: Sequence[Scores]) -> Scores:
    """The mean of each metric and curve: over the runs of a sequence, then over sequences."""
    return Scores(
        ao=float(np.mean([s.ao for s in scores])),
        sr50=float(np.mean([s.sr50 for s in scores])),
        sr75=float(np.mean([s.sr75 for s in scores])),
        auc=float(np.mean([s.auc for s in scores])),
        precision20=float(np.mean([s.precision20 for s in scores])),
        success=np.mean([s.success for s in scores], axis=0),
        precision=np.mean([s.precision for s in scores], axis=0),
    )


def _overlap(
    compare: Callable[[FloatArray, FloatArray], FloatArray],
    predicted: FloatArray,
    true: FloatArray,
    predicted_centre: FloatArray,
    true_centre: FloatArray,
) -> Overlap:
    scored = np.isfinite(true).all(axis=-1) & (np.arange(len(true)) > 0)
    lost = ~np.isfinite(predicted).all(axis=-1)
    distance = np.linalg.norm(predicted_centre - true_centre, axis=-1)
    iou = np.where(lost, 0.0, compare(predicted, true))
    centre_error = np.where(lost, np.inf, distance)
    return Overlap(np.where(scored, iou, np.nan), np.where(scored, centre_error, np.nan))


def _scored(values: FloatArray) -> FloatArray:
    scored: FloatArray = values[~np.isnan(values)]
    if not scored.size:
        raise ValueError("no frame is scored: there is no object after the first frame")
    return scored
