"""The output of an evaluation of saliency maps: ``summary.json``, a table, CSV files and a plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypedDict, get_args

from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table

from bmvtrack.figures import line_style, save_figure, tidy
from bmvtrack.files import begun, csv_text, is_plain_name, write_summary, write_text
from bmvtrack.segmentation.saliency import SaliencyScores, average

Results = Mapping[str, Mapping[str, SaliencyScores]]
"""The scores by protocol and image."""

Metric = Literal["mae", "adaptive_f", "max_f", "mean_f"]
"""Fields of :class:`~bmvtrack.segmentation.saliency.SaliencyScores`."""
_METRICS: tuple[Metric, ...] = get_args(Metric)


class ProtocolSummary(TypedDict):
    """The metrics of one protocol; precision and recall at the thresholds 0, 1/255 … 1."""

    mae: float
    adaptive_f: float
    max_f: float
    mean_f: float
    precision: list[float]
    recall: list[float]


class Summary(TypedDict):
    """The content of ``summary.json``: images is their number, seed that of the draws."""

    dataset: str
    weights: str
    draws: int
    seed: int
    images: int
    protocols: dict[str, ProtocolSummary]


def build_summary(dataset: str, weights: str, draws: int, seed: int, results: Results) -> Summary:
    """The content of ``summary.json``."""
    return {
        "dataset": dataset,
        "weights": weights,
        "draws": draws,
        "seed": seed,
        "images": len(next(iter(results.values()))),
        "protocols": {name: _summary_of(scores) for name, scores in results.items()},
    }


def write_report(folder: Path, summary: Summary, results: Results) -> None:
    """Write ``results/PROTOCOL.csv``, ``precision_recall.png`` and ``summary.json``, each atomically."""
    for protocol, scores in results.items():
        write_text(folder / "results" / f"{protocol}.csv", images_csv(scores))
    _write_plot(folder / "precision_recall.png", summary)
    write_summary(folder, summary)


def remove_previous(folder: Path) -> None:
    """Remove the maps and results that a folder's summary lists, and then the summary.

    Of an evaluation that was interrupted, the maps are removed. They would mix with those of other weights or
    data. Files that are not listed are left alone.
    """
    for protocol, images in begun(folder, "protocols").items():
        for image in images:
            (folder / protocol / f"{image}.png").unlink(missing_ok=True)
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        protocols = [name for name, values in summary["protocols"].items() if "mae" in values]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # missing, or of another kind
    if not protocols:
        return
    for protocol in filter(is_plain_name, protocols):
        table = folder / "results" / f"{protocol}.csv"
        with suppress(OSError, ValueError, csv.Error):
            with table.open(encoding="utf-8", newline="") as file:
                images = [row[0] for row in csv.reader(file) if row][1:]
            for image in filter(is_plain_name, images):
                (folder / protocol / f"{image}.png").unlink(missing_ok=True)
            table.unlink()
    path.unlink()


def images_csv(scores: Mapping[str, SaliencyScores]) -> str:
    """One line per image; max F and mean F are those of the image's own curve."""
    rows = [["image", *_METRICS]]
    for name, part in scores.items():
        rows.append([name, *(f"{getattr(part, metric):.6f}" for metric in _METRICS)])
    return csv_text(rows)


def summary_table(summary: Summary) -> Table:
    """One row per protocol: the metrics of the paper's Table 5."""
    title = f"{summary['dataset']}, {summary['images']} images, {summary['weights']}"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD)
    table.add_column("protocol", no_wrap=True)
    for heading in ("MAE", "adaptive F", "max F", "mean F"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, protocol in summary["protocols"].items():
        table.add_row(name, *(f"{protocol[metric]:.3f}" for metric in _METRICS))
    return table


def _summary_of(scores: Mapping[str, SaliencyScores]) -> ProtocolSummary:
    mean = average(list(scores.values()))
    return {
        "mae": mean.mae,
        "adaptive_f": mean.adaptive_f,
        "max_f": mean.max_f,
        "mean_f": mean.mean_f,
        "precision": mean.precision.tolist(),
        "recall": mean.recall.tolist(),
    }


def _write_plot(path: Path, summary: Summary) -> None:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for i, (name, protocol) in enumerate(summary["protocols"].items()):
        colour, dashes = line_style(i)
        label = f"{name}, max F {protocol['max_f']:.3f}"
        axes.plot(protocol["recall"], protocol["precision"], dashes, color=colour, label=label)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    axes.set_title(f"{summary['dataset']}, {summary['weights']}", fontsize="medium")
    tidy(axes)
    axes.legend(loc="lower left", frameon=False, fontsize="small")
    save_figure(figure, path)
