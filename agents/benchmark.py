"""Speed on this machine: training, environment, agent and tracking, each beside what it competes with."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from rich.table import Table
from stable_baselines3 import SAC
from torch.utils.data import DataLoader, IterableDataset

from agents.options import TrainOptions
from agents.tracker import agent_tracker
from agents.training import make_environments, make_model
from bmvtrack.data import sources
from bmvtrack.data.batch import Batch, BatchSource
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.devices import resolved_device
from bmvtrack.errors import UserError
from bmvtrack.files import write_text
from bmvtrack.motion import AT_REST
from bmvtrack.perception import DEFAULT_WEIGHTS, Perception
from bmvtrack.tracking.learned import learned_tracker
from bmvtrack.training import PretrainOptions
from bmvtrack.training.objective import objective
from bmvtrack.training.parts import build_network
from bmvtrack.training.pretrain import PretrainRun
from envs import BMVTrackEnv, BMVTrackVectorEnv

Part = Literal["training", "environment", "agent", "tracking"]


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measure training patches/s, environment steps/s, agent updates/s and tracking frames/s."""

    parts: tuple[Part, ...] = get_args(Part)
    """what to measure"""
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
    data: str = "synthetic"
    """sequences that environments and agent see: `synthetic` or davis16:FOLDER"""
    environments: tuple[int, ...] = (1, 16, 64)
    """numbers N of environments side by side"""
    most_single: int = 64
    """of these, most that single environments are stepped for in turn"""
    out: Path | None = None
    """JSON file to write"""


def run_benchmark(options: BenchmarkOptions) -> None:
    """Measure, print a table and, if asked for, write it as JSON.

    Raises:
        UserError: on an option that cannot be, before anything is measured.
    """
    if options.seconds <= 0:
        raise UserError(f"--seconds must be positive, not {options.seconds}")
    if not options.parts or not options.environments or min(options.environments) < 1:
        raise UserError("--parts and --environments need at least one each, and numbers from 1 on")
    device = resolved_device(options.device)
    measured: dict[str, float] = {}
    for part in options.parts:
        measured |= PARTS[part](options, device)
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


def rates_in_turn(
    steps: Mapping[str, Callable[[], object]], seconds: float, device: str, rounds: int = 20
) -> dict[str, float]:
    """:func:`rate` of each step, in short turns: other load on the machine weighs on all alike.

    Args:
        steps: by name.
        seconds: for each.
        device: that they run on.
        rounds: of turns; the median counts.
    """
    turns = [
        {name: rate(step, seconds / rounds, device, warm_up=1) for name, step in steps.items()}
        for _ in range(rounds)
    ]
    return {name: float(np.median([turn[name] for turn in turns])) for name in steps}


def training_rates(options: BenchmarkOptions, device: str) -> dict[str, float]:
    """Patches/s of whole pretraining steps in tracking mode, and of a plain loop over the same."""
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
    ours = options.batch_size * rate(run.training_step, options.seconds, device)
    plain = options.batch_size * rate(plain_step(run, options.batch_size), options.seconds, device)
    return {"pretraining, patches/s": ours, "plain loop over a DataLoader, patches/s": plain}


class OneByOne(IterableDataset[Batch]):
    """The run's samples as a data set gives them: one at a time, from workers."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        while True:
            yield self.source.draw(1, generator)


def plain_step(run: PretrainRun, batch_size: int) -> Callable[[], None]:
    """What one writes first: a DataLoader with workers, float32, NCHW, the same network and loss."""
    device = run.fabric.device
    network = build_network(run.options).to(device)
    optimizer = torch.optim.AdamW(network.parameters())
    source = OneByOne(run.train_sampler)
    workers = min(8, os.cpu_count() or 1) if device.type == "cpu" else 0
    loader = DataLoader(source, batch_size, num_workers=workers, collate_fn=Batch.cat)
    batches = iter(loader)

    def step() -> None:
        batch = next(batches)
        batch = batch.to(device)
        output = network(batch.patches)
        terms = objective(output, batch, network.bottleneck, 0.01, 0.1, class_weights="none")
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()

    return step


def environment_rates(options: BenchmarkOptions, device: str) -> dict[str, float]:
    """Steps/s with boxes at rest: N single environments in turn, and N stepped together, these also with
    the encoder in bfloat16."""
    perception = Perception.load(options.weights, device)
    reduced = Perception(perception.network, device, "bfloat16")
    sequences = benchmark_sequences(options)
    rates = {}
    for count in options.environments:
        arguments: dict[str, Any] = {"sequences": sequences, "coordinates": "object"}
        makers = [lambda: BMVTrackEnv(weights=perception, **arguments)] * count  # noqa: B023
        one_by_one = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        environments = {
            "SyncVectorEnv": one_by_one,
            "BMVTrackVectorEnv": BMVTrackVectorEnv(count, weights=perception, **arguments),
            "BMVTrackVectorEnv, bfloat16": BMVTrackVectorEnv(count, weights=reduced, **arguments),
        }
        at_rest = np.tile(np.array(AT_REST, np.float32), (count, 1))
        for name, environment in environments.items():
            if environment is one_by_one and count > options.most_single:
                continue
            environment.reset(seed=0)
            step = partial(environment.step, at_rest)
            rates[f"{name}, N = {count}, steps/s"] = count * rate(step, options.seconds, device)
    return rates


def agent_rates(options: BenchmarkOptions, device: str) -> dict[str, float]:
    """Updates/s of the same networks by Stable-Baselines3's loop and by ours; whole training."""
    perception = Perception.load(options.weights, device)
    sequences = benchmark_sequences(options)
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        train = TrainOptions(out=Path(folder), learning_starts=256)
        model = make_model(train, make_environments(train, perception, sequences), device)
        model.learn(512)  # fills the buffer, warms up, logs to the temporary folder
        updates = {
            "Stable-Baselines3's update, updates/s": partial(SAC.train, model, 1, train.batch_size),
            "our update, updates/s": partial(model.train, 1, train.batch_size),
        }
        rates |= rates_in_turn(updates, options.seconds, device)
        started, before = time.perf_counter(), model.num_timesteps
        model.learn(round(200 * options.seconds), reset_num_timesteps=False)
        steps = model.num_timesteps - before
        rates["agent training, steps/s"] = steps / (time.perf_counter() - started)
    return rates


def benchmark_sequences(options: BenchmarkOptions) -> list[VideoSequence]:
    """Synthetic sequences, or those of ``--data``, in memory."""
    if options.data == "synthetic":
        return [sequence.in_memory() for sequence in synthetic_sequences(8, seed=900)]
    return [sequence.in_memory() for sequence in sources.load_sequences(options.data)]


def tracking_rates(options: BenchmarkOptions, device: str) -> dict[str, float]:
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


PARTS: dict[Part, Callable[[BenchmarkOptions, str], dict[str, float]]] = {
    "training": training_rates,
    "environment": environment_rates,
    "agent": agent_rates,
    "tracking": tracking_rates,
}
