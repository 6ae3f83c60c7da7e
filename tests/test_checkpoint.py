"""Checkpoints survive damage and never unpickle."""

import pickle

import pytest
import torch
from folders import full_disk

from bmvtrack.errors import UserError
from bmvtrack.files import listed
from bmvtrack.training.checkpoint import (
    KEPT,
    checkpoints,
    held_run,
    load_checkpoint,
    save_checkpoint,
)

STATE = {
    "network": {"weight": torch.arange(5000.0)},
    "step": 3,
    "best": 0.25,
    "options": "{}",
    "list": [1, 2.0, None, True],
}


def save(folder, *steps):
    return [save_checkpoint(folder, step, STATE | {"step": step}) for step in steps]


def test_what_is_saved_is_loaded(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", 3, STATE)
    assert path == tmp_path / "checkpoints" / "step-00000003.pt"
    state = load_checkpoint(tmp_path / "checkpoints")
    assert torch.equal(state.pop("network")["weight"], STATE["network"]["weight"])
    assert state == {key: value for key, value in STATE.items() if key != "network"}


def test_the_newest_is_loaded_and_the_last_few_are_kept(tmp_path):
    paths = save(tmp_path, 1, 20, 300, 4000)
    assert checkpoints(tmp_path) == paths[-KEPT:]
    assert sorted(tmp_path.iterdir()) == paths[-KEPT:]
    assert load_checkpoint(tmp_path)["step"] == 4000


def test_a_full_disk_is_named_and_leaves_the_last_one(tmp_path):
    paths = save(tmp_path, 1)
    newest = tmp_path / "step-00000002.pt"
    with full_disk(), pytest.raises(OSError, match=f"File too large: '{newest}'"):
        save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == paths


def test_a_run_goes_on_without_what_a_kill_has_left_of_weights(tmp_path):
    """In one of them, ``best`` was about to be replaced."""
    for name in ("last", ".last-abcdefgh", ".best-abcdefgh/best", ".best-ijklmnop"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(name)
    with held_run(tmp_path):
        names = [path.name for path in listed(tmp_path)]
        assert names == ["best", "last"]
        assert (tmp_path / "best" / "weights").read_text() == ".best-abcdefgh/best"
        assert (tmp_path / "last" / "weights").read_text() == "last"
    assert sorted(tmp_path.iterdir()) == listed(tmp_path)


@pytest.mark.parametrize("folder", ["missing", "."])
def test_where_there_is_none_it_is_said(tmp_path, folder):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no readable checkpoint"):
        load_checkpoint(tmp_path / folder)


def truncate(share):
    return lambda data: data[: int(share * len(data))]


def flip(data):
    """One bit in the middle of the weights."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = pytest.mark.parametrize(
    "damage",
    [
        truncate(0),
        truncate(0.01),
        truncate(0.5),
        truncate(0.99),
        flip,
        lambda data: b"\0" * len(data),
    ],
    ids=["empty", "first 1 %", "half", "last 1 % missing", "one bit", "zeros"],
)


@DAMAGES
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path, damage):
    _, newest = save(tmp_path, 1, 2)
    newest.write_bytes(damage(newest.read_bytes()))
    assert load_checkpoint(tmp_path)["step"] == 1


@DAMAGES
def test_if_all_are_damaged_that_is_said(tmp_path, damage):
    for path in save(tmp_path, 1, 2):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="holds no readable checkpoint"):
        load_checkpoint(tmp_path)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))]
)
def test_nothing_is_unpickled(tmp_path, write):
    trap = tmp_path / "sprung"
    write({"step": 1, "network": Trap(trap)}, tmp_path / "step-00000001.pt")
    with pytest.raises(UserError, match="holds no readable checkpoint"):
        load_checkpoint(tmp_path)
    assert not trap.exists()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (first,) = save(tmp_path, 1)
    with pytest.raises(Exception, match="local object"):
        save_checkpoint(tmp_path, 2, {"function": lambda: None})
    assert list(tmp_path.iterdir()) == [first]


def test_what_a_killed_run_left_unfinished_goes(tmp_path):
    tmp_path.joinpath(".step-00000001-abc.pt").write_bytes(b"half")
    save_checkpoint(tmp_path, 2, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.pt"]


def test_a_damaged_one_that_was_passed_over_does_not_count(tmp_path):
    paths = save(tmp_path, 10, 20)
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    assert load_checkpoint(tmp_path)["step"] == 10
    later = save(tmp_path, 12, 14)  # as the run goes on from 10
    assert checkpoints(tmp_path) == later
    assert (tmp_path / "step-00000020.pt.damaged").exists()  # perhaps it was only out of reach
    later[1].write_bytes(b"")
    assert load_checkpoint(tmp_path)["step"] == 12


def test_no_damage_ends_otherwise_than_with_the_one_before(tmp_path):
    """Every bit of the archive's directory, where names and check sums are not yet checked."""
    _, newest = save(tmp_path, 10, 20)
    data = newest.read_bytes()
    for position in range(len(data) - 400, len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        newest.write_bytes(damaged)
        assert load_checkpoint(tmp_path)["step"] in (10, 20)
