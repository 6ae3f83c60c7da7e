"""Evaluation of trackers on sequences with true boxes, from options to tables and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from agents.tracker import agent_tracker
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import check_at_least, check_output_folder, print_results, progress_bar
from bmvtrack.data import sources
from bmvtrack.data.davis import DavisSplit, load_davis16
from bmvtrack.data.mirrored import upside_down
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.files import note_begun
from bmvtrack.tracking.evaluation import Watcher, evaluate, write_overlay
from bmvtrack.tracking.failure_atlas import FailureAtlas, remove_atlas
from bmvtrack.tracking.learned import learned_tracker
from bmvtrack.tracking.opencv import PEERS, opencv_tracker
from bmvtrack.tracking.plots import write_plots
from bmvtrack.tracking.protocols import Protocol, check_sequence
from bmvtrack.tracking.report import (
    build_summary,
    coverage_table,
    interval_table,
    remove_previous,
    sequence_table,
    summary_table,
    write_report,
)
from bmvtrack.tracking.trackers import OracleTracker, TrackerFactory, static_tracker

TrackerName = Literal[
    "agent", "prior", "mask", "both", "static", "oracle", "csrt", "kcf", "mil", "mosse"
]


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluate trackers on DAVIS16, OTB, VOT or synthetic sequences."""

    root: Path | None = None
    """DAVIS16 folder that contains JPEGImages and Annotations."""
    split: DavisSplit | None = None
    """Split from the folder's ImageSets; default: all sequences of the folder."""
    data: str = "synthetic"
    """Instead of --root: `synthetic`, otb:FOLDER, vot:FOLDER or davis16:FOLDER[:SPLIT]. OTB and VOT have no
    masks, so the axis-aligned truth is the bounds of the true box, which are larger than the object where
    the box is tilted. On VOT, use the rotated columns."""
    sequences: tuple[str, ...] = ()
    """Evaluate only these sequences of the folder."""
    upside_down: bool = False
    """Flip the sequences upside down. Networks err on their own training sequences, flipped, as they do on
    new ones, so weights can be selected on them."""
    trackers: tuple[TrackerName, ...] = ("agent", "prior", "mask", "static", "oracle")
    """`agent`: the trained agent; `prior`, `mask`, `both`: the encoder alone, moving the box by its posterior
    mean, to its mask, or halfway between; `static`: never moves; `oracle`: moves by the true motion; `csrt`,
    `kcf`, `mil`, `mosse`: OpenCV's. Differences are from the first tracker."""
    protocol: Protocol = "ope"
    """`ope`: one pass; `tre`: several starts along each sequence; `sre`: shifted and scaled first boxes."""
    segments: int = 10
    """Number of starts per sequence for `tre`."""
    weights: str = DEFAULT_WEIGHTS
    """Name of bundled weights, or a folder, for `agent`, `prior`, `mask` and `both`. A folder written by
    train_sac.py (best, last) serves all of them; one written by pretrain_vae.py has no agent."""
    device: str = "cpu"
    """Device of the networks: cpu or cuda."""
    synthetic_count: int = 10
    """Number of synthetic sequences."""
    seed: int = 900
    """Random seed of the synthetic sequences and of the bootstrap."""
    out: Path = Path("runs/evaluation")
    """Folder to write to."""
    video: bool = False
    """Write an overlay video of each tracker's first run on each sequence."""
    failures: bool = False
    """Write a page of the runs with an AO below 0.5 (only the first run on each sequence): the frame in
    which the track breaks, IoU over time, and pictures of the frames around the break."""

    def check(self) -> None:
        """Check the options before anything is run.

        Raises:
            UserError: if an option is invalid; it names the option.
        """
        if not self.trackers:
            raise UserError(
                f"no trackers; --trackers takes any of {', '.join(get_args(TrackerName))}"
            )
        synthetic = sources.parse(self.data)[0] == "synthetic"
        if self.root is not None and not synthetic:
            raise UserError("--root and --data both say what to evaluate on; give one of them")
        if self.split is not None and self.root is None:
            raise UserError("--split selects from a DAVIS16 folder: give --root")
        if self.sequences and self.root is None and synthetic:
            raise UserError("--sequences selects from a folder: give --root or --data")
        check_at_least(1, self, "segments")
        check_at_least(0, self, "seed")
        if self.segments != EvaluationOptions.segments and self.protocol != "tre":
            raise UserError(
                "--segments is for --protocol tre, which alone starts along the sequences"
            )
        generated = self.root is None and synthetic
        if self.synthetic_count != EvaluationOptions.synthetic_count and not generated:
            raise UserError("--synthetic-count is for synthetic sequences: omit --root and --data")
        check_output_folder(self.out)

    @property
    def dataset(self) -> str:
        """The name of the data in the report."""
        kind, where = sources.parse(self.data)
        if self.root is not None:
            name = self.root.resolve().name + (f", {self.split}" if self.split else "")
        elif where:
            name = f"{kind} {Path(where).resolve().name}"
        else:
            name = f"synthetic, seed {self.seed}"
        return f"{name}, upside down" if self.upside_down else name


def run_evaluation(options: EvaluationOptions) -> None:
    """Check everything, run the trackers on one CPU thread, print tables and write the report.

    Writes to ``options.out``: summary.json, results/TRACKER/SEQUENCE.csv, success.png,
    precision.png and, if asked for, videos/TRACKER/SEQUENCE.mp4 and failures/failures.md.

    Raises:
        UserError: if options, weights or data are invalid.
    """
    options.check()
    factories = tracker_factories(options)
    atlas = FailureAtlas(options.out / "failures") if options.failures else None
    watchers: list[Watcher] = [] if atlas is None else [atlas.add]
    if options.video:
        watchers.append(partial(write_overlay, options.out / "videos"))
    sequences = load_sequences(options)
    with progress_bar() as progress:
        for sequence in progress.track(sequences, description="checking the data"):
            check_sequence(sequence)
        remove_previous(options.out)
        remove_atlas(options.out / "failures")
        if options.video:
            note_begun(options.out, "trackers", factories, [s.name for s in sequences])
        task = progress.add_task("tracking", total=len(sequences) * len(factories))
        results = evaluate(
            factories,
            sequences,
            options.protocol,
            options.segments,
            watchers,
            lambda: progress.advance(task),
        )
    summary = build_summary(options.dataset, options.protocol, results, options.seed)
    write_report(options.out, summary, results)
    write_plots(options.out, results)
    if atlas is not None:
        atlas.write(options.dataset, options.weights)
    tables = [sequence_table(summary), summary_table(summary)]
    if options.protocol != "ope":
        tables.append(interval_table(summary))
    shares = {name: t["coverage"] for name, t in summary["trackers"].items() if "coverage" in t}
    if shares:
        tables.append(coverage_table(shares))
    print_results(*tables, out=options.out)


def tracker_factories(options: EvaluationOptions) -> dict[str, TrackerFactory]:
    """The factories of the requested trackers by name; networks are loaded here, once.

    Raises:
        UserError: if weights or one of OpenCV's trackers are missing.
    """
    assembly: dict[str, Callable[[], TrackerFactory]] = {
        "agent": lambda: agent_tracker(options.weights, options.device),
        "prior": lambda: learned_tracker("prior", options.weights, options.device),
        "mask": lambda: learned_tracker("mask", options.weights, options.device),
        "both": lambda: learned_tracker("both", options.weights, options.device),
        "static": lambda: static_tracker,
        "oracle": lambda: OracleTracker,
        **{name: partial(opencv_tracker, name) for name in PEERS},
    }
    return {name: assembly[name]() for name in options.trackers}


def load_sequences(options: EvaluationOptions) -> list[VideoSequence]:
    """The sequences that the options name, flipped if asked for.

    Raises:
        UserError: if data or sequences are missing or invalid.
    """
    sequences = _named_sequences(options)
    return [upside_down(sequence) for sequence in sequences] if options.upside_down else sequences


def _named_sequences(options: EvaluationOptions) -> list[VideoSequence]:
    wanted = options.sequences
    if options.root is not None:
        return load_davis16(options.root, options.split, list(wanted) or None)
    sources.refuse_stills("data", options.data)
    loaded = sources.load_sequences(
        options.data, synthetic_count=options.synthetic_count, seed=options.seed
    )
    names = [sequence.name for sequence in loaded]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise UserError(f"no sequence {', '.join(unknown)} in {options.data}; there are {names}")
    return [sequence for sequence in loaded if not wanted or sequence.name in wanted]
