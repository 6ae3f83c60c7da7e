"""Benchmark of training, environment, agent and tracking on this machine, each against its alternative."""

from __future__ import annotations

import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import SAC

from agents.options import TrainOptions
from agents.replay import TensorReplayBuffer
from agents.sac import LatentPriorSAC
from agents.tracker import agent_tracker
from agents.training import make_environments, make_model
from bmvtrack.bundled import DEFAULT_WEIGHTS, weights_folder
from bmvtrack.console import check_minutes, check_output_folder, deadline, output_console
from bmvtrack.data import sources
from bmvtrack.data.batch import Mode
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.devices import check_choice, checked_device
from bmvtrack.errors import UserError
from bmvtrack.files import write_json
from bmvtrack.motion import AT_REST
from bmvtrack.perception import Perception
from bmvtrack.tracking.learned import learned_tracker
from bmvtrack.training import PretrainOptions
from bmvtrack.training.options import Architecture, TrainingPrecision
from bmvtrack.training.pretrain import PretrainRun
from bmvtrack.training.speed import rate, rates_in_turn, training_profile, training_rates
from envs import BMVTrackEnv, BMVTrackVectorEnv

Part = Literal["training", "environment", "agent", "tracking"]
Unit = Literal["per_second", "bytes"]
_CLIP_LENGTH = 32  # of the environments
_SINGLE = "SyncVectorEnv"
_IN_TURN = 64  # most environments to measure in turns; with more, a step takes too long


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
    """time for each measurement, after a warm-up"""
    mode: Mode = "tracking"
    """mode of pretraining, with its defaults as in pretrain_vae.py"""
    architecture: Architecture = "resnet-unet"
    """architecture of the pretrained network: `resnet-unet`, `beta-mvae` or `beta-mvunet`"""
    width: int | None = None
    """width of the pretrained network; default by architecture"""
    input_size: int | None = None
    """input size of the pretrained network; default by mode"""
    batch_size: int = 32
    """batch size of pretraining"""
    precision: TrainingPrecision = "auto"
    """precision of pretraining, as in pretrain_vae.py"""
    compile: bool = False
    """compile the pretrained network, as in pretrain_vae.py"""
    train_data: tuple[str, ...] = ("synthetic",)
    """data for pretraining, named as for pretrain_vae.py"""
    data: str = "synthetic"
    """sequences for the environments and the agent: `synthetic` or davis16:FOLDER"""
    environments: tuple[int, ...] = (1, 16, 64, 256, 1024)
    """numbers N of parallel environments to measure"""
    most_single: int = 256
    """largest N for which N single environments are stepped as well, which is slow for many"""
    profile: bool = False
    """also print the operators that take most of pretraining's time"""
    max_minutes: float | None = None
    """stop after this many minutes, once the current measurement is done"""
    out: Path | None = None
    """JSON file to write; it is updated after each measurement"""


class TimeIsUp(Exception):
    """The time limit ``--max-minutes`` is reached."""


class Measured:
    """The measurements by name; each is printed and written at once, so an interrupted run loses nothing.

    Args:
        device: device of the measurements.
        out: JSON file to write, or None.
        end: time by the monotonic clock after which nothing more is measured.

    Raises:
        TimeIsUp: by :meth:`note`, after ``end``.
    """

    def __init__(self, device: str, out: Path | None, end: float) -> None:
        self._machine = (
            f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        )
        if device == "cuda":
            self._machine = torch.cuda.get_device_name()
        self._out, self._end, self._console = out, end, output_console()
        self._values: dict[str, dict[str, float]] = {"per_second": {}, "bytes": {}}
        self._console.print(f"{self._machine}; torch {torch.__version__}")

    def note(self, name: str, value: float, unit: Unit = "per_second") -> None:
        """Add a measurement."""
        self._values[unit][name] = value
        shown = f"{value:,.1f} per second" if unit == "per_second" else f"{value:,} bytes"
        self._console.print(f"{name:<52}{shown:>28}", highlight=False)
        if self._out is not None:
            about = {"machine": self._machine, "torch": torch.__version__}
            write_json(self._out, about | self._values)
        if time.monotonic() >= self._end:
            raise TimeIsUp


def run_benchmark(options: BenchmarkOptions) -> None:
    """Run the benchmark, print each measurement as it is done and, if asked for, write them as JSON.

    Raises:
        UserError: if an option is invalid, or data or weights do not exist, before anything is measured; if
            the weights have no agent, when its tracker is to be measured.
    """
    if not 0 < options.seconds < math.inf:
        raise UserError(f"--seconds must be positive and finite, not {options.seconds}")
    if not options.parts or not options.environments or min(options.environments) < 1:
        raise UserError("--parts and --environments need at least one each, and N at least 1")
    check_minutes(options.max_minutes)
    check_choice(options.device)
    if options.out is not None:
        check_output_folder(options.out.parent)
    weights_folder(options.weights)
    sources.fingerprints((options.data, *options.train_data))
    device = str(checked_device(options.device))
    measured = Measured(device, options.out, deadline(options.max_minutes))
    try:
        for part in options.parts:
            # Training and Stable-Baselines3 change these for the whole process, hence for later parts.
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
            PARTS[part](options, device, measured)
    except TimeIsUp:
        print("time is up")


def measure_training(options: BenchmarkOptions, device: str, measured: Measured) -> None:
    """Patches/s and GFLOP/s of pretraining."""
    run = PretrainRun(
        PretrainOptions(
            data=options.train_data,
            mode=options.mode,
            architecture=options.architecture,
            width=options.width,
            input_size=options.input_size,
            batch_size=options.batch_size,
            synthetic_count=8,
            validation_share=0.2,
            longest_side=320,
            steps=10**6,
            device=device,
            precision=options.precision,
            compile=options.compile,
        ).resolved()
    )
    for name, value in training_rates(run, options.seconds):
        measured.note(name, value)
    if options.profile:
        print(training_profile(run))


def measure_environments(options: BenchmarkOptions, device: str, measured: Measured) -> None:
    """Steps/s with boxes that do not move: N single environments stepped one after the other, and one vector
    environment of N, also with the encoder in bfloat16; bytes of its frames."""
    perception = Perception.load(options.weights, device)
    reduced = Perception(perception.network, device, "bfloat16")
    sequences = benchmark_sequences(options)
    for count in options.environments:
        arguments: dict[str, Any] = {
            "sequences": sequences,
            "coordinates": "object",
            "clip_length": _CLIP_LENGTH,
        }
        environments: dict[str, Any] = {}
        if count <= options.most_single:
            makers = [lambda: BMVTrackEnv(weights=perception, **arguments)] * count  # noqa: B023
            environments[_SINGLE] = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        together = BMVTrackVectorEnv(count, weights=perception, **arguments)
        environments["BMVTrackVectorEnv"] = together
        in_half = BMVTrackVectorEnv(count, weights=reduced, **arguments)
        environments["BMVTrackVectorEnv, bfloat16"] = in_half
        at_rest = np.tile(np.array(AT_REST, np.float32), (count, 1))
        steps = {}
        for name, environment in environments.items():
            environment.reset(seed=0)
            steps[name] = partial(environment.step, at_rest)
            warm_up = 3 if count <= _IN_TURN else 1
            if device == "cuda" and name != _SINGLE:
                warm_up = _CLIP_LENGTH + 1  # peak memory is reached when the first clips end
            for _ in range(warm_up):
                environment.step(at_rest)
        rounds = 10 if count <= _IN_TURN else 1
        rates = rates_in_turn(steps, options.seconds, device, rounds, warm_up=0)
        for name, per_second in rates.items():
            measured.note(f"{name}, N = {count}, steps/s", count * per_second)
        measured.note(f"frames of the environments, N = {count}", together.frame_bytes, "bytes")


def measure_agent(options: BenchmarkOptions, device: str, measured: Measured) -> None:
    """Updates/s of the same networks with Stable-Baselines3's loop and with ours, on a GPU also without its
    CUDA graph; steps/s of whole training; bytes of a transition in the replay buffer."""
    perception = Perception.load(options.weights, device)
    sequences = benchmark_sequences(options)
    with tempfile.TemporaryDirectory() as folder:
        train = TrainOptions(out=Path(folder), learning_starts=256)
        model = make_model(train, make_environments(train, perception, sequences), device)
        assert isinstance(model, LatentPriorSAC)
        # Fills the buffer, warms up with one round of updates, and logs to the temporary folder.
        model.learn(train.learning_starts + train.environments)
        updates: dict[str, Callable[[], object]] = {
            "Stable-Baselines3's update, updates/s": partial(SAC.train, model, 1, train.batch_size),
            "our update, updates/s": partial(model.train, 1, train.batch_size),
        }
        if device == "cuda":

            def kernel_by_kernel() -> None:
                model.graphed = False
                model.train(1, train.batch_size)
                model.graphed = True

            updates["our update without a graph, updates/s"] = kernel_by_kernel
        for name, per_second in rates_in_turn(updates, options.seconds, device).items():
            measured.note(name, per_second)
        started, before = time.perf_counter(), model.num_timesteps
        model.learn(round(200 * options.seconds), reset_num_timesteps=False)
        steps = model.num_timesteps - before
        measured.note("agent training, steps/s", steps / (time.perf_counter() - started))
        assert isinstance(model.replay_buffer, TensorReplayBuffer)
        size = model.replay_buffer.bytes_per_transition
        measured.note("a transition in the replay buffer", size, "bytes")


def benchmark_sequences(options: BenchmarkOptions) -> list[VideoSequence]:
    """Synthetic sequences, or those of ``--data``, in memory."""
    if options.data == "synthetic":
        return [sequence.in_memory() for sequence in synthetic_sequences(8, seed=900)]
    return [sequence.in_memory() for sequence in sources.load_sequences(options.data)]


def measure_tracking(options: BenchmarkOptions, device: str, measured: Measured) -> None:
    """Frames/s of one stream of preloaded frames, for the encoder alone and for the agent."""
    sequence = synthetic_sequences(1, seed=901)[0].in_memory()
    factories = {
        "prior": learned_tracker("prior", options.weights, device),
        "agent": agent_tracker(options.weights, device),
    }
    for name, factory in factories.items():
        tracker = factory(sequence, 0)
        tracker.init(sequence.frame(0), sequence.boxes[0])
        frames = iter(range(10**9))

        def update() -> None:
            tracker.update(sequence.frame(next(frames) % len(sequence)))  # noqa: B023

        measured.note(f"tracking by {name}, frames/s", rate(update, options.seconds, device))


PARTS: dict[Part, Callable[[BenchmarkOptions, str, Measured], None]] = {
    "training": measure_training,
    "environment": measure_environments,
    "agent": measure_agent,
    "tracking": measure_tracking,
}
