"""Compare training methods on the same states, clips, budget and seeds: curves with bands, and a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents.comparison import METHODS, Method, compare
from agents.comparison_report import COLUMNS, plot_curves, rows
from agents.options import TrainOptions
from agents.sequences import TRAINING_SEED
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.console import check_at_least, check_minutes, parse_options
from bmvtrack.data import sources
from bmvtrack.data.mirrored import Mirroring
from bmvtrack.errors import UserError, run_script
from bmvtrack.perception import Precision

_TEST_SEED = 600  # of synthetic test sequences; those for training start at TRAINING_SEED


@dataclass
class Options:
    """The latent prior, also with truth in its buffer and without correlations; plain SAC in both
    coordinates; and the untrained prior."""

    out: Path = Path("runs/comparison")
    """folder for the runs, `curves.png` and `table.csv`; finished runs are kept and not repeated"""
    weights: str = DEFAULT_WEIGHTS
    """encoder: name of bundled weights, or a folder"""
    data: str = "synthetic"
    """training data: synthetic, davis16:FOLDER or davis16:FOLDER:SPLIT"""
    test: str = "synthetic"
    """test data, named likewise; each clip runs to the end of its sequence"""
    test_clips: int = 30
    """number of clips, spread over the test sequences"""
    synthetic_count: int = 128
    """number of synthetic training sequences; a quarter as many others are generated for testing"""
    methods: tuple[Method, ...] = tuple(METHODS)
    """methods to train. They share the folder, so some can be run first and others later; the table shows
    all finished runs"""
    mirror: Mirroring = "all"
    """views of a folder's sequences for training. `all`: original and mirrored left to right, upside down and
    in time; `upside-down`: only the upside-down ones; `none`: only the original"""
    steps: int = 20_000
    """environment steps per run"""
    evaluate_every: int = 4_000
    """steps between evaluations"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """random seeds; each method is run once per seed"""
    cache_gigabytes: float | None = None
    """size of the frame cache on the device; the least recently used frames are evicted and read again.
    Default: 4, or a quarter of a GPU's free memory if that is more"""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`"""
    precision: Precision = "float32"
    """precision of the encoder in training, for all methods: `bfloat16` is faster if the processor supports
    it"""
    max_minutes: float | None = None
    """start no further run after this many minutes; repeat the same command to continue"""

    def check(self) -> None:
        """Check the options.

        Raises:
            UserError: if an option is invalid; it names the option.
        """
        check_at_least(1, self, "evaluate_every", "test_clips")
        self.of_every_run().check()
        check_minutes(self.max_minutes)
        if not self.seeds or not self.methods:
            raise UserError("--seeds and --methods need at least one each")

    def of_every_run(self) -> TrainOptions:
        """What all runs have in common."""
        return TrainOptions(
            out=self.out,
            weights=self.weights,
            data=(self.data,),
            synthetic_count=self.synthetic_count,
            steps=self.steps,
            validate_every=self.evaluate_every,
            device=self.device,
            precision=self.precision,
            cache_gigabytes=self.cache_gigabytes,
            mirror=self.mirror,
        )


def main() -> None:
    """Run the missing runs, then plot and print all finished ones."""
    options = parse_options(Options, __doc__)
    options.check()
    console = Console()
    training = sources.load_sequences(
        options.data, synthetic_count=options.synthetic_count, seed=TRAINING_SEED
    )
    test = sources.load_sequences(
        options.test, synthetic_count=max(1, options.synthetic_count // 4), seed=_TEST_SEED
    )
    curves = compare(
        options.of_every_run(),
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
        console.print(f"{missing} runs are missing; repeat the same command to continue")


if __name__ == "__main__":
    run_script(main)
