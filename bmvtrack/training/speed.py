"""Speed of pretraining: patches/s against a plain training loop, GFLOP/s against matrix products."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.flop_counter import FlopCounterMode

from bmvtrack.cuda_graphs import plain_calls
from bmvtrack.data.batch import Batch, BatchSource
from bmvtrack.models import fused_norm
from bmvtrack.training.parts import build_network, build_optimizer, build_samplers
from bmvtrack.training.pretrain import PretrainRun

_SIDES = {"cpu": 2048, "cuda": 8192}  # sides of matrices that saturate a device
_PROFILED_STEPS, _PROFILED_ROWS = 3, 20
_WARM_UP = 5  # steps; by the fourth, the graph is captured


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
    steps: Mapping[str, Callable[[], object]],
    seconds: float,
    device: str,
    rounds: int = 20,
    warm_up: int = 1,
) -> dict[str, float]:
    """:func:`rate` of each step, measured in short turns so that other load affects all steps alike.

    Args:
        steps: functions to measure, by name.
        seconds: total time for each.
        device: device that they run on.
        rounds: number of turns; the median is returned.
        warm_up: calls before each turn.
    """
    turns = [
        {name: rate(step, seconds / rounds, device, warm_up) for name, step in steps.items()}
        for _ in range(rounds)
    ]
    return {name: float(np.median([turn[name] for turn in turns])) for name in steps}


def training_rates(run: PretrainRun, seconds: float) -> Iterator[tuple[str, float]]:
    """Patches/s of complete pretraining steps and of a plain training loop; GFLOP/s of the former.

    Where steps are launched as a CUDA graph, patches/s are also measured with torch's batch norms, and
    without the graph. Operations are counted during a step (matrix products of the forward and backward
    passes and of cropping); the device's peak rate is measured on products of large matrices in the same
    precision.

    Args:
        run: run to measure; this trains its network.
        seconds: time for each measurement.

    Yields:
        Name and value of each measurement, as soon as it is done.
    """
    device, count = run.fabric.device, run.batch_size
    ours = count * rate(run.training_step, seconds, device.type, _WARM_UP)
    yield "pretraining, patches/s", ours
    if run.graphed:
        with fused_norm.not_fused():
            unfused = rate(run.training_step, seconds, device.type, _WARM_UP)
        yield "pretraining with torch's batch norms, patches/s", count * unfused
    with plainly(run) as was_graphed:
        if was_graphed:
            plain = rate(run.training_step, seconds, device.type)
            yield "pretraining without a graph, patches/s", count * plain
        with FlopCounterMode(display=False) as counter:
            run.training_step()
    yield "pretraining, GFLOP/s", 1e-9 * counter.get_total_flops() / count * ours
    yield "products of matrices, GFLOP/s", matrix_rate(device, precision_of(run), seconds)
    looped = rate(plain_step(run), seconds, device.type)
    yield "plain loop over a DataLoader, patches/s", count * looped


@contextmanager
def plainly(run: PretrainRun) -> Iterator[bool]:
    """Launch a run's steps without CUDA graphs, which would hide operators; yield whether it had them."""
    graphed, run.graphed = run.graphed, False
    try:
        with plain_calls():
            yield graphed
    finally:
        run.graphed = graphed


def precision_of(run: PretrainRun) -> torch.dtype:
    """The precision of convolutions and matrix products."""
    reduced = run.fabric.strategy.precision.precision == "bf16-mixed"
    return torch.bfloat16 if reduced else torch.float32


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """GFLOP/s of products of square matrices large enough to saturate the device."""
    side = _SIDES[device.type]
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 1e-9 * 2 * side**3 * rate(lambda: first @ second, seconds, device.type)


def training_profile(run: PretrainRun) -> str:
    """A table of the operators that take most of the time of a few training steps, the slowest first."""
    on_gpu = run.fabric.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with plainly(run):
        run.training_step()
        with profile(activities=activities) as recorded:
            for _ in range(_PROFILED_STEPS):
                run.training_step()
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table: str = recorded.key_averages().table(sort_by=key, row_limit=_PROFILED_ROWS)
    return table


class OneByOne(IterableDataset[Batch]):
    """The run's samples as an iterable data set: one at a time, drawn in worker processes."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        while True:
            yield self.source.draw(1, generator)


def plain_step(run: PretrainRun) -> Callable[[], None]:
    """A plain training loop: DataLoader with workers, float32, NCHW; the same network, loss, optimiser."""
    options, device = run.options, run.fabric.device
    network = build_network(options, run.network.classes).to(device)
    optimizer, _ = build_optimizer(network, options, device)
    workers = min(8, os.cpu_count() or 1)
    sampler = run.train_sampler
    if device.type != "cpu":  # workers draw on the CPU
        sampler, _ = build_samplers(options, torch.device("cpu"))
    source = OneByOne(sampler)
    loader = DataLoader(source, run.batch_size, num_workers=workers, collate_fn=Batch.cat)
    batches = iter(loader)

    def step() -> None:
        batch = next(batches).to(device)
        output = network(batch.patches)
        terms = run.loss_terms(output, batch, network.bottleneck)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()

    return step
