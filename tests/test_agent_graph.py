"""The agent's gradient step as one CUDA graph: when it is captured, and that it does what plain ones do.

What needs no GPU is tested with a graph that does its work anew each time it is launched.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretended_graphs import PretendedGraph
from stable_baselines3 import SAC
from test_replay import filled

from agents.optimizers import fuse, rates_on_device
from agents.replay import TensorReplayBuffer
from agents.sac import LatentPriorSAC
from agents.storage import restore_training_state, training_state
from bmvtrack.cuda_graphs import Launcher
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.perception import Perception
from envs.bmvtrack_env import BMVTrackEnv

CPU = torch.device("cpu")


@pytest.fixture
def env(perception: Perception) -> BMVTrackEnv:
    return BMVTrackEnv([synthetic_sequence(8).in_memory()], perception, clip_length=8)


def agent(env: BMVTrackEnv, device: str = "cuda", **options: Any) -> LatentPriorSAC:
    """One that has acted, and learned nothing yet."""
    defaults: dict[str, Any] = {
        "learning_starts": 1000,
        "buffer_size": 200,
        "replay_buffer_class": TensorReplayBuffer,
        "policy_kwargs": {"net_arch": [16]},
        "seed": 0,
        "device": device,
    }
    return LatentPriorSAC("LatentPriorPolicy", env, **(defaults | options)).learn(24)


def test_work_is_done_once_a_run_and_captured_when_it_has_settled(
    graphs: type[PretendedGraph],
) -> None:
    launcher, runs = Launcher[torch.Tensor](CPU), iter(range(100))
    tensors, other = [torch.zeros(2), torch.zeros(3)], torch.zeros(3)

    def run(*constants: object, times: int = 1) -> int:
        for _ in range(times):
            result = launcher.run(lambda: torch.tensor(next(runs)), tensors, constants)
        return int(result)

    assert (run(1, times=3), graphs.made) == (2, 0)
    assert (run(1, times=5), graphs.made) == (7, 1)
    tensors[1] = other  # another tensor
    assert (run(1, times=3), graphs.made) == (10, 1)
    assert (run(1, times=3), graphs.made) == (13, 2)
    other.data = torch.ones(3)  # the same one at another place
    assert (run(1, times=4), graphs.made) == (17, 3)
    assert (run(2, times=4), graphs.made) == (21, 4)
    other.fill_(5)  # another value
    assert (run(2, times=4), graphs.made) == (25, 4)
    launcher = copy.deepcopy(launcher)
    assert (run(2, times=3), graphs.made) == (28, 4)
    assert (run(2), graphs.made) == (29, 5)


@pytest.mark.parametrize("tuned", [True, False])
def test_calls_of_one_step_come_to_be_graphed(
    env: BMVTrackEnv, graphs: type[PretendedGraph], monkeypatch: pytest.MonkeyPatch, tuned: bool
) -> None:
    """And learn what plain ones do; copies and files hold no graph."""
    monkeypatch.setattr(LatentPriorSAC, "_can_be_graphed", lambda model: model.graphed)
    models = []
    for graphed in (True, False):
        options = {"graphed": graphed, "ent_coef": "auto_0.1" if tuned else 0.1}
        model = agent(env, "cpu", learning_rate=1e-2, **options)
        torch.manual_seed(3)
        for _ in range(8):
            model.train(1, 16)
        models.append(model)
        assert graphs.made == 1
    ours, plain = models
    assert ours._n_updates == plain._n_updates == 8
    assert ours.logger.name_to_value == pytest.approx(plain.logger.name_to_value, abs=1e-4)
    assert_equal(ours, plain, 1e-6)
    assert [group["lr"] for o in ours._optimizers for group in o.param_groups] == [1e-2] * (
        2 + tuned
    )
    assert {"_launcher", "_rates"} <= set(ours._excluded_save_params())


def test_a_graph_s_adam_reads_its_rate_from_a_tensor() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimizer.step()
    before = parameter.detach().clone()
    fuse(optimizer)
    rate = torch.zeros(())
    with rates_on_device([optimizer], [rate]):
        assert optimizer.param_groups[0]["lr"] is rate
        assert optimizer.param_groups[0]["capturable"]
        optimizer.step()
        assert torch.equal(parameter, before)
        rate.fill_(0.2)
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - 0.2)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not optimizer.param_groups[0]["capturable"]
    assert optimizer.state[parameter]["step"] == 3


@pytest.mark.parametrize("steps", [3, 17])
def test_the_device_draws_from_what_the_host_would(steps: int) -> None:
    buffer, count = buffer_of(10, steps), min(steps, 10)
    torch.manual_seed(0)
    drawn = [draw(count * 2000) for draw in (buffer._draw, buffer._draw_by_device)]
    (places, _), (found, counts) = (torch.unique(where, return_counts=True) for where in drawn)
    assert torch.equal(found, places)
    assert len(found) == 2 * count
    assert (counts - 1000).abs().max() < 5 * 1000**0.5
    buffer.reset()
    buffer.load_state(buffer_of(10, 4).state())
    assert set(buffer._draw_by_device(500).tolist()) == set(range(8))


def buffer_of(rows: int, steps: int) -> TensorReplayBuffer:
    return filled(rows, 2, np.zeros((steps, 2), dtype=bool))


def assert_equal(one: LatentPriorSAC, other: LatentPriorSAC, tolerance: float) -> None:
    expected = other.policy.state_dict()
    for name, value in one.policy.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance, msg=name)
    if one.ent_coef_optimizer is not None:
        torch.testing.assert_close(one.log_ent_coef, other.log_ent_coef, rtol=0, atol=tolerance)


@contextmanager
def known_draws(*models: LatentPriorSAC) -> Iterator[None]:
    """Neither batches nor noise by lot."""

    def draw(buffer: TensorReplayBuffer, count: int) -> torch.Tensor:
        offsets = torch.arange(count, device=buffer.device) * 7 % buffer._count
        return (buffer._oldest + offsets) % buffer.final_slots.numel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorReplayBuffer, "_draw_by_device", draw)
        patch.setattr(torch, "randn_like", lambda values: torch.full_like(values, 0.3))
        yield


def add_short_episodes(model: LatentPriorSAC, count: int, seed: int) -> None:
    """Their last observations are kept apart, which makes `finals` grow."""
    rng, buffer = np.random.default_rng(seed), model.replay_buffer
    assert isinstance(buffer, TensorReplayBuffer)
    rows = {name: value[:8].float().cpu().numpy() for name, value in buffer.observations.items()}
    for _ in range(count):
        now, then = ({n: v[i] for n, v in rows.items()} for i in rng.integers(8, size=2))
        action, reward = rng.normal(size=(1, 5)) / 9, rng.random(1)
        buffer.add(now, then, action, reward, np.array([True]), [{}])


def captured(model: LatentPriorSAC) -> object:
    assert model._launcher is not None
    return model._launcher._captured


@pytest.mark.gpu
def test_a_graph_learns_what_plain_steps_do(env: BMVTrackEnv) -> None:
    ours, plain = agent(env), agent(env, graphed=False)
    with known_draws():
        for _ in range(3):
            for model in (ours, plain):
                model.train(6, 16)
            assert_equal(ours, plain, 1e-5)
    assert captured(ours) is not None
    assert plain._launcher is None
    records = [model.logger.name_to_value for model in (ours, plain)]
    assert records[0] == pytest.approx(records[1], abs=1e-4)
    assert ours._n_updates == 18


@pytest.mark.gpu
def test_a_graph_draws_what_plain_steps_would(env: BMVTrackEnv) -> None:
    ours, again, plain = agent(env), agent(env), agent(env, graphed=False)
    for model in (ours, again, plain):
        torch.manual_seed(5)
        for _ in range(12):
            model.train(1, 16)
        assert (model is plain) or captured(model) is not None
    assert_equal(ours, again, 1e-6)
    assert_equal(ours, plain, 1e-5)


@pytest.mark.gpu
def test_a_graph_sees_what_has_changed(env: BMVTrackEnv) -> None:
    """New rows, a last observation more than there was room for, rates and another batch size."""
    ours, plain = agent(env), agent(env, graphed=False)
    graphs = []

    def learn(batch_size: int = 16, steps: int = 7) -> None:
        for model in (ours, plain):
            model.train(steps, batch_size)
        assert_equal(ours, plain, 1e-5)
        graphs.append(captured(ours))

    with known_draws():
        learn()
        learn()
        for model in (ours, plain):
            add_short_episodes(model, 3, seed=1)
        learn()
        buffer = ours.replay_buffer
        assert isinstance(buffer, TensorReplayBuffer)
        slots = len(buffer.finals["box"])
        for model in (ours, plain):
            add_short_episodes(model, 20, seed=2)
        assert len(buffer.finals["box"]) > slots
        learn()
        for model in (ours, plain):
            model.actor_learning_rate, model.lr_schedule = 2e-3, lambda _: 1e-3
        before = copy.deepcopy(ours.policy.state_dict())
        learn()
        for model in (ours, plain):
            model.actor_learning_rate, model.lr_schedule = 0.0, lambda _: 0.0
        still = copy.deepcopy(ours.policy.state_dict())
        learn()
        learn(batch_size=8)
        for model in (ours, plain):  # round the end of the buffer
            add_short_episodes(model, 190, seed=3)
            model.actor_learning_rate, model.lr_schedule = 1e-3, lambda _: 1e-3
        learn(batch_size=8)
    after = ours.policy.state_dict()
    learned = [name for name in after if name.startswith(("actor", "critic."))]
    assert any(not torch.equal(before[name], still[name]) for name in learned)
    first, same, added, grown, fast, stopped, *_ = graphs
    assert None not in graphs
    assert first is same is added
    assert grown is not added
    assert grown is fast is stopped


@pytest.mark.gpu
def test_stable_baselines_loop_and_graphs_take_turns(env: BMVTrackEnv) -> None:
    ours, plain = agent(env), agent(env, graphed=False)
    with known_draws():
        for _ in range(3):
            for model in (ours, plain):
                model.train(6, 16)
                SAC.train(model, 3, 16)
        assert_equal(ours, plain, 1e-5)
    assert captured(ours) is not None


@pytest.mark.gpu
def test_launches_do_not_wait(env: BMVTrackEnv) -> None:
    model = agent(env)
    model.train(6, 16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model._prepare_graph()
        for _ in range(3):
            model._launch(16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(("written", "read"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_checkpoints_go_from_device_to_device(
    env: BMVTrackEnv, tmp_path: Path, written: str, read: str
) -> None:
    model, other = agent(env, written), agent(env, read, seed=1)
    for one in (model, other):
        one.train(8, 16)
    torch.save(training_state(model), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu")
    restore_training_state(other, state)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(other.policy.state_dict()[name].cpu(), value.cpu()), name
    other.train(8, 16)
    SAC.train(other, 2, 16)
    other.train(2, 16)
    steps = {float(s["step"]) for o in other._optimizers for s in o.state.values()}
    assert steps == {20.0}


@pytest.mark.gpu
def test_files_and_copies_hold_no_graph(env: BMVTrackEnv, tmp_path: Path) -> None:
    model = agent(env)
    model.train(8, 16)
    copy.deepcopy(model._launcher)
    model.save(tmp_path / "agent")
    for device in ("cuda", "cpu"):
        loaded = LatentPriorSAC.load(tmp_path / "agent", env=env, device=device)
        for name, value in model.policy.state_dict().items():
            assert torch.equal(loaded.policy.state_dict()[name].cpu(), value.cpu()), name
        loaded.learn(10)  # fills its buffer
        loaded.train(8, 16)


@pytest.mark.gpu
def test_targets_that_wait_their_turn_are_not_graphed(env: BMVTrackEnv) -> None:
    model = agent(env, target_update_interval=2)
    model.train(6, 16)
    assert model._launcher is None
