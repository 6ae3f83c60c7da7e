"""The policy: the prior at first, in its units, and what is stored of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.policy import LatentPriorActor, LatentPriorPolicy, StateExtractor, TwinNetwork
from agents.residual import MaskHead, Residual, State
from agents.storage import (
    load_actor,
    make_actor,
    save_actor,
)
from bmvtrack import gaussian
from bmvtrack.errors import UserError
from bmvtrack.prior import named, push_forward
from envs.state import action_space, observation_space

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


def test_a_spread_that_left_its_bounds_comes_back() -> None:
    """Clamped, and still with a gradient."""
    packed = torch.full((1, 15), 1.5, requires_grad=True)
    residual = Residual.of(torch.zeros(1, 5), packed, correlated=True)
    assert (residual.log_diagonal == 1).all()
    residual.kl().sum().backward()
    assert packed.grad is not None
    assert (gaussian.unpack_lower(packed.grad).diagonal(dim1=1, dim2=2) > 0).all()


def test_no_input_is_beyond_its_bounds() -> None:
    space = observation_space(FEATURES)
    values = tensors(observations(torch.ones(5), torch.eye(5) / 100, 2))
    values["mask_geometry"] -= 100
    values["features"] += torch.arange(FEATURES)
    inputs = StateExtractor(space, "all")(values)
    assert inputs.abs().max() == 5
    start = 6  # behind the box
    normalised = inputs[0, start : start + FEATURES]
    assert abs(normalised.mean()) < 1e-6
    assert normalised.std(correction=0) == pytest.approx(1, abs=1e-3)


def test_critics_see_the_action_and_how_far_it_is_from_the_mask_s_motion() -> None:
    policy = LatentPriorPolicy(observation_space(FEATURES), action_space("object"), lambda _: 1e-3)
    policy.critic.twins = torch.nn.Identity()
    state = State(torch.randn(3, 4), 3 * torch.randn(3, 5))
    white = torch.randn(3, 5)
    white[0, 0] = 99  # of which ten count
    seen, u, s = policy.critic.values(state, white), white.clamp(max=10), state.suggestion
    parts = [u, u - s, u - s.tanh()]
    expected = torch.cat([state.inputs, *parts, *(part.square() / 4 for part in parts)], dim=1)
    torch.testing.assert_close(seen, expected)


def test_critics_whiten_as_the_actor_does() -> None:
    root = torch.randn(5, 5, dtype=torch.float64) / 10
    state = tensors(observations(torch.ones(5), root @ root.T + 0.01 * torch.eye(5), 3))
    actions = torch.randn(3, 5)
    for correlated in (True, False):
        policy = LatentPriorPolicy(
            observation_space(FEATURES),
            action_space("frame"),
            lambda _: 1e-3,
            correlated=correlated,
        )
        white = gaussian.whiten(actions, *policy.actor.prior(state))
        expected = policy.critic.values(policy.actor.state(state), white)
        torch.testing.assert_close(torch.stack(policy.critic(state, actions)), expected)


def test_without_correlations_no_suggestion_is_beyond_ten() -> None:
    factor = torch.eye(5, dtype=torch.float64)
    factor[4] = 0.5
    values = observations(torch.ones(5), factor @ factor.T / 100, 1)
    values["mask_residual"][:] = 10
    actor = make_actor("diagonal-prior", "frame", FEATURES, [])
    suggestion = actor.state(tensors(values)).suggestion
    torch.testing.assert_close(suggestion, torch.full((1, 5), 10.0))


def test_a_policy_stays_where_it_is_sane() -> None:
    residual = Residual.of(torch.full((1, 5), 99.0), torch.full((1, 15), -9.0), correlated=False)
    torch.testing.assert_close(residual.shift, torch.full((1, 5), 6.0))
    torch.testing.assert_close(residual.log_diagonal, torch.full((1, 5), -4.0))


def test_twin_networks_begin_as_linear_layers_do() -> None:
    torch.manual_seed(0)
    for weight in TwinNetwork(64, [64, 64]).weights:
        assert 0.11 < weight.abs().max() <= 0.125


def test_the_mask_is_followed_up_to_two_deviations_at_first() -> None:
    head = MaskHead(5)
    with torch.no_grad():
        head.share.fill_(1)
    shift, _ = head(State(torch.zeros(1, 0), torch.full((1, 5), 50.0)))
    torch.testing.assert_close(shift, torch.full((1, 5), 2.0), atol=0.02, rtol=0)
