"""What makes training fast changes nothing of it."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from rectangles import write_rectangles
from torch.utils.flop_counter import FlopCounterMode

from bmvtrack.models import ResNetUNet, load_network
from bmvtrack.prior import named
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.parts import compile_network
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
def test_a_compiled_network_is_the_same_network(monkeypatch, template):
    """Traced whole, without graph breaks; the code generator itself would take minutes here."""
    torch.manual_seed(0)
    plain = ResNetUNet(named("davis16"), width=4, input_size=64, samples=10, template=template)
    compiled = copy.deepcopy(plain)
    compile_eagerly = partial(torch.compile, backend="eager", fullgraph=True)
    names = []

    def record(function):
        names.append(function.__name__)
        return compile_eagerly(function)

    monkeypatch.setattr(torch, "compile", record)
    compile_network(compiled)
    given = ["encode_with_template", "memorize"] if template else []
    assert names == ["encode", *given, "decode"]
    patches = torch.randn(4, 4, 64, 64)
    shown = torch.randn(4, 4, 64, 64) if template else None
    outputs = []
    for network in (plain, compiled):
        output = network(patches, stochastic=False, template=shown)
        (output.logits.square().mean() + output.posterior.mean.square().mean()).backward()
        outputs.append(output)
    first, second = outputs
    torch.testing.assert_close(second.logits, first.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second.posterior.mean, first.posterior.mean, rtol=1e-4, atol=1e-5)
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_compiling_is_an_option_of_a_run(options, monkeypatch):
    """What is saved has the names of the network as it is."""
    names = []
    monkeypatch.setattr(torch, "compile", lambda function: names.append(function) or function)
    pretrain(replace(options, compile=True))
    assert len(names) == 2
    assert load_network(options.out / "last").input_size == 64


def test_arithmetic_is_counted_per_patch(options):
    run = PretrainRun(replace(options, steps=10**6).resolved())
    speeds = dict(training_rates(run, 0.05))
    assert all(value > 0 for value in speeds.values())
    patches = torch.zeros(2, run.network.input_channels, 64, 64)
    with FlopCounterMode(display=False) as forward:
        run.network(patches)
    counted = 1e9 * speeds["pretraining, GFLOP/s"] / speeds["pretraining, patches/s"]
    assert 2.5 < 2 * counted / forward.get_total_flops() < 4  # once forward, twice backward, crops
    assert "aten::" in training_profile(run)


@pytest.mark.gpu
@MODES
@pytest.mark.parametrize("graphed", [True, False])
def test_a_training_step_does_not_wait_for_the_gpu(options, mode, graphed):
    run = PretrainRun(replace(options, mode=mode, device="cuda", steps=10).resolved())
    run.graphed = graphed
    for _ in range(4):  # the last one captures the graph
        run.training_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.training_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
