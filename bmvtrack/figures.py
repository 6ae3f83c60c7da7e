"""The common style of all plots: readable in print, in greyscale and by colour-blind readers."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bmvtrack.errors import UserError
from bmvtrack.files import atomic_file

# Okabe and Ito's colours, distinct for colour-blind readers; dashes distinguish them in greyscale.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_DASHES = ("-", "--", "-.", ":")


def line_style(index: int) -> tuple[str, str]:
    """Colour and dashes of the line with this index; no two of the first 32 lines are alike."""
    colour, again = index % len(_COLOURS), index // len(_COLOURS)
    return _COLOURS[colour], _DASHES[(index + again) % len(_DASHES)]


def tidy(axes: Axes) -> None:
    """Draw a pale grid, and remove the top and right spines."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def check_picture(out: Path) -> None:
    """Reject a file to write a plot to that is not named as a PNG.

    Raises:
        UserError: if the name does not end in ``.png``.
    """
    if out.suffix != ".png":
        raise UserError(f"--out {out}: the name must end in .png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
