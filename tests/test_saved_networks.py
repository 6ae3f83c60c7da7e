"""Networks on disk: whole or not at all, and refused where they do not fit."""

import json
import shutil

import pytest
import torch
from folders import full_disk
from networks import assert_same, change_config
from safetensors.torch import load_file, save_file

from bmvtrack import prior
from bmvtrack.errors import UserError
from bmvtrack.models import ResNetUNet, load_network

DAVIS = prior.named("davis16")


@pytest.fixture
def saved(tmp_path):
    """A folder of weights."""
    torch.manual_seed(0)
    ResNetUNet(DAVIS, width=4, input_size=64).save_weights(tmp_path / "weights")
    return tmp_path / "weights"


def test_the_configuration_is_for_people_too(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["architecture"] == "ResNetUNet"
    assert config["width"] == 4
    assert config["prior"] == DAVIS.to_json()
    assert config["covariance"] == "frame"


def test_half_precision_keeps_what_it_cannot_hold(tmp_path):
    network = ResNetUNet(DAVIS, width=4, input_size=64)
    network.stem[1].running_var.fill_(1e6)
    network.save_weights(tmp_path)
    assert load_network(tmp_path).stem[1].running_var[0] == 1e6


def test_saving_replaces_what_was_there(saved):
    (saved / "old.txt").touch()
    ResNetUNet(DAVIS, width=2, input_size=64).save_weights(saved)
    assert load_network(saved).feature_count == 8
    assert not (saved / "old.txt").exists()
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_failed_save_leaves_what_was_there(saved):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    network = ResNetUNet(DAVIS, width=2, input_size=64)
    for save in (network.save_weights, lambda folder: network.save_weights(folder / "new")):
        with full_disk(5000), pytest.raises(OSError, match="File too large"):
            save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"no weights in .*weights: {name} is missing"):
        load_network(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "config.json does not describe a network"),
        ("[1, 2]", "config.json does not describe a network"),
        ('{"width": 4}', "its architecture is None, not one of ResNetUNet"),
        ('{"architecture": ["ResNetUNet"]}', "config.json does not describe a network"),
        ('{"architecture": "ResNetUNet"}', "config.json does not describe a network: .*prior"),
    ],
)
def test_a_configuration_of_nothing_is_refused(saved, content, message):
    (saved / "config.json").write_text(content)
    assert_refused(saved, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "Transformer"},
            "its architecture is 'Transformer', not one of ResNetUNet",
        ),
        ({"prior": {"mean": [1, 2]}}, "config.json does not describe a network: .*covariance"),
        ({"input_size": 100}, "config.json does not describe a network: .*multiple of 64"),
        ({"depth": 3}, "config.json does not describe a network: .*depth"),
        ({"width": "wide"}, "config.json does not describe a network"),
        ({"width": 8}, r"model.safetensors does not fit the network of .*: \S+ is \(.*\) in the"),
        ({"input_channels": 3}, r"stem.0.weight is \(4, 4, 7, 7\) in the file and \(4, 3, 7, 7\)"),
        ({"samples": 10}, "bottleneck.covariance_head.bias is"),
    ],
)
def test_a_configuration_of_another_network_is_refused(saved, changes, message):
    change_config(saved, **changes)
    assert_refused(saved, message)


def assert_refused(folder, message):
    for load in (load_network, ResNetUNet.from_pretrained):
        with pytest.raises(UserError, match=message) as error:
            load(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 500, -100])
def test_damaged_weights_are_refused(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(saved, "model.safetensors is damaged")


def test_weights_with_a_tensor_too_few_or_too_many_are_refused(saved):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"extra": torch.zeros(3)}, path)
    assert_refused(saved, r"extra is \(3,\) in the file and absent in the network")
    del tensors["stem.0.weight"]
    save_file(tensors, path)
    assert_refused(saved, r"stem.0.weight is missing in the file")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no weights in .*nowhere"):
        load_network(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no folder .*nowhere, and not on the Hub either") as error:
        ResNetUNet.from_pretrained(tmp_path / "nowhere")
    assert "\n" not in str(error.value)


def test_another_architecture_is_not_what_was_asked_for(saved):
    class Other(ResNetUNet):
        pass

    with pytest.raises(UserError, match=r"holds a ResNetUNet, not a Other"):
        Other.from_pretrained(saved)


def test_a_copied_folder_works(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    assert_same(load_network(tmp_path / "copy"), load_network(saved), 0)


def test_weights_that_name_their_threshold_as_before_are_read(tmp_path):
    network = ResNetUNet(prior.named("davis16"), width=4, input_size=64, samples=6)
    network.box_threshold = 0.35
    network.save_weights(tmp_path / "weights")
    path = tmp_path / "weights" / "config.json"
    path.write_text(path.read_text().replace("box_threshold", "box_cut"))
    assert load_network(tmp_path / "weights").box_threshold == 0.35
