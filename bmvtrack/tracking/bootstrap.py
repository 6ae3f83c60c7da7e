"""Confidence intervals by bootstrap over sequences and the runs within them.

There are few sequences, and a tracker's success on one is chaotic, so resampling frames would give far too
narrow intervals. Sequences are drawn with replacement, and so are the runs of each drawn sequence; an
interval thus covers the spread between sequences and that between starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmvtrack.arrays import FloatArray

RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Args:
        mean: mean over runs, then over sequences.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
    """

    mean: float
    low: float
    high: float


def bootstrap_mean(scores: Sequence[FloatArray], seed: int = 0) -> Estimate:
    """The mean over runs, then sequences, and its 95 % percentile interval.

    Args:
        scores: one array per sequence, with one value per run; lengths may differ, none is empty.
        seed: seed of the resampling.

    Raises:
        ValueError: if there is no sequence, or one has no runs.
    """
    if not scores or any(not len(runs) for runs in scores):
        raise ValueError("a bootstrap needs at least one sequence and a run in each")
    lengths = np.array([len(runs) for runs in scores])
    padded = np.zeros((len(scores), lengths.max()))
    for row, runs in zip(padded, scores, strict=True):
        row[: len(runs)] = runs
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(scores), size=(RESAMPLES, len(scores)))
    count = lengths[drawn][..., None]
    # (resample, sequence, run)
    picked = generator.integers(count, size=(*drawn.shape, lengths.max()))
    counted = np.arange(lengths.max()) < count
    means = (padded[drawn[..., None], picked] * counted).sum(axis=-1) / count[..., 0]
    mean = float(np.mean([np.mean(runs) for runs in scores]))
    return percentile_interval(mean, means.mean(axis=-1))


def percentile_interval(mean: float, resampled: FloatArray) -> Estimate:
    """A mean and the 95 % percentile interval of the means ``(RESAMPLES,)`` of its resamples."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))


def paired_difference(
    first: Sequence[FloatArray], second: Sequence[FloatArray], seed: int = 0
) -> Estimate:
    """How much higher the first method scores than the second on the same runs, with its 95 % interval.

    Differences are taken run by run, so that the difficulty of a run cancels out.

    Args:
        first: one array per sequence, with one value per run.
        second: arrays of the same shapes, in the same order.
        seed: seed of the resampling.

    Raises:
        ValueError: if the two were not scored on the same runs.
    """
    if [len(runs) for runs in first] != [len(runs) for runs in second]:
        raise ValueError("a paired difference needs scores of both methods on the same runs")
    differences = [np.subtract(a, b) for a, b in zip(first, second, strict=True)]
    return bootstrap_mean(differences, seed)
