"""Pretraining runs: started quietly, and compared to the bit."""

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from rich.console import Console

from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.checkpoint import load_checkpoint
from bmvtrack.training.pretrain import PretrainRun


def small_run(out, data):
    """Options of a run of six steps, validated after three."""
    return PretrainOptions(
        out=out,
        data=data,
        width=4,
        input_size=64,
        samples=10,
        steps=6,
        batch_size=4,
        validate_every=3,
        validation_share=0.3,
        device="cpu",
    )


def train(options, banks=None, **changes):
    """Train quietly; returns the metrics and what was printed."""
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    return pretrain(dataclasses.replace(options, **changes), console, banks), printed.getvalue()


def assert_equal(first, second, path=""):
    """Nested dictionaries and lists of tensors and numbers, equal to the bit."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_equal(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{path}/{i}")
    else:
        assert first == second, path


def final_state(out):
    """What a run ended with, apart from its best loss so far (a stop adds a validation)."""
    state = load_checkpoint(out / "checkpoints")
    del state["best"]
    return state


@contextmanager
def killed_at(last: int) -> Iterator[None]:
    """What is run in here is killed when it has made so many steps."""
    step = PretrainRun.training_step

    def killed(run: PretrainRun) -> dict[str, torch.Tensor]:
        if run.step == last:
            raise KeyboardInterrupt
        return step(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainRun, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            yield
