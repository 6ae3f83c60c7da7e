"""Replay as tensors: what comes out is what went in, each observation stored once."""

import copy
import pickle
from collections import namedtuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.replay import TensorReplayBuffer
from bmvtrack import devices
from bmvtrack.errors import UserError

SPACE = gym.spaces.Dict(
    {
        "features": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "box": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
    }
)
ACTIONS = gym.spaces.Box(-1, 1, (5,), np.float32)


def observation(step, n_envs, kind=0):
    """Values that tell step, environment and kind, exact in half precision."""
    code = np.stack([np.full(n_envs, step), np.arange(n_envs), np.full(n_envs, kind)], axis=1)
    return {"features": code.astype(np.float32), "box": code[:, :2].astype(np.float32)}


def nbytes(buffer):
    return sum(tensor.nbytes for tensor in buffer.tensors)


def filled(capacity, n_envs, ends, timeouts=None):
    """A buffer after ``len(ends)`` steps; ``ends`` ``(steps, n_envs)`` marks ends of episodes.

    The observation of step t is (t, i, 0); the last one of an episode that ends there (t, i, 1).
    """
    buffer = TensorReplayBuffer(capacity * n_envs, SPACE, ACTIONS, "cpu", n_envs)
    timeouts = np.zeros_like(ends) if timeouts is None else timeouts
    for t, (done, timeout) in enumerate(zip(ends, timeouts, strict=True)):
        following = observation(t + 1, n_envs)
        final = observation(t + 1, n_envs, kind=1)
        for name in following:
            following[name] = np.where(done[:, None], final[name], following[name])
        buffer.add(
            observation(t, n_envs),
            following,
            np.full((n_envs, 5), t, np.float32),
            np.arange(n_envs) + 100.0 * t,
            done,
            [{"TimeLimit.truncated": bool(flag)} for flag in timeout],
        )
    return buffer


@settings(max_examples=40)
@given(
    capacity=st.integers(2, 9),
    n_envs=st.integers(1, 3),
    steps=st.integers(1, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_samples_are_whole_transitions(capacity, n_envs, steps, share, seed):
    rng = np.random.default_rng(seed)
    ends = rng.random((steps, n_envs)) < share
    timeouts = ends & (rng.random((steps, n_envs)) < 0.5)
    buffer = filled(capacity, n_envs, ends, timeouts)
    torch.manual_seed(seed)
    batch = buffer.sample(600)
    step, environment = batch.observations["features"][:, :2].long().unbind(1)
    newest = min(capacity, steps)
    assert buffer.size() == newest
    assert step.min() >= steps - newest
    assert step.max() < steps
    if newest * n_envs < 12:
        assert len(set(zip(step.tolist(), environment.tolist(), strict=True))) == newest * n_envs
    assert torch.equal(batch.observations["box"][:, 0].long(), step)
    assert torch.equal(batch.actions[:, 0].long(), step)
    assert torch.equal(batch.rewards[:, 0].long(), environment + 100 * step)
    ended = torch.from_numpy(ends)[step, environment]
    late = torch.from_numpy(timeouts)[step, environment]
    assert torch.equal(batch.next_observations["features"][:, 0].long(), step + 1)
    assert torch.equal(batch.next_observations["features"][:, 2].long(), ended.long())
    assert torch.equal(batch.dones[:, 0].bool(), ended & ~late)


def test_memory_stops_growing_once_all_rows_have_been_written():
    """Where every step ends an episode, too: what is overwritten makes room for new last observations."""
    held = {}
    for rounds in (2, 3, 50):
        steps = 9 * rounds
        buffer = filled(9, 2, np.ones((steps, 2), dtype=bool))
        held[rounds] = nbytes(buffer), len(buffer.finals["box"])
        torch.manual_seed(0)
        batch = buffer.sample(300)
        now, then = batch.observations["features"], batch.next_observations["features"]
        assert set(now[:, 0].tolist()) == set(range(steps - 9, steps))
        expected = torch.stack([now[:, 0] + 1, now[:, 1], torch.ones(300)], dim=1)
        assert torch.equal(then, expected)
    assert held[2] == held[3] == held[50]


def test_every_transition_is_equally_likely():
    buffer = filled(4, 3, np.zeros((11, 3), dtype=bool))
    torch.manual_seed(0)
    batch = buffer.sample(24_000)
    codes = batch.observations["features"][:, 0] * 3 + batch.observations["features"][:, 1]
    counts = torch.unique(codes, return_counts=True)[1]
    assert len(counts) == 12
    assert (counts - 2000).abs().max() < 5 * 2000**0.5


def test_contents_go_round_a_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    ends = rng.random((9, 2)) < 0.4
    buffer = filled(5, 2, ends)
    torch.save(buffer.state(), tmp_path / "replay.pt")
    state = torch.load(tmp_path / "replay.pt", weights_only=True)
    other = TensorReplayBuffer(10, SPACE, ACTIONS, "cpu", 2)
    other.load_state(state)
    for again in (False, True):  # also after both have gone on
        if again:
            for one in (buffer, other):
                done = np.array([True, False])
                states = observation(9, 2), observation(10, 2, kind=1)
                one.add(*states, np.zeros((2, 5)), np.zeros(2), done, [{}, {}])
        torch.manual_seed(1)
        first = buffer.sample(64)
        torch.manual_seed(1)
        second = other.sample(64)
        for name in SPACE:
            assert torch.equal(first.next_observations[name], second.next_observations[name])
        assert torch.equal(first.rewards, second.rewards)
    for size, n_envs in ((12, 2), (15, 3)):
        with pytest.raises(UserError, match="resume with the same options"):
            TensorReplayBuffer(size, SPACE, ACTIONS, "cpu", n_envs).load_state(state)


def test_a_checkpoint_holds_what_is_used_and_no_more(tmp_path):
    ends = np.zeros((4, 2), bool)
    sizes = []
    for capacity in (10, 10_000):
        torch.save(filled(capacity, 2, ends).state(), tmp_path / "replay.pt")
        sizes.append((tmp_path / "replay.pt").stat().st_size)
    assert sizes[1] < 5 * sizes[0], "a thousand times the capacity; ends have a table of their own"


def test_each_observation_is_stored_once_and_features_in_half():
    buffer = TensorReplayBuffer(64_000, SPACE, ACTIONS, "cpu", 4)
    assert buffer.bytes_per_transition == 3 * 2 + 2 * 4 + 7 * 4 + 8
    assert nbytes(buffer) < 1.05 * 64_000 * buffer.bytes_per_transition


def test_more_than_the_memory_is_refused_with_both_numbers(monkeypatch):
    memory = namedtuple("memory", "available")(1_000)
    monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(UserError, match=r"takes [\d,]+ bytes, but only 1,000 are left on cpu"):
        TensorReplayBuffer(1_000, SPACE, ACTIONS, "cpu", 1)


@pytest.mark.gpu
def test_sampling_does_not_wait_for_the_device():
    buffer = TensorReplayBuffer(100, SPACE, ACTIONS, "cuda", 1)
    states = observation(0, 1), observation(1, 1)
    buffer.add(*states, np.zeros((1, 5)), np.zeros(1), np.zeros(1, bool), [{}])
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert buffer.sample(8).rewards.is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loaded", [False, True])
def test_what_follows_a_reset_is_not_what_the_step_before_led_to(loaded):
    buffer = filled(5, 2, np.array([[False, False], [False, True]]))
    if loaded:
        other = TensorReplayBuffer(10, SPACE, ACTIONS, "cpu", 2)
        other.load_state(buffer.state())
        buffer = other
    step = np.zeros((2, 5)), np.zeros(2), np.zeros(2, bool), [{}, {}]
    buffer.add(observation(50, 2), observation(51, 2), *step)
    buffer.add(observation(51, 2), observation(52, 2), *step)
    batch = buffer.sample(200)
    now, then = (o["features"][:, 0] for o in (batch.observations, batch.next_observations))
    assert set(now.tolist()) == {0, 1, 50, 51}
    assert torch.equal(then, now + 1)
    ended = batch.next_observations["features"][:, 2].bool()  # what was a last observation still is
    assert torch.equal(ended, (now == 1) & (batch.observations["features"][:, 1] == 1))
    assert (buffer.final_slots >= 0).sum() == 2


def test_a_used_buffer_takes_the_contents_of_another():
    """Nothing of its own is left, and what it was given stays as it is."""
    nothing, everything = np.zeros((9, 2), dtype=bool), np.ones((9, 2), dtype=bool)
    used, other = filled(9, 2, everything), filled(9, 2, nothing[:3])
    state = copy.deepcopy(other.state())
    finals = {name: value.clone() for name, value in state["finals"].items()}
    used.load_state(state)
    for t in range(3, 20):
        for one in (used, other):
            done = np.array([t % 2 == 0, True])
            states = observation(t, 2), observation(t + 1, 2, kind=1)
            one.add(*states, np.zeros((2, 5)), np.zeros(2), done, [{}, {}])
        torch.manual_seed(t)
        first = used.sample(64)
        torch.manual_seed(t)
        assert torch.equal(
            first.next_observations["features"], other.sample(64).next_observations["features"]
        )
    assert all(torch.equal(value, finals[name]) for name, value in state["finals"].items())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match="omit optimize_memory_usage"):
        TensorReplayBuffer(8, SPACE, ACTIONS, "cpu", 2, optimize_memory_usage=True)
    with pytest.raises(UserError, match="takes no VecNormalize"):
        filled(4, 2, np.zeros((3, 2), dtype=bool)).sample(8, env=object())


def test_growth_asks_for_the_memory_that_is_left(monkeypatch):
    """Last observations of episodes take more where episodes are short."""
    buffer = filled(64, 2, np.zeros((3, 2), dtype=bool))
    monkeypatch.setattr(
        devices.psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(10)
    )

    def fill() -> None:
        for t in range(60):
            states = observation(t, 2), observation(t + 1, 2, kind=1)
            buffer.add(*states, np.zeros((2, 5)), np.zeros(2), np.array([True, True]), [{}, {}])

    with pytest.raises(UserError, match="10 are left"):
        fill()


def test_setting_the_device_moves_all_tensors():
    buffer = filled(4, 2, np.zeros((3, 2), dtype=bool))
    buffer.device = torch.device("meta")
    assert {tensor.device.type for tensor in buffer.tensors} == {"meta"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_pickle_is_the_same_buffer_on_the_cpu(device):
    buffer = filled(4, 2, np.array([[False, True], [True, False], [False, False]]))
    buffer.device = torch.device(device)
    loaded = pickle.loads(pickle.dumps(buffer))
    assert loaded.device.type == "cpu"
    for before, after in zip(buffer.tensors, loaded.tensors, strict=True):
        assert after.device.type == "cpu"
        torch.testing.assert_close(after, before.cpu(), rtol=0, atol=0)
    assert {tensor.device.type for tensor in buffer.tensors} == {device}
    loaded.add(
        observation(3, 2), observation(4, 2), np.zeros((2, 5)), np.zeros(2), np.zeros(2), [{}, {}]
    )
    assert loaded.size() == 4


def test_a_pickle_names_its_device_as_it_did_before_that_could_be_set():
    buffer = filled(4, 2, np.zeros((3, 2), dtype=bool))
    assert vars(pickle.loads(pickle.dumps(buffer)))["device"] == torch.device("cpu")
