"""Two processes (gloo, CPU) against one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks
from rectangles import write_rectangles
from runs import assert_equal, final_state

from bmvtrack import distributed, prior
from bmvtrack.distributed import all_gather, all_sum, rank, rank_count
from bmvtrack.errors import UserError
from bmvtrack.models import ResNetUNet, load_network
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.devices import memory_format

SCRIPT = Path(__file__).parents[1] / "scripts" / "pretrain_vae.py"
ALONE = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
ALONE |= {"OMP_NUM_THREADS": "1"}
REDUCTIONS = pytest.mark.parametrize("reduction", two_ranks.REDUCTIONS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def both(data, tmp_path_factory):
    """The folder that two ranks left, and what they printed."""
    out = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [sys.executable, *torchrun, two_ranks.__file__, str(out), *data],
        capture_output=True,
        text=True,
        env=ALONE,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def ranks(both, reduction):
    """What each rank computed."""
    return [torch.load(both[0] / f"rank{rank}.pt")[reduction] for rank in (0, 1)]


@REDUCTIONS
def test_two_ranks_have_the_posterior_and_the_gradients_of_one_process(both, reduction):
    parts = ranks(both, reduction)
    whole = two_ranks.one_pass(reduction, slice(None), lambda network: network)
    for part in parts:
        torch.testing.assert_close(part["covariance"], whole["covariance"])
        for name, gradient in part["gradients"].items():
            scale = whole["gradients"][name].abs().max().item()
            torch.testing.assert_close(
                gradient, whole["gradients"][name], rtol=1e-3, atol=1e-4 * scale, msg=name
            )


@REDUCTIONS
def test_the_mean_of_the_ranks_losses_is_the_loss_of_the_whole_batch(both, reduction):
    """Class weights and soft Jaccard are of the whole batch, though one rank lacks a class."""
    first, second = (part["terms"] for part in ranks(both, reduction))
    whole = two_ranks.one_pass(reduction, slice(None), lambda network: network)["terms"]
    for name, value in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, value, rtol=1e-4, atol=1e-5)
    assert first["jaccard"] == second["jaccard"]
    assert first["cross_entropy"] != second["cross_entropy"]


def test_stopped_and_resumed_on_two_ranks_equals_not_stopped(both):
    out, printed = both
    # All stop when the first says so, and it says so.
    assert printed.count("time is up at step 2") == 1
    assert printed.count("at step 2 of 4") == 1
    assert printed.count("step 4: ") == 2
    states = [final_state(out / name) for name in ("straight", "stopped")]
    assert_equal(*states)
    for name in ("generators", "noises"):
        assert len(states[0][name]) == 2
        assert not torch.equal(*states[0][name])


def test_a_run_goes_on_with_as_many_ranks_only(both, data):
    out = both[0] / "straight"
    options = PretrainOptions(out=out, data=data, mode="paper", width=4, input_size=64, samples=10)
    options = {**vars(options), "steps": 4, "batch_size": 4, "validate_every": 2, "device": "cpu"}
    with pytest.raises(UserError, match="on 2 devices in total, but this one is on 1; resume"):
        pretrain(PretrainOptions(**options | {"validation_share": 0.3, "resume": True}))


def script(data, out, *arguments):
    small = ["--width=2", "--input-size=64", "--steps=2", "--validation-share=0.3", "--device=cpu"]
    command = [sys.executable, str(SCRIPT), "--data", *data, "--out", str(out), *small, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ALONE, timeout=200)


def test_the_script_starts_its_own_ranks(data, tmp_path):
    result = script(data, tmp_path / "run", "--devices", "2", "--batch-size", "4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("step 2: ") == 1
    assert load_network(tmp_path / "run" / "last").input_size == 64
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_all_ranks_stop_where_the_first_one_has_to(both):
    """None waits for another."""
    first, second = ranks(both, "told")
    assert "another process is writing to" in first["in use"]
    assert "tensorboard" in first["no log"]
    assert "File too large" in first["full"]
    assert set(second.values()) == {"rank 1 stops because rank 0 did"}
    assert second.keys() == first.keys()
    assert not list((both[0] / "full").rglob("*.pt"))


def test_one_process_is_alone():
    values = torch.tensor([1.0, 2])
    assert (rank(), rank_count()) == (0, 1)
    assert all_sum(values) is values
    assert torch.equal(all_gather(values), values[None])


def test_narrow_networks_keep_their_layout_on_a_cpu():
    """A strided 1×1 convolution of 8 channels corrupts memory with channels last (torch 2.15)."""
    formats = [
        memory_format(ResNetUNet(prior.named("paper"), width=width), torch.device(device))
        for width, device in ((4, "cpu"), (8, "cpu"), (16, "cpu"), (8, "cuda"))
    ]
    assert formats == [torch.contiguous_format] * 2 + [torch.channels_last] * 2


def test_a_batch_is_shared_equally(both):
    out, printed = both
    assert "--batch-size 5 is not divisible by the number of devices, 2" in printed
    assert not (out / "unequal").exists()


def test_torchrun_decides_how_many(data, tmp_path, monkeypatch):
    started = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    for key, value in started.items():
        monkeypatch.setenv(key, value)
    for option, has in (("devices", 4), ("nodes", 2)):
        with pytest.raises(UserError, match=f"--{option} 3, but torchrun started {has}; omit"):
            pretrain(PretrainOptions(out=tmp_path, data=data, device="cpu", **{option: 3}))


def test_what_is_summed_over_ranks_is_left_alone(monkeypatch):
    monkeypatch.setattr(distributed, "rank_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(2))
    values = torch.tensor([1.0, 2], requires_grad=True)
    total = all_sum(values)
    (2 * total).sum().backward()
    assert values.tolist() == [1, 2]
    assert total.tolist() == [2, 4]
    assert values.grad.tolist() == [4, 4]
