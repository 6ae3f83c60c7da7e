"""The evaluation of trackers on sequences with true boxes, from options to tables and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from agents.tracker import agent_tracker
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import check_output_folder, print_results, progress_bar
from bmvtrack.data import sources
from bmvtrack.data.davis import load_davis16
from bmvtrack.data.mirrored import upside_down
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.tracking.evaluation import Watcher, evaluate, write_overlay
from bmvtrack.tracking.failure_atlas import FailureAtlas, remove_atlas
from bmvtrack.tracking.learned import learned_tracker
from bmvtrack.tracking.opencv import PEERS, opencv_tracker
from bmvtrack.tracking.plots import write_plots
from bmvtrack.tracking.protocols import Protocol, check_sequence
from bmvtrack.tracking.report import (
    build_summary,
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
    """DAVIS16 folder, with JPEGImages and Annotations in it."""
    split: Literal["train", "val", "trainval"] | None = None
    """Split that ImageSets lists; all sequences of the folder if not given."""
    data: str = "synthetic"
    """Instead of --root: `synthetic`, otb:FOLDER, vot:FOLDER or davis16:FOLDER[:SPLIT]. OTB and VOT
    have no masks, so the axis-aligned truth is the bounds of the true box, which are larger than the
    object where the box is tilted: on VOT look at the rotated columns."""
    sequences: tuple[str, ...] = ()
    """Only these sequences of the folder."""
    upside_down: bool = False
    """Show the sequences upside down: to choose between weights on sequences that they were trained
    on, which they err on then as on new ones."""
    trackers: tuple[TrackerName, ...] = ("agent", "prior", "mask", "static", "oracle")
    """agent; the encoder alone, by its posterior mean (prior), its mask, or halfway (both); static
    never moves; oracle moves truly; csrt, kcf, mil and mosse are OpenCV's. Differences are from the first."""
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
    failures: bool = False
    """Write a page of the runs with an AO under 0.5, again the first on each sequence: the frame in
    which the track breaks, IoU over time, and pictures of the frames around the break."""

    def check(self) -> None:
        """Refuse what cannot be run before anything is.

        Raises:
            UserError: naming the option.
        """
        if not self.trackers:
            raise UserError(
                f"no trackers; --trackers takes any of {', '.join(get_args(TrackerName))}"
            )
        synthetic = sources.parse(self.data)[0] == "synthetic"
        if self.root is not None and not synthetic:
            raise UserError("--root and --data both say what to evaluate on; give one of them")
        if self.split is not None and self.root is None:
            raise UserError("--split chooses from a DAVIS16 folder: give --root")
        if self.sequences and self.root is None and synthetic:
            raise UserError("--sequences chooses from a folder: give --root or --data")
        if self.segments < 1:
            raise UserError(f"--segments must be at least 1, not {self.segments}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, not {self.seed}")
        check_output_folder(self.out)

    @property
    def dataset(self) -> str:
        """What the report calls the data."""
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
    precision.png and, if wanted, videos/TRACKER/SEQUENCE.mp4 and failures/failures.md.

    Raises:
        UserError: if options, weights or data are not as they should be.
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
    print_results(*tables, out=options.out)


def tracker_factories(options: EvaluationOptions) -> dict[str, TrackerFactory]:
    """The factories of the trackers asked for, by name; networks are loaded here, once.

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
    """The sequences that the options name, as they are to be shown.

    Raises:
        UserError: if data or sequences are missing, or not as they should be.
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
