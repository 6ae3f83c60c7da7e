"""What the project says of a device before it computes on it."""

import platform
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.options import TrainOptions
from agents.recipes import RecipeOptions, recipe
from bmvtrack.devices import checked_device, knows_bfloat16, warn_of_emulation
from bmvtrack.errors import UserError
from bmvtrack.training import PretrainOptions
from bmvtrack.training import devices as training_devices

CAPABILITIES = {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False, "l2_cache_size": 2**20}


def pretend(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    said = CAPABILITIES | capabilities
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: said, raising=False)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_with_any_of_the_instructions_knows_bfloat16(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **{name: True})
    assert knows_bfloat16("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_emulation("cpu")


def test_a_cpu_without_them_is_named_in_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert knows_bfloat16(torch.device("cpu")) is False
    with pytest.warns(UserWarning, match="CPU that has no instructions"):
        warn_of_emulation("cpu")


def test_of_what_torch_does_not_say_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert knows_bfloat16("cpu") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_emulation("cpu")


@pytest.mark.parametrize(
    ("known", "expected"),
    [(True, {"bf16-mixed", "bfloat16"}), (False, {"32-true", "float32"})],
)
def test_the_weights_are_retrained_in_what_the_device_is_fast_at(
    known: bool, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, avx512_bf16=known)
    options = RecipeOptions(davis=Path("DAVIS"), duts=Path("DUTS"), device="cpu")
    assert {stage.precision for stage in recipe(options).values()} == expected


def test_a_run_may_go_on_in_another_precision() -> None:
    encoder, agent = PretrainOptions(precision="32-true"), TrainOptions(precision="float32")
    assert replace(encoder, precision="bf16-mixed").fixed() == encoder.fixed()
    assert replace(agent, precision="bfloat16").fixed() == agent.fixed()


def test_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert checked_device("auto") == torch.device(expected)
    assert checked_device("cuda:1").index == 1
    with pytest.raises(UserError, match="cuda:2: this machine has 2 CUDA devices"):
        checked_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu", "unknown device 'gpu'"), ("mps", "unknown device 'mps'"), ("cuda", "no CUDA")],
)
def test_devices_that_are_not_there(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        checked_device(name)


@pytest.mark.parametrize(("known", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_trains_in_what_it_is_fast_at(
    known: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, Any] = {}

    class Recorded:
        def __init__(self, **choices: Any) -> None:
            chosen.update(choices)

        def launch(self) -> None:
            """Nothing to launch."""

    monkeypatch.setattr(training_devices, "Fabric", Recorded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: known)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    training_devices.make_fabric("auto", "auto")
    assert (chosen["accelerator"], chosen["precision"]) == ("cuda", precision)


_PASSES = """
import resource

import torch

from bmvtrack.devices import keep_freed_memory

keep_freed_memory()
for _ in range(8):  # by the fourth the heap has settled
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(2**20) for _ in range(50)]
    del maps
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_of_one_pass_is_there_for_the_next() -> None:
    command = [sys.executable, "-c", _PASSES]
    faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(faults) < 1000  # of 51,200 pages
