"""What makes training fast changes nothing of it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from rectangles import write_rectangles
from torch.utils.flop_counter import FlopCounterMode

from bmvtrack.models import load_network
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.pretrain import PretrainRun
from bmvtrack.training.speed import training_profile, training_rates

MODES = pytest.mark.parametrize("mode", ["paper", "tracking"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture
def options(data, tmp_path):
    small = {"width": 4, "input_size": 64, "samples": 10, "steps": 2, "batch_size": 4}
    return PretrainOptions(
        out=tmp_path / "run", data=data, **small, validation_share=0.3, device="cpu"
    )


@pytest.mark.parametrize("template", [False, True])
def test_a_compiled_run_is_the_same_run(options, tmp_path, monkeypatch, template):
    """Traced whole, without graph breaks; the code generator itself would take minutes here."""
    options = replace(options, template=template)
    expected = pretrain(options)
    compile_eagerly = partial(torch.compile, backend="eager", fullgraph=True)
    names = []

    def record(function):
        names.append(function.__name__)
        return compile_eagerly(function)

    monkeypatch.setattr(torch, "compile", record)
    compiled = pretrain(replace(options, out=tmp_path / "compiled", compile=True))
    assert compiled == pytest.approx(expected, rel=1e-4)
    given = ["encode_given", "memorize"] if template else []
    assert names == ["encode", *given, "decode"]
    for out in (options.out, tmp_path / "compiled"):
        assert load_network(out / "last").input_size == 64


def test_arithmetic_is_counted_per_patch(options):
    run = PretrainRun(replace(options, steps=10**6).resolved())
    speeds = training_rates(run, 0.05)
    assert all(value > 0 for value in speeds.values())
    patches = torch.zeros(2, run.network.input_channels, 64, 64)
    with FlopCounterMode(display=False) as forward:
        run.network(patches)
    counted = 1e9 * speeds["pretraining, GFLOP/s"] / speeds["pretraining, patches/s"]
    assert 2.5 < 2 * counted / forward.get_total_flops() < 4  # once forward, twice backward, crops
    assert "aten::" in training_profile(run)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@MODES
def test_a_training_step_does_not_wait_for_the_gpu(options, mode):
    run = PretrainRun(replace(options, mode=mode, device="cuda", steps=10).resolved())
    for _ in range(3):
        run.training_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.training_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
