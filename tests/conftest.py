from __future__ import annotations

import gc
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as processors, of one thread each
    os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

if TYPE_CHECKING:  # the process that hands out the tests must not wait for torch
    from pretended_graphs import PretendedGraph

    from bmvtrack.data.sequence import VideoSequence
    from bmvtrack.perception import Perception

ROOT = Path(__file__).parents[1]

settings.register_profile("busy machine", deadline=None, max_examples=60)
settings.load_profile("busy machine")


@pytest.fixture(scope="session", autouse=True)
def short_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test needs long measurements and validations, or the same sequence made again.

    Nor does any leave the folders behind that Stable-Baselines3 makes for its logs.
    """
    from bmvtrack.data import sources
    from bmvtrack.training import speed
    from bmvtrack.training.pretrain import PretrainRun

    with pytest.MonkeyPatch.context() as patch:
        loop = sys.modules[PretrainRun.__module__]  # the package gives the function of that name
        patch.setattr(loop, "_VALIDATION_BATCHES", 2)
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("logs")))
        patch.setitem(speed._SIDES, "cpu", 128)
        patch.setattr(speed, "_PROFILED_STEPS", 1)
        made = lru_cache(maxsize=16)(remembered_sequences)
        patch.setattr(sources, "synthetic_sequences", lambda *given: list(made(*given)))
        yield


def remembered_sequences(count: int, seed: int) -> list[VideoSequence]:
    """Synthetic sequences of which no frame is rendered twice."""
    from bmvtrack.data.synthetic import synthetic_sequences

    return [
        replace(made, read_frame=lru_cache(made.read_frame), read_mask=lru_cache(made.read_mask))
        for made in synthetic_sequences(count, seed)
    ]


def pytest_collection_finish() -> None:
    """What was imported stays: garbage need not be looked for there, which takes half a second each time."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


class Done(NamedTuple):
    """A script's exit status, output and error output."""

    status: int
    printed: str
    errors: str


@pytest.fixture
def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs a script (by name, or by its path) in this process: one of its own takes seconds to start."""

    def run(name: str | Path, *arguments: object) -> Done:
        script = str(ROOT / "scripts" / name)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Done(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data of ../shared/data, which is not there")
    return folder


@pytest.fixture(scope="session")
def perception() -> Perception:
    """A small network that has learned nothing, from a fixed seed."""
    import torch

    from bmvtrack import prior
    from bmvtrack.models import ResNetUNet
    from bmvtrack.perception import Perception

    torch.manual_seed(0)
    return Perception(ResNetUNet(prior.named("davis16"), width=8, input_size=64))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[PretendedGraph]:
    """Graphs that need no GPU, in the place of captured ones."""
    from pretended_graphs import PretendedGraph

    from bmvtrack import cuda_graphs, perception_graphs

    for module in (cuda_graphs, perception_graphs):
        monkeypatch.setattr(module, "Captured", PretendedGraph)
    monkeypatch.setattr(PretendedGraph, "made", 0)
    return PretendedGraph
