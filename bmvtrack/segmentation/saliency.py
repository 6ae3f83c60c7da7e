"""Metrics of saliency maps in 256 grey levels: MAE and F with β² = 0.3.

F = (1 + β²)PR/(β²P + R) of the map's pixels that reach a threshold; 0 where P and R are 0. The definitions
follow Achanta et al., "Frequency-tuned Salient Region Detection", CVPR 2009, and the common evaluation
tools: curves over 256 thresholds are first averaged over images, then their maximum and mean are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmvtrack.arrays import BoolArray, ByteArray, FloatArray

BETA_SQUARED = 0.3
LEVELS = 256


@dataclass(frozen=True, eq=False)
class SaliencyScores:
    """The metrics of one map, or their averages over maps.

    Args:
        mae: mean absolute error of the map.
        adaptive_f: F at the map's own threshold, min(2·mean, 1).
        f: ``(256,)`` F at the thresholds 0, 1/255 … 1.
        precision: ``(256,)`` precision at these thresholds.
        recall: ``(256,)`` recall at these thresholds.
    """

    mae: float
    adaptive_f: float
    f: FloatArray
    precision: FloatArray
    recall: FloatArray

    @property
    def max_f(self) -> float:
        """F at the best threshold; averaged maps share one threshold."""
        return float(self.f.max())

    @property
    def mean_f(self) -> float:
        """Mean F over the thresholds."""
        return float(self.f.mean())


def normalized(probabilities: FloatArray) -> ByteArray:
    """A map in [0, 1] as grey levels: min-max normalised, then rounded to 0 … 255.

    A constant map is not normalised, only rounded.
    """
    low, high = probabilities.min(), probabilities.max()
    if high > low:
        probabilities = (probabilities - low) / (high - low)
    return np.round(255 * probabilities).astype(np.uint8)


def score(levels: ByteArray, true: BoolArray) -> SaliencyScores:
    """All metrics of one map, which is not normalised here (see :func:`normalized`).

    Args:
        levels: ``(H, W)`` grey levels.
        true: ``(H, W)`` true mask.

    Raises:
        ValueError: if no pixel is salient, as the recall is then undefined.
    """
    if not true.any():
        raise ValueError("the true mask is empty: there is nothing salient to recall")
    salient = _at_least(levels[true])
    positive = _at_least(levels)
    precision = salient / np.maximum(positive, 1)
    recall = salient / salient[0]
    f = _f_measure(precision, recall)
    threshold = min(2 * levels.mean(), 255)  # in grey levels
    error = np.abs(levels / 255 - true).mean()
    return SaliencyScores(float(error), float(f[int(np.ceil(threshold))]), f, precision, recall)


def average(scores: Sequence[SaliencyScores]) -> SaliencyScores:
    """The mean over images of each metric and curve."""
    return SaliencyScores(
        mae=float(np.mean([s.mae for s in scores])),
        adaptive_f=float(np.mean([s.adaptive_f for s in scores])),
        f=np.mean([s.f for s in scores], axis=0),
        precision=np.mean([s.precision for s in scores], axis=0),
        recall=np.mean([s.recall for s in scores], axis=0),
    )


def _at_least(levels: ByteArray) -> FloatArray:
    """Number of pixels at or above each level, ``(256,)``."""
    counts = np.bincount(levels.ravel(), minlength=LEVELS)
    return np.asarray(counts[::-1].cumsum()[::-1], dtype=np.float64)


def _f_measure(precision: FloatArray, recall: FloatArray) -> FloatArray:
    below = BETA_SQUARED * precision + recall
    above = (1 + BETA_SQUARED) * precision * recall
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)
