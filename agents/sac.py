"""Soft actor-critic around the latent prior: Stable-Baselines3's own loop, with KL for −entropy."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agents.policy import LatentPriorActor, LatentPriorPolicy


class LatentPriorSAC(SAC):
    """SAC whose policy is the prior at first and is held near it by KL (as in SPiRL).

    Args:
        policy: ``LatentPriorPolicy``.
        env: ``BMVTrack-v0``, or anything with its observations.
        target_kl: nats that the policy may spend on leaving the prior; the temperature is tuned to it.
        kwargs: of Stable-Baselines3's ``SAC``. The warm-up (``learning_starts``) draws from the prior.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LatentPriorPolicy": LatentPriorPolicy}
    actor: LatentPriorActor

    def __init__(
        self,
        policy: str | type[LatentPriorPolicy],
        env: GymEnv | str,
        target_kl: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.target_kl = target_kl
        super().__init__(policy, env, target_entropy=-target_kl, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """See ``SAC``; logs the KL to the prior as well."""
        super().train(gradient_steps, batch_size)
        self.logger.record("train/kl_to_prior", float(self.actor.last_kl))

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # 0: no uniform warm-up. Before the first update the policy is the prior itself.
        return super()._sample_action(0, action_noise, n_envs)
