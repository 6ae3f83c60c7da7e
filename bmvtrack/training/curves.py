"""Training curves from TensorBoard logs, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bmvtrack.arrays import FloatArray
from bmvtrack.errors import UserError
from bmvtrack.files import whole_file


def read_scalars(folder: Path) -> dict[str, tuple[FloatArray, FloatArray]]:
    """All scalars logged below a folder: tag → steps and values, in order of steps.

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


def plot_curves(
    scalars: dict[str, tuple[FloatArray, FloatArray]], tags: Sequence[str], path: Path
) -> None:
    """Write one panel a tag, side by side, as PNG; a tag that was not logged has an empty panel."""
    figure = Figure(figsize=(3.2 * len(tags), 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, tag in zip(np.atleast_1d(figure.subplots(1, len(tags))), tags, strict=True):
        if tag in scalars:
            axes.plot(*scalars[tag], color="#0072B2", linewidth=1.2)
        else:
            axes.text(0.5, 0.5, "nothing logged", ha="center", transform=axes.transAxes)
        axes.set(title=tag, xlabel="step")
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
