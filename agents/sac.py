"""Soft actor-critic around the latent prior: Stable-Baselines3's, with KL for −entropy."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, GymEnv, Schedule
from stable_baselines3.common.utils import update_learning_rate
from torch.nn import functional

from agents.policy import LatentPriorActor, LatentPriorCritic, LatentPriorPolicy
from agents.replay import TensorReplayBuffer
from agents.residual import State
from bmvtrack import gaussian
from bmvtrack.arrays import FloatArray
from bmvtrack.errors import UserError
from bmvtrack.motion import COORDINATES
from envs.state import action_space


class LatentPriorSAC(SAC):
    """SAC whose policy is the prior at first and is held near it by KL (as in SPiRL).

    The update is Stable-Baselines3's, number for number, without its waits for the device: losses stay
    there until :meth:`train` is done. The actor may learn more slowly than the critics: the gain of a
    better action is small beside what a half-learned critic gets wrong.

    Args:
        policy: ``LatentPriorPolicy``.
        env: ``BMVTrack-v0``, or anything with its observations.
        target_kl: nats that the policy may spend on leaving the prior; the temperature is tuned to it.
        learning_rate: of critics and temperature.
        actor_learning_rate: of the actor, a number or a function of the share of training that
            remains; None: the same as of the critics.
        truth_share: of the environments that act by the true motion plus the prior's noise, so that
            part of the buffer shows what good tracking is worth. Needs environments with a
            ``true_motion`` method.
        kwargs: of Stable-Baselines3's ``SAC``. The warm-up (``learning_starts``) draws from the prior.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LatentPriorPolicy": LatentPriorPolicy}
    actor: LatentPriorActor
    critic: LatentPriorCritic  # type: ignore[assignment]
    critic_target: LatentPriorCritic  # type: ignore[assignment]
    ent_coef_optimizer: torch.optim.Adam | None

    def __init__(
        self,
        policy: str | type[LatentPriorPolicy],
        env: GymEnv | str,
        target_kl: float = 1.0,
        learning_rate: float = 3e-4,
        actor_learning_rate: float | Schedule | None = None,
        truth_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.target_kl, self.truth_share = target_kl, truth_share
        self.actor_learning_rate = (
            learning_rate if actor_learning_rate is None else actor_learning_rate
        )
        super().__init__(
            policy, env, learning_rate=learning_rate, target_entropy=-target_kl, **kwargs
        )

    def _setup_model(self) -> None:
        self._check()
        super()._setup_model()

    def _check(self) -> None:
        """Refuse what would make the prior another one, or what this agent has no use for.

        Raises:
            UserError: saying what, and what to do instead.
        """
        if self.action_space not in [action_space(coordinates) for coordinates in COORDINATES]:
            raise UserError(
                "actions must be those of BMVTrack-v0, in which the prior is told: leave out wrappers "
                "that rescale them"
            )
        moments = getattr(self.observation_space, "spaces", {}).get("prior_mean")
        if moments is None or moments.shape != (5,):
            raise UserError(
                "observations must be those of BMVTrack-v0, one frame's: leave out wrappers that stack or "
                "flatten them"
            )
        normalize = self._vec_normalize_env
        if normalize is not None and normalize.norm_obs and normalize.norm_obs_keys != ["features"]:
            raise UserError(
                "VecNormalize would make another prior of what is observed: give it norm_obs=False"
            )
        if normalize is not None and issubclass(
            self.replay_buffer_class or ReplayBuffer, TensorReplayBuffer
        ):
            raise UserError(
                "TensorReplayBuffer takes no VecNormalize: rewards lie in [0, 1] already"
            )
        if self.use_sde or self.n_steps > 1:
            raise UserError("use_sde and n_steps are not for the latent prior: leave them out")
        if not 0 <= self.truth_share <= 1:
            raise UserError(f"truth_share must lie in [0, 1], not {self.truth_share}")

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        assert self.env is not None
        if self.truth_share and not (self._followers and self.env.has_attr("true_motion")):
            raise UserError(
                f"truth_share {self.truth_share} of {self.n_envs} environments is none of them, or "
                "they do not know the truth; StableBaselinesEnv over BMVTrackVectorEnv does"
            )
        return super()._setup_learn(*args, **kwargs)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """See ``SAC``; refuses what a new agent would."""
        super().set_env(env, force_reset)
        self._check()

    @property
    def _followers(self) -> int:
        """Environments that act by the truth."""
        return round(self.truth_share * self.n_envs)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """See ``SAC``; logs the KL to the prior as well."""
        self.policy.set_training_mode(True)
        others = [self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            others.append(self.ent_coef_optimizer)
        self._update_learning_rate(others)
        rate = self.actor_learning_rate
        if callable(rate):
            rate = rate(self._current_progress_remaining)
        update_learning_rate(self.actor.optimizer, rate)
        sums: dict[str, torch.Tensor] = {}
        for step in range(gradient_steps):
            assert self.replay_buffer is not None
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            for name, value in self.update(cast("DictReplayBufferSamples", batch)).items():
                sums[name] = sums.get(name, 0) + value
            if step % self.target_update_interval == 0:
                self._update_target()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        means = torch.stack(list(sums.values())).div(gradient_steps).tolist()  # waits once
        for name, mean in zip(sums, means, strict=True):
            self.logger.record(f"train/{name}", mean)

    def update(self, batch: DictReplayBufferSamples) -> dict[str, torch.Tensor]:
        """One gradient step of temperature, critics and actor, as in ``SAC.train``.

        Returns:
            Losses, temperature and KL to the prior, each a scalar tensor on the device.
        """
        now, then = map(self.actor.state, (batch.observations, batch.next_observations))
        # Drawn one after the other, as in SAC.train; the rest is one pass through the actor.
        noise = torch.cat([torch.randn_like(batch.actions) for _ in (now, then)])
        residual = self.actor.residual(State.cat([now, then]))
        (white, next_white), (kl, next_kl) = (
            part.split(len(batch.actions)) for part in (residual.draw(noise), residual.kl())
        )
        temperature, report = self._update_temperature(kl)
        with torch.no_grad():  # r + γ(1 − d)(min Q'(s', a') − α·KL)
            next_value = self.critic_target.values(then, next_white).amin(0).squeeze(-1)
            discount = self.gamma if batch.discounts is None else batch.discounts
            target = (next_value - temperature * next_kl)[:, None]
            target = batch.rewards + (1 - batch.dones) * discount * target
        taken = gaussian.whiten(batch.actions, *self.actor.prior(batch.observations))
        estimates = self.critic.values(now, taken)  # (2, B, 1)
        # Half the sum of both critics' mean squared errors is the mean over both.
        critic_loss = functional.mse_loss(estimates, target.expand_as(estimates))
        _minimize(self.critic.optimizer, critic_loss)
        value = self.critic.values(now, white).amin(0).squeeze(-1)
        actor_loss = (temperature * kl - value).mean()
        _minimize(self.actor.optimizer, actor_loss)
        return report | {
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "kl_to_prior": kl.detach().mean(),
        }

    def _update_temperature(self, kl: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The temperature before, and a step of it towards the target KL if it is tuned."""
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            return self.ent_coef_tensor, {"ent_coef": self.ent_coef_tensor}
        temperature = self.log_ent_coef.detach().exp()
        loss = -(self.log_ent_coef * (kl.detach() - self.target_kl)).mean()
        _minimize(self.ent_coef_optimizer, loss)
        return temperature, {"ent_coef": temperature.squeeze(), "ent_coef_loss": loss.detach()}

    @torch.no_grad()
    def _update_target(self) -> None:
        """Polyak averaging, all parameters at once."""
        target: list[torch.Tensor] = list(self.critic_target.parameters())
        source: list[torch.Tensor] = list(self.critic.parameters())
        torch._foreach_lerp_(target, source, self.tau)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[FloatArray, FloatArray]:
        # 0: no uniform warm-up. Before the first update the policy is the prior itself.
        action, scaled = super()._sample_action(0, action_noise, n_envs)
        if self._followers:
            self._follow_the_truth(action, scaled, self._followers)
        return action, scaled

    def _follow_the_truth(self, action: FloatArray, scaled: FloatArray, count: int) -> None:
        """Replace the first ``count`` actions, in place, where there is an object to follow."""
        assert self.env is not None
        assert isinstance(self._last_obs, dict)
        truth = self.env.env_method("true_motion")[0][:count].cpu().float()
        factor = gaussian.unpack_lower(torch.from_numpy(self._last_obs["prior_cholesky"][:count]))
        noisy = gaussian.unwhiten(torch.randn_like(truth), truth, factor).numpy()
        space = self.env.action_space
        assert isinstance(space, spaces.Box)
        there = np.flatnonzero(np.isfinite(noisy).all(axis=1))
        action[there] = np.clip(noisy[there], space.low, space.high)
        scaled[there] = self.policy.scale_action(action[there])


def _minimize(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step; gradients of anything else that the loss depends on are not worked out."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
