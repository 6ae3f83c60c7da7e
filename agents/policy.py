"""A Gaussian policy with full covariance, centred on the encoder's Gaussian.

With the prior N(m, LLᵀ) of the state, the action is a = m + L(δ + T u), u ~ N(0, I), T lower triangular.
At the start δ = 0 and T = I: the untrained agent *is* the prior. In whitened coordinates L cancels, and

    KL(π ‖ prior) = ½(‖T‖²_F + |δ|² − 5 − 2 Σ log T_ii).

``action_log_prob`` returns this KL in the place where SAC expects log π; with a target entropy of −KL_target
Stable-Baselines3's training loop then minimises α·KL − Q and tunes α so that KL meets its target.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from bmvtrack import gaussian

Observations = dict[str, torch.Tensor]
_MOST_SHIFT = 3.0  # |δ_i|, in standard deviations of the prior
_LOG_SCALE = (-4.0, 1.0)  # of T_ii
_MOST_WHITE = 10.0  # what the critic is shown of a whitened action


class StateExtractor(BaseFeaturesExtractor):
    """The ``Dict`` observation as one vector; encoder features are layer-normalised.

    Args:
        observation_space: of ``BMVTrack-v0``.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        sizes = {name: space.shape[0] for name, space in observation_space.spaces.items()}  # type: ignore[index]
        super().__init__(observation_space, features_dim=sum(sizes.values()))
        self.normalize_features = nn.LayerNorm(sizes["features"])

    def forward(self, observations: Observations) -> torch.Tensor:
        """``(B, F')``, keys in alphabetical order."""
        return torch.cat(
            [
                self.normalize_features(value) if name == "features" else value
                for name, value in sorted(observations.items())
            ],
            dim=1,
        )


class ScaledPrior(nn.Module):
    """The prior of each state in Stable-Baselines3's scaled actions, where bounds are ±1.

    Args:
        action_space: with finite bounds.
    """

    low: torch.Tensor
    rate: torch.Tensor

    def __init__(self, action_space: spaces.Box) -> None:
        super().__init__()
        low = torch.from_numpy(action_space.low)
        high = torch.from_numpy(action_space.high)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("rate", 2 / (high - low), persistent=False)

    def forward(self, observations: Observations) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``(B, 5)`` and lower Cholesky factor ``(B, 5, 5)``."""
        mean = (observations["prior_mean"] - self.low) * self.rate - 1
        factor = gaussian.unpack_lower(observations["prior_cholesky"])
        return mean, self.rate[:, None] * factor


class LatentPriorActor(Actor):
    """The policy π(a | s) = N(m + Lδ, LTTᵀLᵀ); see the module.

    Takes the arguments of Stable-Baselines3's :class:`~stable_baselines3.sac.policies.Actor`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prior = ScaledPrior(self.action_space)
        dimension = get_action_dim(self.action_space)
        width = self.net_arch[-1] if self.net_arch else self.features_dim
        self.mu = nn.Linear(width, dimension)  # δ
        factor_head = nn.Linear(width, dimension * (dimension + 1) // 2)
        self.log_std = factor_head  # type: ignore[assignment]
        for parameter in (*self.mu.parameters(), *factor_head.parameters()):
            nn.init.zeros_(parameter)
        self.last_kl = torch.zeros(())

    def residual(self, observations: Observations) -> tuple[torch.Tensor, torch.Tensor]:
        """δ ``(B, 5)`` and T ``(B, 5, 5)``, in units of the prior's own distribution."""
        hidden = self.latent_pi(self.extract_features(observations, self.features_extractor))
        shift = _MOST_SHIFT * torch.tanh(self.mu(hidden) / _MOST_SHIFT)
        raw = gaussian.unpack_lower(self.log_std(hidden))  # type: ignore[operator]
        diagonal = raw.diagonal(dim1=-2, dim2=-1).clamp(*_LOG_SCALE).exp()
        return shift, raw.tril(-1) + torch.diag_embed(diagonal)

    def forward(self, obs: Any, deterministic: bool = False) -> torch.Tensor:
        """Scaled actions ``(B, 5)``; not squashed, so some lie outside ±1."""
        shift, spread = self.residual(obs)
        return self._action(obs, shift, None if deterministic else spread)

    def action_log_prob(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled actions ``(B, 5)``, and KL(π ‖ prior) ``(B,)`` in the place of log π."""
        shift, spread = self.residual(obs)
        log_diagonal = spread.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        dimension = shift.shape[-1]
        quadratic = spread.square().sum(dim=(-2, -1)) + shift.square().sum(-1) - dimension
        kl = 0.5 * quadratic - log_diagonal
        self.last_kl = kl.detach().mean()
        return self._action(obs, shift, spread), kl

    def _action(
        self, observations: Observations, shift: torch.Tensor, spread: torch.Tensor | None
    ) -> torch.Tensor:
        mean, factor = self.prior(observations)
        if spread is not None:
            shift = gaussian.unwhiten(torch.randn_like(shift), shift, spread)
        return gaussian.unwhiten(shift, mean, factor)


class LatentPriorCritic(ContinuousCritic):
    """Q(s, a) of the whitened action L⁻¹(a − m): the same units as the policy's residual.

    Takes the arguments of Stable-Baselines3's ``ContinuousCritic``.
    """

    def __init__(self, observation_space: Any, action_space: spaces.Box, *args: Any, **kwargs: Any):
        super().__init__(observation_space, action_space, *args, **kwargs)
        self.prior = ScaledPrior(action_space)

    def forward(self, obs: Any, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Q values of scaled actions ``(B, 5)``: one ``(B, 1)`` for each critic."""
        white = gaussian.whiten(actions, *self.prior(obs))
        return super().forward(obs, white.clamp(-_MOST_WHITE, _MOST_WHITE))


class LatentPriorPolicy(SACPolicy):
    """SAC's policy with the actor and critics above; arguments as there."""

    actor: LatentPriorActor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", StateExtractor)
        super().__init__(*args, **kwargs)

    def make_actor(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> LatentPriorActor:
        """See ``SACPolicy``."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return LatentPriorActor(**kwargs).to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> LatentPriorCritic:
        """See ``SACPolicy``."""
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return LatentPriorCritic(**kwargs).to(self.device)
