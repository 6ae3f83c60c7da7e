"""The output of an evaluation of masks: ``summary.json`` (:class:`Summary`), tables, and CSV files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from bmvtrack.files import csv_text, previously_made, write_summary, write_text
from bmvtrack.segmentation.evaluation import PER_FRAME, SequenceScores
from bmvtrack.segmentation.metrics import Statistics, average

Results = Mapping[str, Sequence[SequenceScores]]
"""The scores by protocol; all protocols have the same sequences in the same order."""

Measure = Literal["J", "F"]
Statistic = Literal["mean", "recall", "decay"]
"""Fields of :class:`~bmvtrack.segmentation.metrics.Statistics`."""
_MEASURES: tuple[Measure, ...] = get_args(Measure)
_STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
_ON_THE_PATCH = ("nll", "mse", "mahalanobis")
_WHOLE_NUMBERS = ("draw", "class")


class ProtocolSummary(TypedDict):
    """The results of one protocol; all averages are over frames, then over sequences.

    Attributes:
        J: of the region.
        F: of the boundary.
        JF: mean of J and F.
        nll: negative log-likelihood of the true mask on the patch, per pixel.
        mse: mean squared error on the patch.
        per_sequence: mean J and F, and nll, mse and mahalanobis.
    """

    J: dict[Statistic, float]
    F: dict[Statistic, float]
    JF: float
    nll: float
    mse: float
    per_sequence: dict[str, dict[str, float]]


class Summary(TypedDict):
    """The content of ``summary.json``.

    Attributes:
        dataset: name of the data.
        weights: name or folder.
        draws: number of stochastic masks per frame.
        seed: of these.
        frames: number of frames, unscored ones included.
        mahalanobis: mean distance of the posterior from the prior.
        protocols: the results of each.
    """

    dataset: str
    weights: str
    draws: int
    seed: int
    frames: int
    mahalanobis: float
    protocols: dict[str, ProtocolSummary]


def build_summary(dataset: str, weights: str, draws: int, seed: int, results: Results) -> Summary:
    """The content of ``summary.json``."""
    first = next(iter(results.values()))
    return {
        "dataset": dataset,
        "weights": weights,
        "draws": draws,
        "seed": seed,
        "frames": sum(len(scores.values["J"]) for scores in first),
        "mahalanobis": _mean_of(first, "mahalanobis"),
        "protocols": {name: _summary_of(scores) for name, scores in results.items()},
    }


def write_report(folder: Path, summary: Summary, results: Results) -> None:
    """Write ``sequences.csv``, ``results/PROTOCOL/SEQUENCE.csv`` and ``summary.json``, each atomically."""
    for protocol, sequences in results.items():
        for scores in sequences:
            path = folder / "results" / protocol / f"{scores.sequence}.csv"
            write_text(path, frames_csv(scores))
    write_text(folder / "sequences.csv", sequences_csv(results))
    write_summary(folder, summary)


def remove_previous(folder: Path) -> None:
    """Remove the masks and results that a folder's summary lists, and then the summary.

    Of an evaluation that was interrupted, the masks are removed. They would mix with those of other weights
    or data. Files that are not listed are left alone.
    """
    made = previously_made(folder, "protocols")
    for protocol, sequences in made.items():
        for sequence in sequences:
            shutil.rmtree(folder / protocol / sequence, ignore_errors=True)
            (folder / "results" / protocol / f"{sequence}.csv").unlink(missing_ok=True)
    if made:
        (folder / "summary.json").unlink(missing_ok=True)


def frames_csv(scores: SequenceScores) -> str:
    """One line per frame; values that a frame does not have are empty (see :class:`SequenceScores`).

    The first and the last frame are included here, but not in the sequence's J and F.
    """
    rows: list[list[Any]] = [["frame", *PER_FRAME]]
    for t in range(len(scores.values["J"])):
        rows.append([t, *(_cell(name, scores.values[name][t]) for name in PER_FRAME)])
    return csv_text(rows)


def sequences_csv(results: Results) -> str:
    """One line per sequence and protocol."""
    measures = [f"{measure}_{name}" for measure in _MEASURES for name in _STATISTICS]
    rows = [["sequence", "protocol", *measures, *_ON_THE_PATCH]]
    for pair in zip(*results.values(), strict=True):
        for protocol, scores in zip(results, pair, strict=True):
            parts = asdict(scores.region), asdict(scores.contour)
            numbers = [part[name] for part in parts for name in _STATISTICS]
            numbers += [scores.mean(name) for name in _ON_THE_PATCH]
            rows.append([scores.sequence, protocol, *(f"{number:.6g}" for number in numbers)])
    return csv_text(rows)


def sequence_table(summary: Summary) -> Table:
    """One row per sequence: mean J and F under both protocols."""
    protocols = summary["protocols"]
    table = Table(title=escape(f"{summary['dataset']}, {summary['weights']}"), box=box.SIMPLE_HEAD)
    table.add_column("sequence", no_wrap=True)
    for name in protocols:
        table.add_column(f"{name}\nJ", justify="right", no_wrap=True)
        table.add_column("\nF", justify="right", no_wrap=True)
    for sequence in next(iter(protocols.values()))["per_sequence"]:
        scores = [protocol["per_sequence"][sequence] for protocol in protocols.values()]
        table.add_row(
            escape(sequence), *(f"{pair[measure]:.3f}" for pair in scores for measure in _MEASURES)
        )
    return table


def summary_table(summary: Summary) -> Table:
    """One row per protocol: the metrics of the paper's Tables 3 and 4."""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=f"Mahalanobis distance to the prior {summary['mahalanobis']:.3g}",
    )
    table.add_column("protocol", no_wrap=True)
    for measure in ("J&F", "J", "recall", "decay", "F", "recall", "decay", "NLL", "MSE"):
        table.add_column(measure, justify="right", no_wrap=True)
    for name, protocol in summary["protocols"].items():
        numbers = [protocol["JF"]]
        numbers += [protocol[measure][part] for measure in _MEASURES for part in _STATISTICS]
        numbers += [protocol["nll"], protocol["mse"]]
        table.add_row(name, *(f"{number:.3f}" for number in numbers))
    return table


def _summary_of(sequences: Sequence[SequenceScores]) -> ProtocolSummary:
    region = average([scores.region for scores in sequences])
    contour = average([scores.contour for scores in sequences])
    return {
        "J": _statistics_of(region),
        "F": _statistics_of(contour),
        "JF": (region.mean + contour.mean) / 2,
        "nll": _mean_of(sequences, "nll"),
        "mse": _mean_of(sequences, "mse"),
        "per_sequence": {
            scores.sequence: {
                "J": scores.region.mean,
                "F": scores.contour.mean,
                **{name: scores.mean(name) for name in _ON_THE_PATCH},
            }
            for scores in sequences
        },
    }


def _statistics_of(values: Statistics) -> dict[Statistic, float]:
    return {name: getattr(values, name) for name in _STATISTICS}


def _mean_of(sequences: Sequence[SequenceScores], name: str) -> float:
    return float(np.mean([scores.mean(name) for scores in sequences]))


def _cell(name: str, value: float) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.0f}" if name in _WHOLE_NUMBERS else f"{value:.6g}"
