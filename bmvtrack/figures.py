"""One style for the plots: readable in print, for the colour-blind, and in grey."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bmvtrack.files import atomic_file

# Okabe and Ito's colours, distinct for colour-blind readers; dashes tell them apart in grey print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_DASHES = ("-", "--", "-.", ":")


def line_style(index: int) -> tuple[str, str]:
    """Colour and dashes of the line of that number; no two of the first 32 lines are alike."""
    colour, again = index % len(_COLOURS), index // len(_COLOURS)
    return _COLOURS[colour], _DASHES[(index + again) % len(_DASHES)]


def tidy(axes: Axes) -> None:
    """A pale grid, and no frame at the top and the right."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    FigureCanvasAgg(figure)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
