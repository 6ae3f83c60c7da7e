"""Soft actor-critic around the prior: how it learns, and what it is given and gives."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from agents.optimizers import adam_step
from agents.policy import LatentPriorActor, StateExtractor
from agents.replay import TensorReplayBuffer
from agents.sac import LatentPriorSAC
from agents.sb3_env import StableBaselinesEnv
from agents.storage import (
    load_actor,
    restore_training_state,
    save_actor,
    training_state,
)
from bmvtrack import gaussian
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.perception import Perception
from envs.bmvtrack_env import BMVTrackEnv
from envs.vector_env import BMVTrackVectorEnv


@pytest.fixture
def env(perception: Perception) -> BMVTrackEnv:
    return BMVTrackEnv([synthetic_sequence(8).in_memory()], perception, clip_length=8)


def agent(env: BMVTrackEnv, **options: object) -> LatentPriorSAC:
    defaults: dict[str, object] = {
        "target_kl": 0.7,
        "learning_starts": 16,
        "buffer_size": 200,
        "batch_size": 16,
        "replay_buffer_class": TensorReplayBuffer,
        "policy_kwargs": {"net_arch": [16]},
        "seed": 0,
        "device": "cpu",
    }
    return LatentPriorSAC("LatentPriorPolicy", env, **(defaults | options))


def test_training_learns_and_is_deterministic(env: BMVTrackEnv) -> None:
    def trained() -> dict[str, torch.Tensor]:
        model = agent(env).learn(40)
        assert model.target_entropy == -0.7
        return model.policy.state_dict()

    first, second = trained(), trained()
    before = agent(env).policy.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], before[name]) for name in before)


def test_warm_up_draws_from_the_prior(env: BMVTrackEnv) -> None:
    model = agent(env)
    model.learn(16)
    buffer = model.replay_buffer
    actions = buffer.actions[: buffer.pos, 0]
    state = {name: value[: buffer.pos, 0] for name, value in buffer.observations.items()}
    white = gaussian.whiten(actions, *model.actor.prior(state))
    assert white.abs().max() < 5  # uniform actions would lie tens of standard deviations away


def test_training_state_goes_round(env: BMVTrackEnv, tmp_path: Path) -> None:
    model = agent(env)
    model.learn(30)
    torch.save(training_state(model), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = agent(env, seed=1)
    other.learn(1)  # sets up the logger
    restore_training_state(other, state)
    assert (other.num_timesteps, other._n_updates) == (30, model._n_updates)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(other.policy.state_dict()[name], value)
    assert torch.equal(other.log_ent_coef, model.log_ent_coef)
    assert torch.equal(model.replay_buffer.actions, other.replay_buffer.actions)
    torch.manual_seed(0)
    model.train(2, 16)
    torch.manual_seed(0)
    other.train(2, 16)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(other.policy.state_dict()[name], value), name


@pytest.mark.parametrize("tuned", [True, False])
def test_updates_are_those_of_the_plain_loop(env: BMVTrackEnv, tuned: bool) -> None:
    models = []
    for _ in range(2):
        model = agent(env, ent_coef="auto_0.1" if tuned else 0.1)
        model.learn(24)
        models.append(model)
    ours, plain = models
    records = []
    for model, train in ((ours, LatentPriorSAC.train), (plain, SAC.train)):
        for _ in range(3):  # with equal batches and noise
            torch.manual_seed(7)
            train(model, 1, 16)
        records.append(dict(model.logger.name_to_value))
    for name in ("train/actor_loss", "train/critic_loss", "train/ent_coef"):
        assert records[0][name] == pytest.approx(records[1][name], abs=1e-5), name
    for name, value in plain.policy.state_dict().items():
        torch.testing.assert_close(ours.policy.state_dict()[name], value, rtol=0, atol=1e-5)


def test_the_actor_may_learn_at_its_own_rate(env: BMVTrackEnv) -> None:
    model = agent(env, learning_rate=1e-2, actor_learning_rate=0.0)
    model.learn(16)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.train(3, 16)
    moved = {
        name.split(".")[0]
        for name, value in model.policy.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"critic", "critic_target"}


def test_part_of_the_buffer_follows_the_truth(perception: Perception) -> None:
    many = BMVTrackVectorEnv(4, [synthetic_sequence(8)], perception, coordinates="object")
    model = agent(StableBaselinesEnv(many), truth_share=0.5, learning_starts=10**6)
    model.learn(40)
    rewards = model.replay_buffer.rewards[: model.replay_buffer.pos].mean(dim=0)
    assert rewards[:2].min() > rewards[2:].max()


def test_an_extractor_that_learns_is_refused(env: BMVTrackEnv) -> None:
    class Learning(StateExtractor):
        def __init__(self, space: spaces.Dict) -> None:
            super().__init__(space)
            self.scale = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(UserError, match="must not have parameters"):
        agent(env, policy_kwargs={"net_arch": [16], "features_extractor_class": Learning})


def test_any_optimiser_may_be_given(env: BMVTrackEnv) -> None:
    model = agent(env, policy_kwargs={"net_arch": [16], "optimizer_class": torch.optim.RMSprop})
    before = [parameter.clone() for parameter in model.actor.parameters()]
    model.learn(20)
    assert not all(map(torch.equal, before, model.actor.parameters()))


def test_an_agent_that_was_saved_with_what_is_not_used_can_be_loaded(
    env: BMVTrackEnv, tmp_path: Path
) -> None:
    model = agent(env, policy_kwargs={"net_arch": [16]})
    model.policy_kwargs["n_critics"] = 2  # as it could be given before it was refused
    model.save(tmp_path / "agent")
    assert LatentPriorSAC.load(tmp_path / "agent", env=env).n_envs == 1


def test_plain_actor_is_stored_too(env: BMVTrackEnv, tmp_path: Path) -> None:
    model = SAC(
        "MultiInputPolicy",
        env,
        buffer_size=10,
        policy_kwargs={"net_arch": [16], "features_extractor_class": StateExtractor},
    )
    save_actor(model.actor, "plain", "frame", tmp_path)
    observation, _ = env.reset(seed=0)
    expected, _ = model.predict(observation, deterministic=True)
    found, _ = load_actor(tmp_path).actor.predict(observation, deterministic=True)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_the_actor_s_rate_may_fall(env: BMVTrackEnv) -> None:
    rates: list[float] = []

    def falling(remaining: float) -> float:
        rates.append(0.01 * remaining)
        return rates[-1]

    model = agent(env, actor_learning_rate=falling)
    model.learn(40)
    assert len(rates) > 5
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.004
    assert model.actor.optimizer.param_groups[0]["lr"] == rates[-1] == 0
    assert model.critic.optimizer.param_groups[0]["lr"] == 3e-4


def test_what_would_make_another_prior_is_refused(perception: Perception) -> None:
    many = BMVTrackVectorEnv(2, [synthetic_sequence(8)], perception, coordinates="object")
    environment = StableBaselinesEnv(many)
    single = gym.make(
        "BMVTrack-v0",
        sequences=[synthetic_sequence(8)],
        weights=perception,
        coordinates="object",
    )
    for env, options, message in (
        (RescaleAction(single, -1.0, 1.0), {}, "remove wrappers that rescale actions"),
        (VecNormalize(environment), {}, "give it norm_obs=False"),
        (VecNormalize(environment, norm_obs=False), {}, "TensorReplayBuffer takes no VecNormalize"),
        (environment, {"use_sde": True}, "does not support use_sde"),
        (environment, {"policy_kwargs": {"n_critics": 3}}, "networks do not use n_critics"),
        (VecFrameStack(environment, 2), {}, "remove wrappers that stack or flatten them"),
        (environment, {"truth_share": 0.1}, "of 2 environments rounds to none"),
        (environment, {"truth_share": 1.5}, r"must lie in \[0, 1\]"),
        (single, {"truth_share": 1.0}, "have no true_motion"),
    ):
        with pytest.raises(UserError, match=message):
            agent(env, **options).learn(1)


def test_a_loaded_agent_takes_what_a_new_one_does(perception: Perception, tmp_path: Path) -> None:
    clips = [synthetic_sequence(8)]
    many = StableBaselinesEnv(BMVTrackVectorEnv(2, clips, perception, coordinates="object"))
    single = BMVTrackEnv(clips, perception, coordinates="object")
    options = {"truth_share": 0.5, "replay_buffer_class": DictReplayBuffer}
    agent(many, **options).save(tmp_path / "agent")
    assert LatentPriorSAC.load(tmp_path / "agent").truth_share == 0.5
    loaded = LatentPriorSAC.load(tmp_path / "agent", env=single)
    observation, _ = single.reset(seed=0)
    action, _ = loaded.predict(observation, deterministic=True)
    np.testing.assert_allclose(action, observation["prior_mean"], atol=1e-5)
    with pytest.raises(UserError, match="give it norm_obs=False"):
        LatentPriorSAC.load(tmp_path / "agent").set_env(VecNormalize(many))
    features = VecNormalize(many, norm_obs_keys=["features"])  # neither prior nor mask
    LatentPriorSAC.load(tmp_path / "agent").set_env(features)


def test_an_actor_saved_alone_is_of_the_same_kind(tmp_path: Path, env: BMVTrackEnv) -> None:
    model = agent(env, policy_kwargs={"correlated": False})
    model.actor.save(str(tmp_path / "actor"))
    assert not LatentPriorActor.load(str(tmp_path / "actor")).prior.correlated


def test_several_updates_with_ends_are_those_of_the_plain_loop(env: BMVTrackEnv) -> None:
    """A lost object ends the sum of rewards; targets wait for their turn; what is logged are means."""
    records, models = [], []
    for train in (LatentPriorSAC.train, SAC.train):
        model = agent(env, target_update_interval=2, learning_starts=100)
        model.learn(24)
        model.replay_buffer.dones[::2] = 1
        torch.manual_seed(7)
        train(model, 4, 16)
        records.append(dict(model.logger.name_to_value))
        models.append(model)
    for name in ("actor_loss", "critic_loss", "ent_coef", "ent_coef_loss", "n_updates"):
        ours, plain = (record[f"train/{name}"] for record in records)
        assert ours == pytest.approx(plain, abs=1e-5), name
    for name, value in models[1].policy.state_dict().items():
        found = models[0].policy.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)


def test_followers_act_by_the_truth_with_the_prior_s_noise(
    perception: Perception, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [synthetic_sequence(8)]
    many = StableBaselinesEnv(BMVTrackVectorEnv(4, clips, perception, coordinates="object"))
    model = agent(many, truth_share=0.75, learning_starts=100)
    model.learn(4)
    space = many.action_space
    there = torch.tensor([1.1, 0.9, 0.1, 0.2, -0.1])
    outside, missing = torch.from_numpy(space.high) + 9, torch.full((5,), torch.nan)
    truth = torch.stack([there, outside, missing, there])
    monkeypatch.setattr(model.env, "env_method", lambda name: [truth])
    packed = 0.01 * model._last_obs["prior_cholesky"]
    monkeypatch.setitem(model._last_obs, "prior_cholesky", packed)
    actions, scaled = map(
        np.stack, zip(*(model._sample_action(0, None, 4) for _ in range(400)), strict=True)
    )
    factor = gaussian.unpack_lower(torch.from_numpy(packed[0]))
    white = gaussian.whiten(torch.from_numpy(actions[:, 0]), there, factor)
    torch.testing.assert_close(white.T.cov(), torch.eye(5), atol=0.3, rtol=0)
    assert white.mean(dim=0).abs().max() < 0.25
    assert (actions[:, 1] == space.high).all()
    assert np.isfinite(actions).all()
    np.testing.assert_allclose(scaled, model.policy.scale_action(actions), atol=1e-6)


def test_the_actor_learns_as_fast_as_the_critics_unless_told(
    env: BMVTrackEnv, tmp_path: Path
) -> None:
    model = agent(env, learning_rate=1e-2)
    model.learn(20)
    assert model.actor.optimizer.param_groups[0]["lr"] == 1e-2
    model.save(tmp_path / "agent")
    slower = LatentPriorSAC.load(tmp_path / "agent", env=env, learning_rate=1e-3)
    slower.learn(20)
    for optimizer in (slower.actor.optimizer, slower.critic.optimizer):
        assert optimizer.param_groups[0]["lr"] == 1e-3


def test_the_kl_that_is_logged_is_of_the_states_acted_in(env: BMVTrackEnv) -> None:
    model = agent(env)
    model.learn(12)
    for parameter in model.actor.head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = model.replay_buffer.sample(16)
    expected = model.actor.action_log_prob(batch.observations)[1].mean()
    torch.testing.assert_close(model.update(batch)["kl_to_prior"], expected.detach())


@pytest.mark.parametrize(
    "options",
    [
        {"fused": True},
        {},
        {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.9)},
        {"decoupled_weight_decay": True, "weight_decay": 0.1},
    ],
    ids=["fused", "plain", "unusual", "decoupled"],
)
def test_adam_s_step_is_torch_s(options: dict[str, Any]) -> None:
    start = [torch.randn(3), torch.randn(2, 2)]
    models = [[torch.nn.Parameter(value.clone()) for value in start] for _ in range(2)]
    ours, theirs = (torch.optim.Adam(parameters, lr=0.1, **options) for parameters in models)
    for step in range(4):
        gradients = [torch.randn_like(value) for value in start]
        for parameters in models:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        if step == 2:
            models[0][1].grad = models[1][1].grad = None
        adam_step(ours)
        theirs.step()
    torch.testing.assert_close(models[0], models[1], rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
