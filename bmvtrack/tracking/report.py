"""The output of an evaluation: ``summary.json`` (:class:`Summary`), tables, and one CSV file per run."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from bmvtrack.arrays import FloatArray
from bmvtrack.files import atomic_folder, csv_text, previously_made, write_summary, write_text
from bmvtrack.tracking.bootstrap import bootstrap_mean, paired_difference
from bmvtrack.tracking.metrics import GEOMETRIES, LEVELS, Geometry, Scores, average, coverage
from bmvtrack.tracking.protocols import Protocol, Run

Results = Mapping[str, Sequence[Run]]
"""The runs of each tracker, by name; all trackers ran on the same sequences in the same order."""

Metric = Literal["ao", "sr50", "sr75", "auc", "precision20"]
"""Fields of :class:`~bmvtrack.tracking.metrics.Scores`."""
_METRICS: tuple[Metric, ...] = get_args(Metric)
_COLUMNS = (
    *("frame", "centre_x", "centre_y", "width", "height", "angle"),
    *("iou_rotated", "iou_axis_aligned", "mahalanobis"),
)
_ON_TRACK = 0.5  # IoU above which a frame counts for the coverage


class _Measured(TypedDict):
    axis_aligned: dict[Metric, float]
    rotated: dict[Metric, float]
    fps: float
    frames: int
    per_sequence: dict[str, dict[Geometry, float]]


class TrackerSummary(_Measured, total=False):
    """The results of one tracker.

    Attributes:
        axis_aligned: metrics, averaged over the runs of each sequence and then over sequences.
        rotated: the same of rotated boxes.
        fps: frames/s.
        frames: number of tracked frames, scored or not.
        per_sequence: AO.
        ao_interval: low and high, 95 %; only TRE and SRE.
        ao_above_first: mean, low and high of the paired difference from the first tracker; only TRE and SRE.
        coverage: see :func:`covered`; only of a tracker that predicts a Gaussian.
    """

    ao_interval: dict[Geometry, list[float]]
    ao_above_first: dict[Geometry, list[float]]
    coverage: dict[str, float]


class Summary(TypedDict):
    """The content of ``summary.json``; trackers are in the order in which they were given."""

    dataset: str
    protocol: Protocol
    trackers: dict[str, TrackerSummary]


def by_sequence(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of one tracker, grouped by the name of their sequence."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.sequence, []).append(run)
    return groups


def overall(runs: Sequence[Run], geometry: Geometry) -> Scores:
    """The metrics, averaged over the runs of each sequence and then over sequences."""
    return average(
        [average([run.scores[geometry] for run in group]) for group in by_sequence(runs).values()]
    )


def overlaps_by_sequence(runs: Sequence[Run], geometry: Geometry) -> list[FloatArray]:
    """AO of each run, in one array per sequence, as the bootstrap expects."""
    return [
        np.array([run.scores[geometry].ao for run in group]) for group in by_sequence(runs).values()
    ]


def build_summary(dataset: str, protocol: Protocol, results: Results, seed: int = 0) -> Summary:
    """The content of ``summary.json``.

    Args:
        dataset: name of the data.
        protocol: protocol of the runs.
        results: runs of all trackers; differences are from the first tracker.
        seed: seed of the bootstrap.
    """
    first = next(iter(results.values()))
    trackers = {name: _summary_of(runs) for name, runs in results.items()}
    if protocol != "ope":
        for runs, summary in zip(results.values(), trackers.values(), strict=True):
            summary["ao_interval"] = _intervals(runs, seed)
            if runs is not first:
                summary["ao_above_first"] = _differences(runs, first, seed)
    return {"dataset": dataset, "protocol": protocol, "trackers": trackers}


def write_report(folder: Path, summary: Summary, results: Results) -> None:
    """Write ``summary.json`` and, for each run, ``results/TRACKER/RUN.csv``.

    Existing files of the same tracker are replaced.
    """
    for name, runs in results.items():
        with atomic_folder(folder / "results" / name) as temporary:
            for run in runs:
                write_text(temporary / f"{run.name}.csv", run_csv(run))
    write_summary(folder, summary)


def remove_previous(folder: Path) -> None:
    """Remove the results and videos that a folder's summary lists, and then the summary.

    Of an evaluation that was interrupted, the videos are removed. They would mix with those of other weights
    or data. Files that are not listed are left alone.
    """
    made = previously_made(folder, "trackers")
    for name, sequences in made.items():
        shutil.rmtree(folder / "results" / name, ignore_errors=True)
        for sequence in sequences:
            (folder / "videos" / name / f"{sequence}.mp4").unlink(missing_ok=True)
    if made:
        (folder / "summary.json").unlink(missing_ok=True)


def run_csv(run: Run) -> str:
    """One line per frame: its number, the rotated box (pixels, radians), both IoUs, and the squared
    Mahalanobis distance of the true motion from the tracker's Gaussian.

    What does not apply is empty: the IoU of a frame that is not scored (the mean of the others is the run's
    AO), and the distance there and where the tracker has no Gaussian.
    """
    rows: list[Iterable[Any]] = [_COLUMNS]
    ious = [run.overlaps[geometry].iou for geometry in ("rotated", "axis_aligned")]
    scores = np.stack([*ious, run.distances], axis=1)
    for i, rbbox in enumerate(run.boxes):
        numbers = [f"{value:.4f}" for value in rbbox]
        numbers += ["" if np.isnan(score) else f"{score:.6f}" for score in scores[i]]
        rows.append([run.start + i, *numbers])
    return csv_text(rows)


def summary_table(summary: Summary) -> Table:
    """One row per tracker: its metrics in both geometries and its frames per second."""
    table = Table(
        title=escape(f"{summary['dataset']}, {summary['protocol'].upper()}"), box=box.SIMPLE_HEAD
    )
    table.add_column("tracker")
    for geometry in GEOMETRIES:
        for metric in ("AO", "SR.50", "SR.75", "AUC", "P20"):
            # The geometry is printed above the first of its columns.
            over = geometry.replace("_", "-") if metric == "AO" else ""
            table.add_column(f"{over}\n{metric}", justify="right", no_wrap=True)
    table.add_column("\nframes/s", justify="right", no_wrap=True)
    for name, tracker in summary["trackers"].items():
        metrics = (tracker[geometry][metric] for geometry in GEOMETRIES for metric in _METRICS)
        table.add_row(name, *(f"{value:.3f}" for value in metrics), f"{tracker['fps']:,.0f}")
    return table


def covered(runs: Sequence[Run]) -> dict[str, float] | None:
    """How often the true motion lies in a tracker's 50, 90 and 99 % regions, where it is on track.

    Returns:
        Shares by level (:func:`~bmvtrack.tracking.metrics.coverage`) and the number of frames; None if there
        are no such frames, or the tracker has no Gaussian.
    """
    counted = distances_on_track(runs)
    return shares_of(counted) if counted.size else None


def shares_of(distances: FloatArray) -> dict[str, float]:
    """The number of frames, and :func:`~bmvtrack.tracking.metrics.coverage` of their squared distances."""
    return {"frames": len(distances), **coverage(distances)}


def distances_on_track(runs: Sequence[Run]) -> FloatArray:
    """Squared Mahalanobis distances of the true motion where a tracker is on track.

    Only frames count whose rotated box has an IoU over ½ with the true one: where the object is lost, its
    motion says nothing about the Gaussian's width.

    Returns:
        ``(N,)``, of all runs; N = 0 if there are no such frames, or the tracker has no Gaussian.
    """
    iou = np.concatenate([run.overlaps["rotated"].iou for run in runs])
    distances = np.concatenate([run.distances for run in runs])
    counted: FloatArray = distances[(iou > _ON_TRACK) & np.isfinite(distances)]
    return counted


def coverage_table(shares: Mapping[str, Mapping[str, float]], heading: str = "tracker") -> Table:
    """One row per name: how often the true motion lies in the Gaussian's regions, from :func:`covered`."""
    table = Table(title="coverage where IoU > 0.5", box=box.SIMPLE_HEAD)
    for title in (heading, "frames", *(f"{level}%" for level in LEVELS)):
        table.add_column(title, justify="left" if title == heading else "right")
    for name, of_name in shares.items():
        frames, *values = of_name.values()
        table.add_row(name, f"{frames:,}", *(f"{value:.2f}" for value in values))
    return table


def sequence_table(summary: Summary) -> Table:
    """One row per sequence: the AO of each tracker, axis-aligned / rotated."""
    trackers = summary["trackers"]
    table = Table(title="AO per sequence, axis-aligned / rotated", box=box.SIMPLE_HEAD)
    table.add_column("sequence")
    for name in trackers:
        table.add_column(name, justify="right", no_wrap=True)
    for sequence in next(iter(trackers.values()))["per_sequence"]:
        overlaps = (tracker["per_sequence"][sequence] for tracker in trackers.values())
        table.add_row(
            escape(sequence), *(f"{o['axis_aligned']:.2f} / {o['rotated']:.2f}" for o in overlaps)
        )
    return table


def interval_table(summary: Summary) -> Table:
    """One row per tracker: AO with its 95 % interval, and its difference from the first tracker."""
    names = list(summary["trackers"])
    table = Table(title="AO with 95 % intervals over sequences and runs", box=box.SIMPLE_HEAD)
    for heading in ("tracker", "axis-aligned", "rotated"):
        table.add_column(heading, no_wrap=True)
    for geometry in GEOMETRIES:
        table.add_column(f"above {names[0]}, {geometry.replace('_', '-')}", no_wrap=True)
    for name in names:
        tracker = summary["trackers"][name]
        columns = []
        for geometry in GEOMETRIES:
            low, high = tracker["ao_interval"][geometry]
            columns.append(f"{tracker[geometry]['ao']:.3f} [{low:.3f}, {high:.3f}]")
        for difference in tracker.get("ao_above_first", {}).values():
            columns.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference))
        table.add_row(name, *columns)
    return table


def _summary_of(runs: Sequence[Run]) -> TrackerSummary:
    frames = sum(len(run) for run in runs)
    summary: TrackerSummary = {
        "axis_aligned": _metrics_of(overall(runs, "axis_aligned")),
        "rotated": _metrics_of(overall(runs, "rotated")),
        "fps": frames / sum(run.seconds for run in runs),
        "frames": frames,
        "per_sequence": {
            name: {geometry: overall(group, geometry).ao for geometry in GEOMETRIES}
            for name, group in by_sequence(runs).items()
        },
    }
    shares = covered(runs)
    if shares is not None:
        summary["coverage"] = shares
    return summary


def _metrics_of(scores: Scores) -> dict[Metric, float]:
    return {metric: getattr(scores, metric) for metric in _METRICS}


def _intervals(runs: Sequence[Run], seed: int) -> dict[Geometry, list[float]]:
    estimates = {g: bootstrap_mean(overlaps_by_sequence(runs, g), seed) for g in GEOMETRIES}
    return {geometry: [found.low, found.high] for geometry, found in estimates.items()}


def _differences(
    runs: Sequence[Run], first: Sequence[Run], seed: int
) -> dict[Geometry, list[float]]:
    differences = {}
    for geometry in GEOMETRIES:
        ours, theirs = (overlaps_by_sequence(part, geometry) for part in (runs, first))
        differences[geometry] = list(astuple(paired_difference(ours, theirs, seed)))
    return differences
