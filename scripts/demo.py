"""Run the whole pipeline on a small scale: pretrain, train the agent, track, and write a report.

Everything runs on synthetic sequences generated on the fly. This takes a few minutes on two CPU cores. The
numbers show that the parts work together, not what they can achieve (for that, see docs/results.md).
"""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents.options import TrainOptions
from agents.tracker import agent_tracker
from agents.training import train_agent
from bmvtrack.console import check_at_least, parse_options
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.errors import UserError, run_script
from bmvtrack.files import write_text
from bmvtrack.tracking.evaluation import evaluate, write_overlay
from bmvtrack.tracking.learned import learned_tracker
from bmvtrack.tracking.plots import write_plots
from bmvtrack.tracking.protocols import Run
from bmvtrack.tracking.report import Summary, build_summary, write_report
from bmvtrack.tracking.trackers import OracleTracker, TrackerFactory, static_tracker
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.curves import plot_curves, read_scalars

TEST_SEED = 900  # seed of sequences that nothing here is trained on


@dataclass
class Options:
    """Pretrain, train, track and report, on synthetic sequences."""

    out: Path = Path("demo")
    """folder for the report and all files of the run"""
    pretrain_steps: int = 1600
    """optimiser steps for the encoder"""
    agent_steps: int = 4000
    """environment steps for the agent"""
    synthetic_count: int = 96
    """number of synthetic sequences for pretraining; the agent gets as many others"""
    test_sequences: int = 8
    """number of sequences to track"""
    pretrain_minutes: float = 4.5
    """time limit for training the encoder, in minutes"""
    agent_minutes: float = 2.0
    """time limit for training the agent, in minutes"""
    seed: int = 0
    """random seed"""


def main() -> None:
    """Run the parts one after another."""
    options = parse_options(Options, __doc__)
    check_at_least(1, options, "test_sequences", "pretrain_steps", "agent_steps")
    check_at_least(4, options, "synthetic_count")
    if not min(options.pretrain_minutes, options.agent_minutes) > 0:
        raise UserError("--pretrain-minutes and --agent-minutes must be positive")
    console, started = Console(), time.monotonic()
    run = options.out / time.strftime("run-%Y%m%d-%H%M%S")
    console.rule("1 of 3: pretraining the encoder")
    pretrain(
        PretrainOptions(
            out=run / "encoder",
            width=16,
            class_weights="balanced",  # trained for minutes without them, masks miss objects
            input_size=64,
            steps=options.pretrain_steps,
            synthetic_count=options.synthetic_count,
            longest_side=320,
            validate_every=200,
            max_minutes=options.pretrain_minutes,
            seed=options.seed,
        ),
        console,
    )
    console.rule("2 of 3: training the agent in BMVTrack-v0")
    train_agent(
        TrainOptions(
            out=run / "agent",
            weights=str(run / "encoder" / "best"),
            steps=options.agent_steps,
            synthetic_count=options.synthetic_count,
            learning_starts=500,
            validation_clips=min(12, options.synthetic_count),
            validate_every=1000,
            max_minutes=options.agent_minutes,
            seed=options.seed,
        ),
        console,
    )
    console.rule("3 of 3: tracking")
    summary = track(options, run, console)
    report = write_page(options.out, run, summary)
    console.print(short_table(summary))
    console.print(
        f"took {(time.monotonic() - started) / 60:.1f} minutes; rotated AO: {results(summary)}"
    )
    console.print(f"report: {report}", soft_wrap=True, markup=False)


def track(options: Options, run: Path, console: Console) -> Summary:
    """Track the test sequences with every tracker; write tables, plots and videos."""
    weights = run / "agent" / "best"
    factories: dict[str, TrackerFactory] = {
        "agent": agent_tracker(weights),
        "prior": learned_tracker("prior", weights),
        "mask": learned_tracker("mask", weights),
        "static": static_tracker,
        "oracle": OracleTracker,
    }
    sequences = synthetic_sequences(options.test_sequences, TEST_SEED)

    def draw_agent(name: str, shown: Run, sequence: VideoSequence) -> None:
        if name == "agent":  # the page shows one of its videos
            write_overlay(run / "tracking" / "videos", name, shown, sequence)

    with console.status("tracking"):
        outcome = evaluate(factories, sequences, watchers=[draw_agent])
    summary = build_summary(f"synthetic, seed {TEST_SEED}", "ope", outcome, options.seed)
    write_report(run / "tracking", summary, outcome)
    write_plots(run / "tracking", outcome)
    return summary


def short_table(summary: Summary) -> Table:
    """AO of every tracker, in a table narrow enough for any terminal."""
    table = Table("tracker", "rotated AO", "axis-aligned AO", "frames/s")
    for name, value in summary["trackers"].items():
        rotated, upright = value["rotated"]["ao"], value["axis_aligned"]["ao"]
        table.add_row(name, f"{rotated:.3f}", f"{upright:.3f}", f"{value['fps']:,.0f}")
    return table


def results(summary: Summary) -> str:
    """The results in one line."""
    trackers = summary["trackers"].items()
    return ", ".join(f"{name} {value['rotated']['ao']:.3f}" for name, value in trackers)


def write_page(out: Path, run: Path, summary: Summary) -> Path:
    """Write ``report.html``: the table, the curves and a video."""
    encoder = read_scalars(run / "encoder" / "tensorboard")
    tags = ["train/total", "train/kl", "train/motion_nll", "validation/mask_iou"]
    plot_curves(encoder, tags, run / "encoder.png")
    agent = read_scalars(run / "agent" / "tensorboard")
    tags = ["eval/mean_reward", "train/kl_to_prior", "train/ent_coef", "train/critic_loss"]
    plot_curves(agent, tags, run / "agent.png")
    video = next((run / "tracking" / "videos" / "agent").glob("*.mp4"))
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{value['rotated'][key]:.3f}</td>" for key in ("ao", "sr50", "auc"))
        + f"<td>{value['axis_aligned']['ao']:.3f}</td><td>{value['fps']:.0f}</td></tr>"
        for name, value in summary["trackers"].items()
    )
    page = _PAGE.format(
        dataset=html.escape(summary["dataset"]),
        rows=rows,
        encoder=(run / "encoder.png").relative_to(out),
        agent=(run / "agent.png").relative_to(out),
        success=(run / "tracking" / "success.png").relative_to(out),
        video=video.relative_to(out),
    )
    path = out / "report.html"
    write_text(path, page)
    return path


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bmvtrack demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem; text-align: right }}
tr {{ border-bottom: 1px solid #ddd }} img, video {{ max-width: 100% }}
</style></head><body>
<h1>bmvtrack demo</h1>
<p>IoU over {dataset}; true first box, one pass.</p>
<table><tr><th></th><th>rotated AO</th><th>SR@0.5</th><th>AUC</th><th>axis-aligned AO</th>
<th>frames/s</th></tr>{rows}</table>
<h2>The agent at work</h2><video src="{video}" controls loop></video>
<h2>Success</h2><img src="{success}" alt="success plot">
<h2>Pretraining</h2><img src="{encoder}" alt="pretraining curves">
<h2>The agent's training</h2><img src="{agent}" alt="agent curves">
</body></html>
"""


if __name__ == "__main__":
    run_script(main)
