"""Speed on this machine: training, environment, agent and tracking, as a table and as JSON.

Whole steps, data included. Machines differ and are noisy: compare numbers of one run, as ratios.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from agents.tracker import agent_tracker
from agents.training import TrainOptions, make_environments, make_model
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.errors import UserError, run_script
from bmvtrack.files import write_text
from bmvtrack.motion import AT_REST
from bmvtrack.perception import DEFAULT_WEIGHTS, Perception
from bmvtrack.tracking.learned import learned_tracker
from bmvtrack.training import PretrainOptions
from bmvtrack.training.pretrain import PretrainRun


@dataclass
class Options:
    """Measure training patches/s, environment steps/s, agent updates/s and tracking frames/s."""

    weights: str = DEFAULT_WEIGHTS
    """encoder and agent: name of bundled weights, or a folder"""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`"""
    seconds: float = 5.0
    """spent on each measurement, after a warm-up"""
    width: int = 32
    """of the network that is trained"""
    input_size: int = 128
    """of the network that is trained"""
    batch_size: int = 32
    """of pretraining"""
    out: Path | None = None
    """JSON file to write"""


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    if options.seconds <= 0:
        raise UserError(f"--seconds must be positive, not {options.seconds}")
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    measured = {
        "pretraining, patches/s": training_rate(options, device),
        **agent_rates(options, device),
        **tracking_rates(options, device),
    }
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if device == "cuda":
        machine = torch.cuda.get_device_name()
    table = Table("what", "per second", title=f"{machine}; torch {torch.__version__}")
    for name, rate in measured.items():
        table.add_row(name, f"{rate:,.1f}")
    Console().print(table)
    if options.out is not None:
        result = {"machine": machine, "torch": torch.__version__, "per_second": measured}
        write_text(options.out, json.dumps(result, indent=2) + "\n")


def rate(step: Callable[[], object], seconds: float, device: str, warm_up: int = 3) -> float:
    """Calls per second of ``step``, over about ``seconds`` after a warm-up."""
    for _ in range(warm_up):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        count += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


def training_rate(options: Options, device: str) -> float:
    """Whole pretraining steps in tracking mode: draw, crop, jitter, forward, backward, update."""
    run = PretrainRun(
        PretrainOptions(
            width=options.width,
            input_size=options.input_size,
            batch_size=options.batch_size,
            synthetic_count=8,
            validation_share=0.2,
            longest_side=320,
            steps=10**6,
            device=device,
        ).resolved()
    )
    return options.batch_size * rate(run.training_step, options.seconds, device)


def agent_rates(options: Options, device: str) -> dict[str, float]:
    """Environment steps with a box at rest, and SAC updates on the agent's own transitions."""
    perception = Perception.load(options.weights, device)
    sequences = [s.in_memory() for s in synthetic_sequences(4, seed=900)]
    with tempfile.TemporaryDirectory() as folder:
        train = TrainOptions(
            out=Path(folder), environments=1, learning_starts=10**9, coordinates="object"
        )
        environments = make_environments(sequences, perception, train)
        model = make_model(train, environments, device)
        environments.reset()
        at_rest = np.array([AT_REST], np.float32)

        def step() -> None:
            environments.step(at_rest)

        steps = rate(step, options.seconds, device)
        model.learn(train.batch_size)  # fills the buffer, logs to the temporary folder
        updates = rate(lambda: model.train(1, train.batch_size), options.seconds, device)
    return {"environment, steps/s": steps, "agent, updates/s": updates}


def tracking_rates(options: Options, device: str) -> dict[str, float]:
    """Frames of one stream, read beforehand, of the encoder alone and of the agent."""
    sequence = synthetic_sequences(1, seed=901)[0].in_memory()
    factories = {
        "prior": learned_tracker("prior", options.weights, device),
        "agent": agent_tracker(options.weights, device),
    }
    rates = {}
    for name, factory in factories.items():
        tracker = factory(sequence, 0)
        tracker.init(sequence.frame(0), sequence.boxes[0])
        frames = iter(range(10**9))

        def update() -> None:
            tracker.update(sequence.frame(next(frames) % len(sequence)))  # noqa: B023

        rates[f"tracking by {name}, frames/s"] = rate(update, options.seconds, device)
    return rates


if __name__ == "__main__":
    run_script(main)
