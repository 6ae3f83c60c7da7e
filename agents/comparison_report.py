"""What a comparison of ways to learn shows: curves with bands, and a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from agents.comparison import METHODS, UNTRAINED, Curve
from bmvtrack.arrays import FloatArray
from bmvtrack.figures import line_style, save_figure, tidy
from bmvtrack.files import whole_file
from bmvtrack.tracking.bootstrap import Estimate, bootstrap_mean, paired_difference

COLUMNS = ("method", "seeds", "AO", "against the untrained prior", "reaches plain SAC, frame, at")
_YARDSTICK = "plain SAC, frame"


def plot_curves(curves: Sequence[Curve], path: Path) -> None:
    """Mean IoU on the test clips over steps: mean over seeds, 95 % bands over clips and seeds.

    Args:
        curves: of one budget.
        path: PNG to write.
    """
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, (method, runs) in enumerate(_by_method(curves).items()):
        colour, dashes = line_style(i)
        steps = runs[0].steps
        estimates = [bootstrap_mean(_scores(runs, k)) for k in range(len(steps))]
        mean = [estimate.mean for estimate in estimates]
        axes.plot(steps, mean, color=colour, linestyle=dashes, label=f"{method}  {mean[-1]:.3f}")
        low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    untrained = _untrained(curves)
    if untrained is not None:
        mean_of_it = bootstrap_mean(untrained).mean
        label = f"{UNTRAINED}  {mean_of_it:.3f}"
        axes.axhline(mean_of_it, color="0.4", linewidth=0.8, linestyle=":", label=label)
    axes.set(xlabel="environment steps", ylabel="rotated AO on the test clips")
    tidy(axes)
    axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize="small")
    save_figure(figure, path)


def rows(curves: Sequence[Curve], path: Path) -> list[tuple[str, ...]]:
    """One row a method, as in :data:`COLUMNS`, with 95 % intervals; also written as CSV.

    Args:
        curves: of one budget.
        path: CSV to write.
    """
    methods = _by_method(curves)
    untrained = _untrained(curves)
    goal = None
    if _YARDSTICK in methods:
        goal = bootstrap_mean(_scores(methods[_YARDSTICK], -1)).mean
    result: list[tuple[str, ...]] = []
    if untrained is not None:
        result.append((UNTRAINED, "", _shown(bootstrap_mean(untrained)), "", ""))
    for method, runs in methods.items():
        scores = _scores(runs, -1)
        gain = "" if untrained is None else _shown(_against(scores, untrained), signed=True)
        reached = "" if goal is None else _reached(runs, goal)
        result.append((method, str(len(runs)), _shown(bootstrap_mean(scores)), gain, reached))
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(result)
    return result


def _by_method(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    found = {method: [c for c in curves if c.method == method] for method in METHODS}
    return {method: runs for method, runs in found.items() if runs}


def _scores(runs: Sequence[Curve], k: int) -> list[FloatArray]:
    """Of the k-th evaluation: one array a clip, with a number a seed; clips without score left out."""
    scores = np.stack([run.overlaps[k] for run in runs], axis=1)  # (clips, seeds)
    return [row for row in scores if np.isfinite(row).all()]


def _untrained(curves: Sequence[Curve]) -> list[FloatArray] | None:
    """The latent prior before its first step: the same for every seed."""
    runs = [curve for curve in curves if curve.method == "latent prior"]
    return _scores(runs[:1], 0) if runs else None


def _against(scores: list[FloatArray], untrained: list[FloatArray]) -> Estimate:
    expanded = [np.repeat(row, len(scores[0])) for row in untrained]
    return paired_difference(scores, expanded)


def _reached(runs: list[Curve], goal: float) -> str:
    for k, step in enumerate(runs[0].steps):
        if bootstrap_mean(_scores(runs, k)).mean >= goal:
            return f"{step:,}"
    return "never"


def _shown(estimate: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{estimate.mean:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
