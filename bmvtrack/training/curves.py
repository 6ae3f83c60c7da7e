"""Training curves from TensorBoard logs, in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bmvtrack.arrays import FloatArray
from bmvtrack.errors import UserError
from bmvtrack.figures import line_style, save_figure, tidy

Curve = tuple[FloatArray, FloatArray]
"""Steps and values."""
LOSSES: dict[str, tuple[str, ...]] = {
    "total loss": ("train/total",),
    "construction loss": ("train/cross_entropy", "train/jaccard"),
    "KL divergence": ("train/kl",),
}
"""The panels of the paper's Figures 11 and 12: title → tags whose sum is plotted."""
_WINDOW = 0.02  # window of the running mean, as a fraction of the curve
_LONG = 100  # points from which on a curve gets a running mean


def read_scalars(folder: Path) -> dict[str, Curve]:
    """All scalars logged below a folder: tag → steps and values, ordered by step.

    Raises:
        UserError: if there are no logs.
    """
    collected: dict[str, dict[int, float]] = {}
    logs = sorted({path.parent for path in folder.rglob("events.out.tfevents.*")})
    if not logs:
        raise UserError(f"no TensorBoard logs below {folder}")
    for log in logs:
        events = EventAccumulator(str(log), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            steps = collected.setdefault(tag, {})
            steps.update({event.step: event.value for event in events.Scalars(tag)})
    return {
        tag: (np.array(sorted(steps), dtype=float), np.array([steps[s] for s in sorted(steps)]))
        for tag, steps in collected.items()
    }


def plot_curves(scalars: Mapping[str, Curve], tags: Sequence[str], path: Path) -> None:
    """Write a PNG with one panel per tag, side by side; panels of tags that were not logged stay empty."""
    plot_runs({"": scalars}, {tag: (tag,) for tag in tags}, path)


def plot_runs(
    runs: Mapping[str, Mapping[str, Curve]],
    panels: Mapping[str, Sequence[str]],
    path: Path,
    logarithmic: bool = False,
) -> None:
    """Write a PNG of the curves of one or more runs, with the panels side by side.

    A long curve is drawn pale, with its running mean over 2 % of its length in front.

    Args:
        runs: name in the legend → scalars, as returned by :func:`read_scalars`.
        panels: title → tags whose sum is plotted; a panel that no run has logged stays empty.
        path: PNG to write.
        logarithmic: use logarithmic value axes; values that are not positive are left out.
    """
    figure = Figure(figsize=(3.2 * len(panels), 2.6), layout="constrained")
    for axes, (title, tags) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        curves = {name: _sum(scalars, tags) for name, scalars in runs.items()}
        for number, (name, curve) in enumerate(curves.items()):
            if curve is not None:
                _draw(axes, curve, number, name)
        if not any(curves.values()):
            axes.text(0.5, 0.5, "nothing logged", ha="center", transform=axes.transAxes)
        elif logarithmic:
            axes.set_yscale("log", nonpositive="mask")
        axes.set(title=title, xlabel="step")
        tidy(axes)
    if len(runs) > 1:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)


def check_logged(
    runs: Mapping[str, Mapping[str, Curve]], panels: Mapping[str, Sequence[str]]
) -> None:
    """Check that at least one panel of :func:`plot_runs` would not be empty.

    Raises:
        UserError: if all would be empty; it names the runs.
    """
    found = [_sum(scalars, tags) for scalars in runs.values() for tags in panels.values()]
    if all(curve is None for curve in found):
        raise UserError(
            f"{', '.join(runs)}: no logs of {', '.join(panels)} there; the run is too short or of "
            "another kind"
        )


def _sum(scalars: Mapping[str, Curve], tags: Sequence[str]) -> Curve | None:
    """The sum of several curves at the steps that all of them have; None if one was not logged.

    A run that was killed, or is still running, may have logged only some of the curves at its last step.
    """
    if any(tag not in scalars for tag in tags):
        return None
    curves = [scalars[tag] for tag in tags]
    common = reduce(np.intersect1d, [steps for steps, _ in curves])
    if not len(common):
        return None
    return common, np.sum([values[np.isin(steps, common)] for steps, values in curves], axis=0)


def _draw(axes: Axes, curve: Curve, number: int, name: str) -> None:
    steps, values = curve
    colour, dashes = line_style(number)
    if len(values) >= _LONG:
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
        width = max(2, round(_WINDOW * len(values)))
        values = np.convolve(values, np.full(width, 1 / width), mode="valid")
        steps = np.convolve(steps, np.full(width, 1 / width), mode="valid")
    marker = "o" if len(values) == 1 else None  # a single point makes no line
    axes.plot(
        steps, values, color=colour, linestyle=dashes, linewidth=1.2, marker=marker, label=name
    )
