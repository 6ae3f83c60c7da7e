"""The agent: the prior at first, KL for entropy, and what is stored of it."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction
from safetensors.torch import load_file, save_file
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from agents.policy import LatentPriorActor, LatentPriorPolicy, StateExtractor, TwinNetwork
from agents.replay import TensorReplayBuffer
from agents.residual import Residual
from agents.sac import LatentPriorSAC
from agents.sb3_env import StableBaselinesEnv
from agents.storage import (
    load_actor,
    make_actor,
    restore_training_state,
    save_actor,
    training_state,
)
from bmvtrack import gaussian
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.perception import Perception
from bmvtrack.prior import named, push_forward
from envs.bmvtrack_env import BMVTrackEnv
from envs.state import action_space, observation_space
from envs.vector_env import BMVTrackVectorEnv

FEATURES = 6
BOXES = {
    "corner": [60.0, 50.0, 40.0, 30.0, 0.2],
    "centre": [427.0, 240.0, 150.0, 80.0, -0.7],
    "far": [700.0, 400.0, 90.0, 200.0, 1.3],
}


def observations(mean: torch.Tensor, covariance: torch.Tensor, count: int) -> dict[str, np.ndarray]:
    """States that differ only in what the prior says, repeated ``count`` times."""
    values = {
        name: np.zeros((count, *space.shape), np.float32)
        for name, space in observation_space(FEATURES).spaces.items()
    }
    factor = torch.linalg.cholesky(covariance)
    values["prior_mean"][:] = mean.numpy()
    values["prior_cholesky"][:] = gaussian.pack_lower(factor).numpy()
    return values


def tensors(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in values.items()}


@pytest.fixture(params=[[], [16]], ids=["mask", "network"])
def actor(request: pytest.FixtureRequest) -> LatentPriorActor:
    torch.manual_seed(0)
    result = make_actor("latent-prior", "frame", FEATURES, request.param)
    assert isinstance(result, LatentPriorActor)
    return result


def stirred(actor: LatentPriorActor) -> LatentPriorActor:
    """The same actor after it has learned something arbitrary."""
    with torch.no_grad():
        for parameter in actor.head.parameters():
            parameter.normal_(std=0.2)
    return actor


@pytest.mark.parametrize("place", BOXES)
def test_untrained_actions_are_the_prior_in_frame_coordinates(
    actor: LatentPriorActor, place: str
) -> None:
    prior, box = named("davis16"), np.array(BOXES[place])
    mean, covariance = push_forward(
        torch.from_numpy(prior.mean),
        torch.from_numpy(prior.covariance) / 4,
        torch.from_numpy(box),
        854,
        480,
    )
    torch.manual_seed(1)
    actions, _ = actor.predict(observations(mean, covariance, 10_000), deterministic=False)
    scale = covariance.diagonal().sqrt().numpy()
    np.testing.assert_allclose((actions.mean(axis=0) - mean.numpy()) / scale, 0, atol=0.04)
    correlation = np.cov(actions, rowvar=False) / np.outer(scale, scale)
    np.testing.assert_allclose(correlation, covariance.numpy() / np.outer(scale, scale), atol=0.06)
    deterministic, _ = actor.predict(observations(mean, covariance, 1), deterministic=True)
    np.testing.assert_allclose(deterministic[0], mean, rtol=1e-4, atol=1e-5)


def test_untrained_kl_is_zero_and_never_negative(actor: LatentPriorActor) -> None:
    state = tensors(observations(torch.ones(5), torch.eye(5) / 100, 4))
    np.testing.assert_allclose(actor.action_log_prob(state)[1].detach(), 0, atol=1e-6)
    assert (stirred(actor).action_log_prob(state)[1] > 0).all()


def test_kl_is_that_of_the_two_gaussians(actor: LatentPriorActor) -> None:
    torch.manual_seed(2)
    root = torch.randn(5, 5, dtype=torch.float64) / 10
    covariance = root @ root.T + 0.01 * torch.eye(5)
    state = tensors(observations(torch.ones(5), covariance, 1))
    _, kl = stirred(actor).action_log_prob(state)
    mean, factor = actor.prior(state)
    residual = actor.residual(actor.state(state))
    shift, spread = residual.shift, residual.spread
    policy = torch.distributions.MultivariateNormal(
        gaussian.unwhiten(shift, mean, factor), scale_tril=factor @ spread
    )
    prior = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    expected = torch.distributions.kl_divergence(policy, prior)
    torch.testing.assert_close(kl, expected, rtol=1e-3, atol=1e-4)


def test_actions_have_the_policy_s_covariance(actor: LatentPriorActor) -> None:
    covariance = torch.diag(torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)) / 100
    values = observations(torch.ones(5), covariance, 20_000)
    torch.manual_seed(3)
    actions = stirred(actor)(tensors(values)).detach()
    mean, factor = actor.prior(tensors(values))
    white = gaussian.whiten(actions, mean, factor)
    residual = actor.residual(actor.state(tensors(values)))
    shift, spread = residual.shift, residual.spread
    torch.testing.assert_close(white.mean(0), shift[0], rtol=0, atol=0.05)
    torch.testing.assert_close(white.T.cov(), (spread @ spread.mT)[0], rtol=0.1, atol=0.05)


def test_gradients_reach_both_heads(actor: LatentPriorActor) -> None:
    state = tensors(observations(torch.ones(5), torch.eye(5) / 100, 8))
    actions, kl = stirred(actor).action_log_prob(state)
    (actions.square().mean() + kl.mean()).backward()
    for name, parameter in actor.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


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


def test_without_correlations_the_marginals_stay(actor: LatentPriorActor) -> None:
    root = torch.randn(5, 5, dtype=torch.float64) / 10
    covariance = root @ root.T + 0.01 * torch.eye(5)
    diagonal = make_actor("diagonal-prior", "frame", FEATURES, [16])
    assert isinstance(diagonal, LatentPriorActor)
    state = tensors(observations(torch.ones(5), covariance, 1))
    full, marginal = actor.prior(state)[1][0], diagonal.prior(state)[1][0]
    assert torch.equal(marginal, torch.diag(marginal.diagonal()))
    torch.testing.assert_close(marginal @ marginal.T, torch.diag((full @ full.T).diagonal()))
    spread = stirred(diagonal).residual(diagonal.state(state)).spread[0]
    assert torch.equal(spread, torch.diag(spread.diagonal()))


def test_without_correlations_the_mask_s_motion_is_whitened_as_actions_are() -> None:
    torch.manual_seed(4)
    root = torch.randn(5, 5, dtype=torch.float64) / 10
    covariance = root @ root.T + 0.01 * torch.eye(5)
    values = observations(torch.ones(5), covariance, 3)
    values["mask_residual"][:] = np.random.default_rng(0).normal(size=(3, 5))
    state = tensors(values)
    factor = torch.linalg.cholesky(covariance).float()
    for policy in ("latent-prior", "diagonal-prior"):
        actor = make_actor(policy, "frame", FEATURES, [16])
        assert isinstance(actor, LatentPriorActor)
        prior = actor.prior
        told = actor.state(state)
        said = gaussian.unwhiten(state["mask_residual"], state["prior_mean"], factor)
        white = gaussian.whiten((said - prior.low) * prior.rate - 1, *prior(state))
        torch.testing.assert_close(told.suggestion, white, rtol=1e-4, atol=1e-4)
        place = actor.features_extractor.names.index("mask_residual")
        before = sum(values[name].shape[1] for name in actor.features_extractor.names[:place])
        assert torch.equal(told.inputs[:, before : before + 5], told.suggestion)


def test_an_extractor_that_learns_is_refused(env: BMVTrackEnv) -> None:
    class Learning(StateExtractor):
        def __init__(self, space: spaces.Dict) -> None:
            super().__init__(space)
            self.scale = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(UserError, match="must have nothing to learn"):
        agent(env, policy_kwargs={"net_arch": [16], "features_extractor_class": Learning})


def test_twin_networks_are_two_networks() -> None:
    torch.manual_seed(0)
    twins, x = TwinNetwork(7, [16, 8]), torch.randn(5, 7)
    for i, output in enumerate(twins(x)):
        layers: list[torch.nn.Module] = []
        for k, (weight, bias) in enumerate(zip(twins.weights, twins.biases, strict=True)):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[2])
            linear.weight.data, linear.bias.data = weight[i].T.detach(), bias[i, 0].detach()
            layers.append(linear)
            if k < 2:
                layers += [torch.nn.LayerNorm(weight.shape[2]), torch.nn.SiLU()]
        torch.testing.assert_close(output, torch.nn.Sequential(*layers)(x))


def test_moments_leave_out_what_tells_sequences_apart() -> None:
    space = observation_space(FEATURES)
    values = tensors(observations(torch.ones(5), torch.eye(5) / 100, 2))
    other = values | {"features": torch.randn(2, FEATURES), "box": torch.randn(2, 6)}
    moments, everything = StateExtractor(space), StateExtractor(space, "all")
    assert everything.features_dim == moments.features_dim + FEATURES + 6
    assert moments(values).shape == (2, moments.features_dim)
    assert torch.equal(moments(values), moments(other))
    assert not torch.equal(everything(values), everything(other))


def test_actor_is_stored_in_half_precision(tmp_path: Path, actor: LatentPriorActor) -> None:
    save_actor(stirred(actor), "latent-prior", "frame", tmp_path)
    stored = load_actor(tmp_path)
    assert stored.coordinates == "frame"
    state = observations(torch.ones(5), torch.eye(5) / 100, 3)
    expected, _ = actor.predict(state, deterministic=True)
    found, _ = stored.actor.predict(state, deterministic=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_saved_policy_is_loaded_with_its_kind(tmp_path: Path) -> None:
    space, actions = observation_space(FEATURES), action_space("object")
    policy = LatentPriorPolicy(space, actions, lambda _: 1e-3, correlated=False)
    policy.save(str(tmp_path / "policy"))
    loaded = LatentPriorPolicy.load(str(tmp_path / "policy"))
    assert isinstance(loaded, LatentPriorPolicy)
    assert not loaded.correlated
    assert not loaded.actor.prior.correlated


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


def test_agents_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    actor = make_actor("latent-prior", "frame", FEATURES, [])
    with pytest.raises(UserError, match=r"agent\.json is missing"):
        load_actor(tmp_path)
    save_actor(actor, "latent-prior", "frame", tmp_path)
    tensors = load_file(tmp_path / "agent.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if k != "head.factor"}, tmp_path / "agent.safetensors"
    )
    with pytest.raises(UserError, match=r"does not fit .*head\.factor"):
        load_actor(tmp_path)
    (tmp_path / "agent.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="does not fit"):
        load_actor(tmp_path)


def test_an_actor_can_go_halfway_to_the_mask() -> None:
    actor = make_actor("latent-prior", "object", FEATURES, [])
    assert isinstance(actor, LatentPriorActor)
    with torch.no_grad():
        actor.head.share.fill_(0.5)
        actor.head.log_reach.fill_(5.0)
    prior = named("davis16")
    mean, covariance = torch.from_numpy(prior.mean), torch.from_numpy(prior.covariance)
    values = observations(mean, covariance, 1)
    residual = np.array([[0.5, -0.3, 0.2, -0.6, 0.1]], np.float32)
    values["mask_residual"][:] = residual
    found, _ = actor.predict(values, deterministic=True)
    by_mask = mean + torch.linalg.cholesky(covariance) @ torch.from_numpy(residual[0]).double()
    np.testing.assert_allclose(found[0], (mean + by_mask) / 2, atol=2e-3)  # δ bends towards ±6


def test_a_mirror_image_is_corrected_alike() -> None:
    """Upside down, sin θ and Δy change their signs, and nothing else does."""
    torch.manual_seed(5)
    actor = make_actor("latent-prior", "object", FEATURES, [])
    assert isinstance(actor, LatentPriorActor)
    stirred(actor)
    mirror = torch.tensor([1.0, 1, -1, 1, -1])
    root = torch.randn(5, 5, dtype=torch.float64) / 10
    covariance = root @ root.T + 0.01 * torch.eye(5)
    mean = torch.tensor([1.1, 0.9, 0.2, 0.1, -0.3])
    suggested = torch.randn(5)

    def moved(mean: torch.Tensor, covariance: torch.Tensor, suggested: torch.Tensor) -> np.ndarray:
        values = observations(mean, covariance, 1)
        factor = torch.linalg.cholesky(covariance).float()
        values["mask_residual"][:] = gaussian.whiten(suggested[None], mean[None], factor[None])
        return actor.predict(values, deterministic=True)[0][0]

    there = moved(mean, covariance, suggested)
    mirrored = moved(mean * mirror, covariance * torch.outer(mirror, mirror), suggested * mirror)
    np.testing.assert_allclose(mirrored, there * mirror.numpy(), rtol=1e-4, atol=1e-5)


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
        (RescaleAction(single, -1.0, 1.0), {}, "leave out wrappers that rescale them"),
        (VecNormalize(environment), {}, "give it norm_obs=False"),
        (VecNormalize(environment, norm_obs=False), {}, "TensorReplayBuffer takes no VecNormalize"),
        (environment, {"use_sde": True}, "not for the latent prior"),
        (VecFrameStack(environment, 2), {}, "leave out wrappers that stack or flatten them"),
        (environment, {"truth_share": 0.1}, "of 2 environments is none of them"),
        (environment, {"truth_share": 1.5}, r"must lie in \[0, 1\]"),
        (single, {"truth_share": 1.0}, "do not know the truth"),
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


def test_a_spread_that_left_its_bounds_comes_back() -> None:
    """Clamped, and still with a gradient."""
    packed = torch.full((1, 15), 1.5, requires_grad=True)
    residual = Residual.of(torch.zeros(1, 5), packed, correlated=True)
    assert (residual.log_diagonal == 1).all()
    residual.kl().sum().backward()
    assert packed.grad is not None
    assert (gaussian.unpack_lower(packed.grad).diagonal(dim1=1, dim2=2) > 0).all()


def test_an_actor_saved_alone_is_of_the_same_kind(tmp_path: Path, env: BMVTrackEnv) -> None:
    model = agent(env, policy_kwargs={"correlated": False})
    model.actor.save(str(tmp_path / "actor"))
    assert not LatentPriorActor.load(str(tmp_path / "actor")).prior.correlated
