"""The output of a comparison of training methods: curves with bands, and a table.

The 95 % intervals are bootstrapped over sequences and seeds, which are resampled independently: a good seed
is good on all sequences, and a hard sequence is hard for all seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from agents.comparison import METHODS, UNTRAINED, Curve
from bmvtrack.arrays import FloatArray
from bmvtrack.figures import line_style, save_figure, tidy
from bmvtrack.files import csv_text, write_text
from bmvtrack.tracking.bootstrap import RESAMPLES, Estimate, percentile_interval

COLUMNS = (
    "method",
    "seeds",
    "AO",
    "against the untrained prior",
    "against the latent prior",
    "reaches plain SAC, frame, at",
)
_OURS, _YARDSTICK = "latent prior", "plain SAC, frame"


def crossed_bootstrap(scores: FloatArray) -> Estimate:
    """The mean and its 95 % percentile interval, with sequences and seeds drawn with replacement.

    Args:
        scores: ``(sequences, seeds)``.

    Raises:
        ValueError: if there are no scores.
    """
    if not scores.size:
        raise ValueError("a bootstrap needs at least one sequence and one seed")
    generator = np.random.default_rng(0)
    rows, columns = (generator.integers(count, size=(RESAMPLES, count)) for count in scores.shape)
    means = scores[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    return percentile_interval(float(scores.mean()), means)


def plot_curves(curves: Sequence[Curve], path: Path) -> None:
    """Plot the mean IoU on the test clips over steps: the mean over seeds, with 95 % bands.

    Args:
        curves: curves of the same budget.
        path: PNG to write.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (method, runs) in enumerate(_by_method(curves).items()):
        colour, dashes = line_style(i)
        steps = runs[0].steps
        estimates = [crossed_bootstrap(_scores(runs, k)) for k in range(len(steps))]
        mean = [estimate.mean for estimate in estimates]
        label = f"{method}  {mean[-1]:.3f}"
        axes.plot(steps, mean, "o", color=colour, linestyle=dashes, markersize=3, label=label)
        low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    untrained = _untrained(curves)
    if untrained is not None:
        mean_of_it = crossed_bootstrap(untrained).mean
        label = f"{UNTRAINED}  {mean_of_it:.3f}"
        axes.axhline(mean_of_it, color="0.4", linewidth=0.8, label=label)
    axes.set(xlabel="environment steps", ylabel="rotated AO on the test clips")
    tidy(axes)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    save_figure(figure, path)


def rows(curves: Sequence[Curve], path: Path) -> list[tuple[str, ...]]:
    """One row per method, with the columns :data:`COLUMNS` and 95 % intervals; also written as CSV.

    Args:
        curves: curves of the same budget.
        path: CSV to write.
    """
    methods = _by_method(curves)
    untrained = _untrained(curves)
    goal = None
    if _YARDSTICK in methods:
        goal = crossed_bootstrap(_scores(methods[_YARDSTICK], -1)).mean
    result: list[tuple[str, ...]] = []
    if untrained is not None:
        result.append((UNTRAINED, "", _shown(crossed_bootstrap(untrained)), "", "", ""))
    for method, runs in methods.items():
        scores = _scores(runs, -1)
        gain = "" if untrained is None else _difference(scores, untrained)
        behind = _against_ours(runs, methods.get(_OURS, []))
        reached = "" if goal is None else _reached(runs, goal)
        score = _shown(crossed_bootstrap(scores))
        result.append((method, str(len(runs)), score, gain, behind, reached))
    write_text(path, csv_text([COLUMNS, *result]))
    return result


def _by_method(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    found = {method: [c for c in curves if c.method == method] for method in METHODS}
    return {method: runs for method, runs in found.items() if runs}


def _scores(runs: Sequence[Curve], k: int) -> FloatArray:
    """Scores of the k-th evaluation, ``(sequences, seeds)``: means over clips, without unscored ones."""
    overlaps = np.stack([run.overlaps[k] for run in runs], axis=1)  # (clips, seeds)
    scored = np.isfinite(overlaps).all(axis=1)
    names = np.array(runs[0].sequences)
    return np.array(
        [overlaps[scored & (names == name)].mean(axis=0) for name in dict.fromkeys(names[scored])]
    )


def _untrained(curves: Sequence[Curve]) -> FloatArray | None:
    """Scores of the latent prior before its first step, ``(sequences, 1)``: the same for every seed."""
    runs = [curve for curve in curves if curve.method == _OURS]
    return _scores(runs[:1], 0) if runs else None


def _against_ours(runs: Sequence[Curve], ours: Sequence[Curve]) -> str:
    """The difference from the latent prior on the seeds that both have; empty if there are none."""
    common = {run.seed for run in runs} & {run.seed for run in ours}
    if runs is ours or not common:
        return ""
    scores, others = (_scores([r for r in each if r.seed in common], -1) for each in (runs, ours))
    return _difference(scores, others)


def _difference(scores: FloatArray, others: FloatArray) -> str:
    """The difference of scores on the same sequences, paired by seed if there are several."""
    return _shown(crossed_bootstrap(scores - others), signed=True)


def _reached(runs: list[Curve], goal: float) -> str:
    for k, step in enumerate(runs[0].steps):
        if crossed_bootstrap(_scores(runs, k)).mean >= goal:
            return f"{step:,}"
    return "never"


def _shown(estimate: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{estimate.mean:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
