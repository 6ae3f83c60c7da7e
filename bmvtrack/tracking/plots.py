"""Success and precision plots as PNG files, in the style of tracking papers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bmvtrack.arrays import FloatArray
from bmvtrack.figures import line_style, save_figure, tidy
from bmvtrack.tracking.metrics import GEOMETRIES, PIXELS, PRECISION_PIXELS, THRESHOLDS, Scores
from bmvtrack.tracking.report import Results, overall

Curve = Callable[[Scores], tuple[FloatArray, float]]  # a curve and its number in the legend


def write_plots(folder: Path, results: Results) -> None:
    """Write ``success.png`` and ``precision.png``, axis-aligned and rotated side by side."""
    figure = _figure(results, THRESHOLDS, lambda s: (s.success, s.auc), "overlap threshold")
    _save(figure, "success rate", folder / "success.png")
    figure = _figure(
        results, PIXELS, lambda s: (s.precision, s.precision20), "centre error threshold (pixels)"
    )
    for axes in figure.axes:
        axes.axvline(PRECISION_PIXELS, color="0.7", linewidth=0.8, zorder=0)
    _save(figure, "precision", folder / "precision.png")


def _figure(results: Results, x: FloatArray, curve: Curve, label: str) -> Figure:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    styles = {name: line_style(i) for i, name in enumerate(results)}
    for axes, geometry in zip(figure.subplots(1, 2, sharey=True), GEOMETRIES, strict=True):
        curves = {name: curve(overall(runs, geometry)) for name, runs in results.items()}
        for name, (y, number) in sorted(curves.items(), key=lambda item: -item[1][1]):
            colour, dashes = styles[name]
            axes.plot(x, y, color=colour, linestyle=dashes, label=f"{name}  {number:.3f}")
        _style(axes, x, label)
        axes.set_title(geometry.replace("_", "-"))
    return figure


def _style(axes: Axes, x: FloatArray, label: str) -> None:
    axes.set(xlabel=label, xlim=(x[0], x[-1]), ylim=(0, 1.01))
    tidy(axes)
    axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize="small")


def _save(figure: Figure, label: str, path: Path) -> None:
    figure.axes[0].set_ylabel(label)
    save_figure(figure, path)
