"""The paper's Figures 6 and 8 for any network and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bmvtrack.data.davis import read_mask
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.figures import save_figure
from bmvtrack.models import MultivariationalNetwork, foreground_probability
from bmvtrack.segmentation.evaluation import sequence_generator
from bmvtrack.segmentation.protocols import encode, stochastic
from bmvtrack.segmentation.views import view_objects

_SEQUENCES = 4  # sequences shown, evenly spread
_MASKS = 5  # masks shown of one frame, and frames of one sequence
_WIDTH, _GAP = 10.0, 0.08  # inches


def write_stochastic_masks(
    path: Path,
    network: MultivariationalNetwork,
    sequences: Sequence[VideoSequence],
    draws: int,
    seed: int,
) -> None:
    """Figure 6: a frame patch, its true mask, some of its stochastic masks, and the mean of all masks.

    Each row shows the frame of a sequence with an object nearest to its middle. A mask is everything that
    is not background. The masks are drawn anew, with the noise that the sequence's evaluation starts with.

    Args:
        path: PNG to write.
        network: network to draw from.
        sequences: sequences, four of which are shown, evenly spread.
        draws: number of draws, as for the oracle; five are shown, and the mean of all in the last column.
        seed: seed of the noise.
    """
    shown = _spread(sequences, _SEQUENCES)
    numbers = _spread(range(draws), _MASKS)
    headings = ["patch", "truth", *(f"N = {n + 1}" for n in numbers), f"share of {draws}"]
    figure, grid = _grid(len(shown), len(headings), aspect=1.0)
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize="small")
    for row, sequence in zip(grid, shown, strict=True):
        for axes, picture in zip(row, _draws(network, sequence, numbers, draws, seed), strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(sequence.name, fontsize="small")
    save_figure(figure, path)


def write_masks_along_sequences(
    path: Path, sequences: Sequence[VideoSequence], masks: Path
) -> None:
    """Figure 8: frames of a sequence from left to right, with the true and the predicted mask below.

    Args:
        path: PNG to write.
        sequences: sequences, four of which are shown, evenly spread, with five frames each.
        masks: folder of the protocol to show, with ``SEQUENCE/00000.png``.
    """
    shown = _spread(sequences, _SEQUENCES)
    width, height = shown[0].size
    figure, grid = _grid(3 * len(shown), _MASKS, aspect=height / width)
    for i, sequence in enumerate(shown):
        rows = grid[3 * i : 3 * i + 3]
        for column, t in enumerate(_spread(range(len(sequence)), _MASKS)):
            mask = read_mask(masks / sequence.name / f"{t:05d}.png")
            for row, picture in zip(rows, (sequence.frame(t), sequence.mask(t), mask), strict=True):
                row[column].imshow(picture, cmap="gray", vmin=0, vmax=1)
            rows[0][column].set_title(f"{sequence.name} {t}", fontsize="x-small", pad=2)
        for row, label in zip(rows, ("frame", "truth", "mask"), strict=True):
            row[0].set_ylabel(label, fontsize="x-small")
    save_figure(figure, path)


def _draws(
    network: MultivariationalNetwork,
    sequence: VideoSequence,
    numbers: Sequence[int],
    draws: int,
    seed: int,
) -> list[Any]:
    """The images of one row of Figure 6, with values in [0, 1]."""
    present = np.flatnonzero(sequence.present)
    t = int(present[np.abs(present - len(sequence) // 2).argmin()])
    views = view_objects(network, [sequence.frame(t)], sequence.boxes[[t]], [sequence.mask(t)])
    device = views.inputs.device
    generator = sequence_generator(sequence.name, seed, device)
    logits, _ = stochastic(network, encode(network, views), 0, draws, generator)
    masks = (foreground_probability(logits) > 0.5).float().cpu().numpy()
    return [
        views.images[0].cpu().numpy(),
        views.true[0].cpu().numpy(),
        *(masks[n] for n in numbers),
        masks.mean(axis=0),
    ]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the items, evenly spread from the first to the last."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def _grid(rows: int, columns: int, aspect: float) -> tuple[Figure, Any]:
    cell = _WIDTH / columns
    figure = Figure(
        figsize=(_WIDTH, rows * (cell * aspect + _GAP)),
        layout=ConstrainedLayoutEngine(h_pad=_GAP / 8, w_pad=_GAP / 8, hspace=0, wspace=0),
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure, grid
