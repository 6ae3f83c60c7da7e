"""Compare ways to learn on the same states, clips, budget and seeds: curves with bands, and a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents.comparison import METHODS, Method, compare
from agents.comparison_report import COLUMNS, plot_curves, rows
from agents.options import TrainOptions
from agents.training import TRAINING_SEED
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import check_minutes, parse_options
from bmvtrack.data import sources
from bmvtrack.data.mirrored import Mirroring
from bmvtrack.errors import UserError, run_script
from bmvtrack.perception import Precision

_TEST_SEED = 600  # of synthetic sequences; agents learn from that of TRAINING_SEED on


@dataclass
class Options:
    """Latent prior, the same with truth in its buffer, the same without correlations, plain SAC in both
    coordinates; and untrained."""

    out: Path = Path("runs/comparison")
    """folder for the runs (kept, not repeated), `curves.png` and `table.csv`"""
    weights: str = DEFAULT_WEIGHTS
    """encoder: name of bundled weights, or a folder"""
    data: str = "synthetic"
    """to learn on: synthetic, davis16:FOLDER or davis16:FOLDER:SPLIT"""
    test: str = "synthetic"
    """to evaluate on, to the end of each sequence"""
    test_clips: int = 30
    """clips spread over the sequences of `test`"""
    synthetic_count: int = 128
    """synthetic sequences to learn on; a quarter as many, others, to evaluate on"""
    methods: tuple[Method, ...] = tuple(METHODS)
    """to train; all share the folder, so that some can be run first and others later, and the table has all
    that are there"""
    mirror: Mirroring = "all"
    """views of the sequences of a folder to learn on: mirrored left to right, upside down and in time
    as well (`all`), `upside-down` alone, or `none`"""
    steps: int = 20_000
    """environment steps of each run"""
    evaluate_every: int = 4_000
    """steps between evaluations"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run of each method for each"""
    cache_gigabytes: float | None = None
    """of frames on the device; those used least recently are read again. Default: 4, or a quarter of a
    GPU's free memory if that is more"""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`"""
    precision: Precision = "float32"
    """of the encoder, for every method alike: `bfloat16` is faster where the processor knows it"""
    max_minutes: float | None = None
    """start no further run after this time; the same command goes on"""


def main() -> None:
    """Run what is missing; then draw and print what is there."""
    options = parse_options(Options, __doc__)
    console = Console()
    train = TrainOptions(
        out=options.out,
        weights=options.weights,
        data=(options.data,),
        synthetic_count=options.synthetic_count,
        steps=options.steps,
        validate_every=options.evaluate_every,
        device=options.device,
        precision=options.precision,
        cache_gigabytes=options.cache_gigabytes,
        mirror=options.mirror,
    )
    if options.evaluate_every < 1:
        raise UserError(f"--evaluate-every must be at least 1, not {options.evaluate_every}")
    train.check()
    check_minutes(options.max_minutes)
    if not options.seeds or not options.methods or options.test_clips < 1:
        raise UserError(
            "--seeds and --methods need at least one each, and --test-clips is at least 1"
        )
    training = sources.load_sequences(
        options.data, synthetic_count=options.synthetic_count, seed=TRAINING_SEED
    )
    test = sources.load_sequences(
        options.test, synthetic_count=max(1, options.synthetic_count // 4), seed=_TEST_SEED
    )
    curves = compare(
        train,
        options.seeds,
        training,
        test,
        options.test_clips,
        console,
        options.max_minutes,
        options.methods,
    )
    if not curves:
        raise UserError("--max-minutes was too short for a single run")
    plot_curves(curves, options.out / "curves.png")
    table = Table(*COLUMNS)
    for row in rows(curves, options.out / "table.csv"):
        table.add_row(*row)
    console.print(table)
    asked = [curve for curve in curves if curve.method in options.methods]
    missing = len(set(options.methods)) * len(set(options.seeds)) - len(asked)
    if missing:
        console.print(f"{missing} runs are missing; the same command goes on")


if __name__ == "__main__":
    run_script(main)
