"""The fused RAdam takes torch's steps, and either goes on with the other's state."""

import copy

import pytest
import torch
from fake_gpu import FakeGPU

from bmvtrack.training import PretrainOptions
from bmvtrack.training.parts import build_optimizer
from bmvtrack.training.radam import FusedRAdam

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
KINDS = {"torch": torch.optim.RAdam, "fused": FusedRAdam}


def network(device="cpu"):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(5, 4, 1), torch.nn.BatchNorm2d(4)]
    return torch.nn.Sequential(*layers).to(device, memory_format=torch.channels_last)


def take_steps(model, optimizer, steps, rate=1e-2):
    """Each with gradients, and at a rate, of its own."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for number, parameter in enumerate(model.parameters()):
            gradient = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.grad = torch.empty_like(parameter).copy_(gradient * 10.0 ** (number - 3))
        optimizer.param_groups[0]["lr"] = rate * (1 + step % 3)
        optimizer.step()


def assert_alike(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@DEVICES
def test_its_steps_are_torchs(device):
    models = {name: network(device) for name in KINDS}
    before = copy.deepcopy(models["torch"])
    optimizers = {name: kind(models[name].parameters(), 1e-2) for name, kind in KINDS.items()}
    for step in range(20):
        for name, model in models.items():
            take_steps(model, optimizers[name], [step])
        assert_alike(*models.values())
    for a, b in zip(before.parameters(), models["fused"].parameters(), strict=True):
        assert (a - b).abs().mean() > 1e-3


@DEVICES
@pytest.mark.parametrize("first", [3, 8])
@pytest.mark.parametrize(("before", "after"), [("torch", "fused"), ("fused", "torch")])
def test_either_goes_on_with_the_others_state(device, first, before, after):
    whole, parted = network(device), network(device)
    take_steps(whole, torch.optim.RAdam(whole.parameters(), 1e-2), range(12))
    optimizer = KINDS[before](parted.parameters(), 1e-2)
    take_steps(parted, optimizer, range(first))
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = KINDS[after](parted.parameters(), 1e-2)
    optimizer.load_state_dict(state)
    take_steps(parted, optimizer, range(first, 12))
    assert_alike(whole, parted)
    assert {s["step"].device.type for s in optimizer.state.values()} == {"cpu"}
    assert {float(s["step"]) for s in optimizer.state.values()} == {12}


def test_weights_that_missed_steps_have_their_own_count():
    models = {name: network() for name in KINDS}
    for name, model in models.items():
        optimizer = KINDS[name](model.parameters(), 1e-2)
        for step in range(12):
            take_steps(model[0], optimizer, [step])
            model.zero_grad()
            if step % 2:
                take_steps(model[1], optimizer, [step])
                model.zero_grad()
    assert_alike(*models.values())


def test_a_copy_goes_on():
    model = network()
    optimizer = FusedRAdam(model.parameters(), 1e-2)
    take_steps(model, optimizer, range(8))
    other, copied = copy.deepcopy((model, optimizer))
    for one, its in ((model, optimizer), (other, copied)):
        take_steps(one, its, range(8, 10))
    assert_alike(model, other)


def test_a_gradient_of_nothing_moves_nothing():
    model = network()
    before = copy.deepcopy(model)
    optimizer = FusedRAdam(model.parameters(), 1e-2)
    for _ in range(8):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for a, b in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_no_step_waits_for_a_gpu():
    gpu, model = FakeGPU(), network()
    optimizer = FusedRAdam(model.parameters(), 1e-2)
    take_steps(model, optimizer, range(2))
    hosts = [state["step"] for state in optimizer.state.values()]
    gpu.move([model, optimizer])
    for state, step in zip(optimizer.state.values(), hosts, strict=True):
        state["step"] = step
    with gpu.running():
        for _ in range(8):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()


@pytest.mark.parametrize(("device", "kind"), [("cpu", torch.optim.RAdam), ("cuda", FusedRAdam)])
def test_gpus_get_the_fused_one(tmp_path, device, kind):
    options = PretrainOptions(out=tmp_path, data=("synthetic",), mode="paper").resolved()
    optimizer, _ = build_optimizer(network(), options, torch.device(device))
    assert type(optimizer) is kind
