"""Corner plots of Gaussians over the motion: each parameter alone, and each pair of parameters.

A Gaussian is drawn exactly, from its mean and covariance rather than from samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bmvtrack.arrays import FloatArray
from bmvtrack.figures import line_style, save_figure, tidy
from bmvtrack.motion import PARAMETERS
from bmvtrack.prior import MotionPrior

PROBABILITY = 0.95
"""Probability that a pair of parameters lies inside its ellipse."""
# The sum of squares of two standard normal variables is exponentially distributed with mean 2.
_RADIUS = math.sqrt(-2 * math.log(1 - PROBABILITY))
_REACH = 3.0  # standard deviations that the axes show on both sides of each mean


def plot_corner(
    gaussians: Mapping[str, MotionPrior],
    path: Path,
    samples: Mapping[str, FloatArray] | None = None,
) -> None:
    """Write a corner plot of priors and posteriors as PNG.

    The diagonal shows the density of each parameter relative to its maximum; below it are the ellipses of
    95 % probability for each pair. The axes show all Gaussians to three standard deviations; samples
    beyond that are not visible.

    Args:
        gaussians: name in the legend → Gaussian, at least one, all in the same coordinates.
        path: of the PNG file.
        samples: name of a Gaussian → ``(N, 5)`` motions, drawn as points in its colour, and on the
            diagonal as a histogram with the same area as its density.

    Raises:
        ValueError: if there is no Gaussian, if their coordinates differ, or if samples are given for
            a name without a Gaussian.
    """
    samples = samples or {}
    if len({gaussian.coordinates for gaussian in gaussians.values()}) != 1:
        raise ValueError("a corner plot needs one or more Gaussians, all in the same coordinates")
    if unknown := set(samples) - set(gaussians):
        raise ValueError(f"there are samples but no Gaussian with the names {sorted(unknown)}")
    limits = _limits(gaussians)
    figure = Figure(figsize=(7.2, 7.2), layout="constrained")
    grid = figure.subplots(5, 5)
    for row in range(5):
        for column in range(5):
            axes = grid[row, column]
            if column > row:
                axes.set_axis_off()
                continue
            for number, (name, gaussian) in enumerate(gaussians.items()):
                points = samples.get(name)
                if row == column:
                    _draw_density(axes, gaussian, row, number, limits[row], points)
                else:
                    _draw_pair(axes, gaussian, (column, row), number, points)
            _finish(axes, row, column, limits)
    figure.align_labels()
    lines = grid[0, 0].lines
    figure.legend(lines, list(gaussians), loc="upper right", frameon=False, fontsize=9)
    save_figure(figure, path)


def _limits(gaussians: Mapping[str, MotionPrior]) -> FloatArray:
    """Limits of the axes: lowest and highest value of each parameter, ``(5, 2)``."""
    reach = [(g.mean, _REACH * g.standard_deviations) for g in gaussians.values()]
    low = np.min([mean - spread for mean, spread in reach], axis=0)
    high = np.max([mean + spread for mean, spread in reach], axis=0)
    return np.stack([low, high], axis=1)


def _draw_density(
    axes: Axes,
    gaussian: MotionPrior,
    index: int,
    number: int,
    limits: FloatArray,
    points: FloatArray | None,
) -> None:
    mean, deviation = gaussian.mean[index], gaussian.standard_deviations[index]
    colour, dashes = line_style(number)
    around = np.linspace(-_REACH - 1, _REACH + 1, 201)  # in standard deviations: never too coarse
    density = np.exp(-0.5 * around**2)
    axes.plot(mean + deviation * around, density, dashes, color=colour, linewidth=1.2)
    if points is not None:
        edges = np.linspace(limits[0], limits[1], 41)
        counts = np.histogram(points[:, index], edges)[0]
        area = math.sqrt(2 * math.pi) * deviation / (len(points) * (edges[1] - edges[0]))
        axes.stairs(counts * area, edges, fill=True, color=colour, alpha=0.25, linewidth=0)


def _draw_pair(
    axes: Axes,
    gaussian: MotionPrior,
    pair: tuple[int, int],
    number: int,
    points: FloatArray | None,
) -> None:
    colour, dashes = line_style(number)
    if points is not None:
        axes.plot(*points[:, pair].T, ".", color=colour, markersize=2.5, alpha=0.5, mew=0)
    angles = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angles), np.sin(angles)])  # (2, 181)
    factor = np.linalg.cholesky(gaussian.covariance[np.ix_(pair, pair)])
    ellipse = gaussian.mean[list(pair), None] + _RADIUS * factor @ circle
    axes.plot(*ellipse, dashes, color=colour, linewidth=1.2)


def _finish(axes: Axes, row: int, column: int, limits: FloatArray) -> None:
    tidy(axes)
    axes.locator_params(nbins=3)
    axes.tick_params(labelsize=7)
    axes.set_xlim(*limits[column])
    if row == column:
        axes.set(yticks=(), ylim=(0, None))
        axes.spines["left"].set_visible(False)
    else:
        axes.set_ylim(*limits[row])
        axes.tick_params(labelleft=column == 0)
    if column == 0 and row > 0:
        axes.set_ylabel(PARAMETERS[row])
    axes.tick_params(labelbottom=row == 4)
    if row == 4:
        axes.set_xlabel(PARAMETERS[column])
