"""A Gaussian policy with full covariance, centred on the encoder's Gaussian.

With the prior N(m, LLᵀ) of the state, the action is a = m + L(δ + T u), u ~ N(0, I), T lower triangular.
Initially δ = 0 and T = I, so the untrained agent *is* the prior. In whitened coordinates L cancels, and

    KL(π ‖ prior) = ½(‖T‖²_F + |δ|² − 5 − 2 Σ log T_ii).

``action_log_prob`` returns this KL where SAC expects log π; with a target entropy of −KL_target, SAC's update
then minimises α·KL − Q and tunes α so that KL reaches its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn
from torch.nn import functional

from agents.residual import MaskHead, NetworkHead, Residual, State
from bmvtrack import gaussian
from bmvtrack.errors import UserError

Observations = dict[str, torch.Tensor]
Inputs = Literal["moments", "all"]
"""The observations that an agent uses: ``all``, or ``moments``, without encoder features and box."""
_NO_MOMENTS = ("box", "features")
_MOST_WHITE = 10.0  # bound of a whitened action or suggestion
_MOST_INPUT = 5.0  # bound of all inputs, for log-areas of empty masks and the like


class StateExtractor(BaseFeaturesExtractor):
    """Concatenates the ``Dict`` observation to one vector; it has no learned parameters.

    Args:
        observation_space: observation space of ``BMVTrack-v0``.
        inputs: ``moments``: posterior, mask geometry and motion, but neither the encoder's pooled features
            nor the box. These two say next to nothing about where the posterior's mean is wrong, but let an
            agent recognise its training sequences and memorise them (docs/experiments.md). ``all``: these
            two as well, with the features layer-normalised.
    """

    def __init__(self, observation_space: spaces.Dict, inputs: Inputs = "moments") -> None:
        sizes = {name: space.shape[0] for name, space in observation_space.spaces.items()}  # type: ignore[index]
        left_out = _NO_MOMENTS if inputs == "moments" else ()
        self.inputs: Inputs = inputs
        self.names = [name for name in sorted(sizes) if name not in left_out]
        super().__init__(observation_space, sum(sizes[name] for name in self.names))

    def forward(self, observations: Observations) -> torch.Tensor:
        """The vectors ``(B, F')``, with the keys in alphabetical order."""
        parts = [
            functional.layer_norm(observations[name], observations[name].shape[-1:])
            if name == "features"
            else observations[name]
            for name in self.names
        ]
        return torch.cat(parts, dim=1).clamp(-_MOST_INPUT, _MOST_INPUT)


class ScaledPrior(nn.Module):
    """The prior of each state in Stable-Baselines3's scaled actions, whose bounds are ±1.

    Args:
        action_space: action space with finite bounds.
        correlated: False removes the covariance's off-diagonals, for comparison.
    """

    low: torch.Tensor
    rate: torch.Tensor

    def __init__(self, action_space: spaces.Box, correlated: bool = True) -> None:
        super().__init__()
        self.correlated = correlated
        low = torch.from_numpy(action_space.low)
        high = torch.from_numpy(action_space.high)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("rate", 2 / (high - low), persistent=False)

    def forward(self, observations: Observations) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``(B, 5)`` and lower Cholesky factor ``(B, 5, 5)``."""
        mean = (observations["prior_mean"] - self.low) * self.rate - 1
        factor = gaussian.unpack_lower(observations["prior_cholesky"])
        if not self.correlated:
            factor = torch.diag_embed(factor.norm(dim=-1))  # the norm of row i of L is σ_i
        return mean, self.rate[:, None] * factor

    def state(self, observations: Observations, extractor: nn.Module) -> State:
        """The inputs of actor and critics, in units of this prior.

        In the observation, the mask's motion is whitened by the full factor L. Without correlations, actions
        are whitened by the standard deviations only, and so is this motion: L r divided by them.

        Args:
            observations: observations of ``BMVTrack-v0``.
            extractor: a :class:`StateExtractor`.
        """
        suggestion = observations["mask_residual"]
        if not self.correlated:
            factor = gaussian.unpack_lower(observations["prior_cholesky"])
            relative = functional.normalize(factor, dim=-1)
            suggestion = (relative @ suggestion[..., None]).squeeze(-1)
            suggestion = suggestion.clamp(-_MOST_WHITE, _MOST_WHITE)
            observations = observations | {"mask_residual": suggestion}
        return State(extractor(observations), suggestion)


class LatentPriorActor(Actor):
    """The policy π(a | s) = N(m + Lδ, LTTᵀLᵀ); see the module's docstring.

    Args:
        args: positional arguments of Stable-Baselines3's :class:`~stable_baselines3.sac.policies.Actor`.
        correlated: see :class:`ScaledPrior`; if False, T is diagonal as well.
        kwargs: its keyword arguments.
    """

    def __init__(self, *args: Any, correlated: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prior = ScaledPrior(self.action_space, correlated)
        # The layers of Stable-Baselines3's squashed diagonal Gaussian are not used here.
        del self.latent_pi, self.mu, self.log_std
        dimension = get_action_dim(self.action_space)
        self.head = (
            NetworkHead(self.features_dim, self.net_arch, dimension)
            if self.net_arch
            else MaskHead(dimension)
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"correlated": self.prior.correlated}

    def state(self, observations: Observations) -> State:
        """The inputs of this actor and of the critics for observations."""
        return self.prior.state(observations, self.features_extractor)

    def residual(self, state: State) -> Residual:
        """The policy of B states, in units of the prior."""
        shift, packed = self.head(state)
        return Residual.of(shift, packed, self.prior.correlated)

    def forward(self, obs: Any, deterministic: bool = False) -> torch.Tensor:
        """Scaled actions ``(B, 5)``; they are not squashed, so some may lie outside ±1."""
        residual = self.residual(self.state(obs))
        white = residual.shift
        if not deterministic:
            white = residual.draw(torch.randn_like(white))
        return gaussian.unwhiten(white, *self.prior(obs))

    def action_log_prob(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled actions ``(B, 5)``, and KL(π ‖ prior) ``(B,)`` in place of log π."""
        residual = self.residual(self.state(obs))
        white = residual.draw(torch.randn_like(residual.shift))
        return gaussian.unwhiten(white, *self.prior(obs)), residual.kl()


class TwinNetwork(nn.Module):
    """Two multilayer perceptrons with layer normalisation, evaluated together.

    Args:
        inputs: number of inputs.
        hidden: sizes of the hidden layers.
    """

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [inputs, *hidden, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.gains, self.offsets = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(sizes):
            bound = before**-0.5  # as in nn.Linear
            self.weights.append(torch.empty(2, before, after).uniform_(-bound, bound))
            self.biases.append(torch.empty(2, 1, after).uniform_(-bound, bound))
        for size in hidden:
            self.gains.append(torch.ones(2, 1, size))
            self.offsets.append(torch.zeros(2, 1, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs)`` → ``(2, B, 1)``."""
        x = x.expand(2, *x.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)  # (2, B, H)
            if i < len(self.gains):
                x = functional.layer_norm(x, x.shape[-1:])
                x = functional.silu(torch.addcmul(self.offsets[i], x, self.gains[i]))
        return x


class LatentPriorCritic(BaseModel):
    """Two estimates of Q(s, a), with the action in units of the policy's residual.

    Besides the state, their inputs are the whitened action u = L⁻¹(a − m), its differences from the motion s
    that the mask suggests and from tanh s, and the squares of all three: Q is roughly a bowl whose minimum
    lies between them.

    Args:
        observation_space: observation space of the environment.
        action_space: action space of the environment.
        net_arch: sizes of the hidden layers.
        features_extractor: extractor of the state.
        correlated: see :class:`ScaledPrior`.
        kwargs: arguments of Stable-Baselines3's ``BaseModel``.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        net_arch: Sequence[int],
        features_extractor: BaseFeaturesExtractor,
        correlated: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, **kwargs
        )
        self.prior = ScaledPrior(action_space, correlated)
        dimension = get_action_dim(action_space)
        self.twins = TwinNetwork(features_extractor.features_dim + 6 * dimension, net_arch)

    def forward(self, obs: Any, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Q values of scaled actions ``(B, 5)``, ``(B, 1)`` for each critic."""
        assert self.features_extractor is not None
        state = self.prior.state(obs, self.features_extractor)
        return tuple(self.values(state, gaussian.whiten(actions, *self.prior(obs))).unbind(0))

    def values(self, state: State, white: torch.Tensor) -> torch.Tensor:
        """Q values ``(2, B, 1)`` of whitened actions ``(B, 5)``."""
        white = white.clamp(-_MOST_WHITE, _MOST_WHITE)
        by_mask = state.suggestion
        distances = torch.cat([white, white - by_mask, white - by_mask.tanh()], dim=1)
        inputs = torch.cat([state.inputs, distances, distances.square() / 4], dim=1)
        values: torch.Tensor = self.twins(inputs)
        return values


class LatentPriorPolicy(SACPolicy):
    """SAC's policy with the actor and critics above.

    Args:
        args: positional arguments of ``SACPolicy``.
        correlated: see :class:`ScaledPrior`.
        kwargs: its keyword arguments.

    Raises:
        UserError: if the features extractor has parameters.
    """

    actor: LatentPriorActor
    critic: LatentPriorCritic  # type: ignore[assignment]
    critic_target: LatentPriorCritic  # type: ignore[assignment]

    def __init__(self, *args: Any, correlated: bool = True, **kwargs: Any) -> None:
        self.correlated = correlated
        kwargs.setdefault("features_extractor_class", StateExtractor)
        if "optimizer_class" not in kwargs:  # Adam; others may not take it
            kwargs.setdefault("optimizer_kwargs", {"fused": True})
        super().__init__(*args, **kwargs)
        if any(True for _ in self.actor.features_extractor.parameters()):
            raise UserError(
                "actor and critics share the output of the features extractor, so it must not have "
                "parameters; use StateExtractor"
            )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"correlated": self.correlated}

    def make_actor(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> LatentPriorActor:
        """See ``SACPolicy``."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return LatentPriorActor(correlated=self.correlated, **kwargs).to(self.device)

    def make_critic(  # type: ignore[override]
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> LatentPriorCritic:
        """See ``SACPolicy``."""
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        taken = ("observation_space", "action_space", "net_arch", "features_extractor")
        return LatentPriorCritic(
            **{name: kwargs[name] for name in taken},
            correlated=self.correlated,
            normalize_images=kwargs["normalize_images"],
        ).to(self.device)
