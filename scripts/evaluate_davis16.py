"""Evaluate trackers by IoU on DAVIS16 or on synthetic sequences (one-pass, TRE or SRE).

Prints tables and writes to --out: summary.json, results/TRACKER/SEQUENCE.csv, success.png,
precision.png and, with --video, videos/TRACKER/SEQUENCE.mp4. All trackers run on one CPU thread.

    python scripts/evaluate_davis16.py
    python scripts/evaluate_davis16.py --root DAVIS --split val --weights runs/sac/best --video
    python scripts/evaluate_davis16.py --root DAVIS --split val --protocol tre
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents.tracker import agent_tracker
from bmvtrack.data.davis import load_davis16
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.errors import UserError, run_script
from bmvtrack.perception import DEFAULT_WEIGHTS
from bmvtrack.tracking.evaluation import evaluate
from bmvtrack.tracking.learned import learned_tracker
from bmvtrack.tracking.opencv import PEERS, opencv_tracker
from bmvtrack.tracking.plots import write_plots
from bmvtrack.tracking.protocols import Protocol, check_sequence
from bmvtrack.tracking.report import (
    build_summary,
    interval_table,
    sequence_table,
    summary_table,
    write_report,
)
from bmvtrack.tracking.trackers import OracleTracker, TrackerFactory, static_tracker

TrackerName = Literal["agent", "prior", "mask", "static", "oracle", "csrt", "kcf", "mil", "mosse"]


@dataclass
class Options:
    """Evaluate trackers on DAVIS16 or on synthetic sequences."""

    root: Path | None = None
    """DAVIS16 folder, with JPEGImages and Annotations in it; synthetic sequences if not given."""
    split: Literal["train", "val", "trainval"] | None = None
    """Split that ImageSets lists; all sequences of the folder if not given."""
    sequences: tuple[str, ...] = ()
    """Only these sequences of the folder."""
    trackers: tuple[TrackerName, ...] = ("agent", "prior", "mask", "static", "oracle")
    """agent; the encoder alone, by its posterior mean (prior) or its mask; static never moves;
    oracle moves truly; csrt, kcf, mil and mosse are OpenCV's. Differences are from the first."""
    protocol: Protocol = "ope"
    """One pass; from starts along each sequence (tre); from shifted and scaled boxes (sre)."""
    segments: int = 10
    """Starts per sequence of tre."""
    weights: str = DEFAULT_WEIGHTS
    """Bundled weights by name, or a folder: of agent, prior and mask. A folder that train_sac.py
    wrote (best, last) holds all three; one that pretrain_vae.py wrote has no agent."""
    device: str = "cpu"
    """cpu or cuda: for the networks."""
    synthetic_count: int = 10
    """Number of synthetic sequences."""
    seed: int = 900
    """Of the synthetic sequences and of the bootstrap."""
    out: Path = Path("runs/evaluation")
    """Folder to write to."""
    video: bool = False
    """Write an overlay of each tracker's first run on each sequence."""


def main() -> None:
    """Check everything, run the trackers, print tables and write the report."""
    options = tyro.cli(Options, description=__doc__)
    check_options(options)
    factories = tracker_factories(options)
    sequences = load_sequences(options)
    with progress_bar() as progress:
        for sequence in progress.track(sequences, description="checking the data"):
            check_sequence(sequence)
        task = progress.add_task("tracking", total=len(sequences) * len(factories))
        results = evaluate(
            factories,
            sequences,
            options.protocol,
            options.segments,
            options.out / "videos" if options.video else None,
            lambda: progress.advance(task),
        )
    summary = build_summary(dataset_name(options), options.protocol, results, options.seed)
    write_report(options.out, summary, results)
    write_plots(options.out, results)
    show(summary, options.out)


def check_options(options: Options) -> None:
    """Refuse what cannot be run before anything is."""
    if not options.trackers:
        raise UserError(f"no trackers; --trackers takes any of {', '.join(get_args(TrackerName))}")
    if options.root is None and (options.split is not None or options.sequences):
        raise UserError("--split and --sequences choose from a folder: give --root")
    if options.segments < 1:
        raise UserError(f"--segments must be at least 1, not {options.segments}")
    if options.seed < 0:
        raise UserError(f"--seed must not be negative, not {options.seed}")
    existing = next(
        path for path in (options.out, *options.out.absolute().parents) if path.exists()
    )
    if not existing.is_dir():
        raise UserError(f"--out {options.out}: {existing} is a file; give a folder")


def tracker_factories(options: Options) -> dict[str, TrackerFactory]:
    """The factories of the trackers asked for, by name; networks are loaded here, once."""
    assembly: dict[str, Callable[[], TrackerFactory]] = {
        "agent": lambda: agent_tracker(options.weights, options.device),
        "prior": lambda: learned_tracker("prior", options.weights, options.device),
        "mask": lambda: learned_tracker("mask", options.weights, options.device),
        "static": lambda: static_tracker,
        "oracle": lambda: OracleTracker,
        **{name: partial(opencv_tracker, name) for name in PEERS},
    }
    return {name: assembly[name]() for name in options.trackers}


def load_sequences(options: Options) -> list[VideoSequence]:
    """DAVIS16 sequences from the folder, or synthetic ones."""
    if options.root is None:
        return synthetic_sequences(options.synthetic_count, options.seed)
    return load_davis16(options.root, options.split, list(options.sequences) or None)


def dataset_name(options: Options) -> str:
    """For the report: the folder's name and the split."""
    if options.root is None:
        return f"synthetic, seed {options.seed}"
    name = options.root.resolve().name
    return name if options.split is None else f"{name}, {options.split}"


def progress_bar() -> Progress:
    """A bar on stderr, if that is a terminal, that goes away when done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def show(summary: dict[str, Any], out: Path) -> None:
    """Print the tables and where the files are."""
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a pipe has no width: keep a row on its line
    console.print(sequence_table(summary))
    console.print(summary_table(summary))
    if summary["protocol"] != "ope":
        console.print(interval_table(summary))
    console.print(f"written to {out}", soft_wrap=True)


if __name__ == "__main__":
    run_script(main)
