"""The import of published checkpoints as a user starts it."""

import json
from functools import partial

import pytest
import torch

from bmvtrack.models import BetaMVUNet, load_network
from bmvtrack.prior import named


@pytest.fixture
def run(tmp_path, monkeypatch, run_script):
    """Runs the script in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return partial(run_script, "import_checkpoint.py")


@pytest.fixture
def checkpoint(tmp_path):
    """A small βMVUnet's tensors under their published names."""
    heads = {"mean_head": "fc_mu", "covariance_head": "fc_var"}
    network = BetaMVUNet(named("paper"), width=2, input_size=128, alignment="padded")
    tensors = {}
    for name, value in network.state_dict().items():
        part, _, rest = name.removeprefix("bottleneck.").partition(".")
        tensors[f"{heads.get(part, part)}.{rest}"] = value
    torch.save({"state_dict": tensors}, tmp_path / "published.ckpt")
    return network


def test_a_checkpoint_becomes_a_folder_of_weights(run, checkpoint, tmp_path):
    status, printed, errors = run("published.ckpt", "weights/mvunet")
    assert (status, errors) == (0, "")
    parameters = sum(p.numel() for p in checkpoint.parameters())
    assert printed == (
        f"weights/mvunet: BetaMVUNet, {parameters:,} parameters, 66 classes, S = 50, 128×128×3\n"
    )
    network = load_network(tmp_path / "weights" / "mvunet")
    for name, value in network.state_dict().items():
        assert torch.equal(value, checkpoint.state_dict()[name]), name
    config = json.loads((tmp_path / "weights" / "mvunet" / "config.json").read_text())
    assert config["alignment"] == "padded"
    assert config["reduction"] == "mean"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.ckpt", "weights"), "error: no file nowhere.ckpt"),
        (("published.ckpt", "."), "error: . already exists; give another folder"),
        (("published.ckpt", "published.ckpt"), "error: published.ckpt already exists"),
        (("damaged.ckpt", "weights"), "error: damaged.ckpt is not a checkpoint, or damaged"),
    ],
)
def test_mistakes_end_in_one_line_and_nothing_is_written(
    run, checkpoint, tmp_path, arguments, message
):
    (tmp_path / "damaged.ckpt").touch()
    before = sorted(tmp_path.iterdir())
    status, printed, errors = run(*arguments)
    assert (status, printed) == (2, "")
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_help_teaches(run):
    status, printed, _ = run("--help")
    assert status == 0
    assert "Lightning checkpoint of βMVAE or βMVUnet" in printed
    assert "(required)" in printed
