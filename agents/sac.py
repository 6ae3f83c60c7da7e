"""Soft actor-critic with the latent prior: Stable-Baselines3's SAC with KL in place of −entropy."""

from __future__ import annotations

from functools import partial
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

from agents.optimizers import fuse, minimize, parameters_of, rates_on_device, take_step
from agents.policy import LatentPriorActor, LatentPriorCritic, LatentPriorPolicy
from agents.replay import TensorReplayBuffer
from agents.residual import State
from bmvtrack import gaussian
from bmvtrack.arrays import FloatArray
from bmvtrack.cuda_graphs import Launcher
from bmvtrack.errors import UserError
from bmvtrack.motion import COORDINATES
from envs.state import action_space

Report = tuple[tuple[str, ...], torch.Tensor]
"""Names of losses and other metrics, and their values on the device."""
_UNUSED = {"activation_fn", "clip_mean", "log_std_init", "n_critics", "use_expln"}  # of SACPolicy


class LatentPriorSAC(SAC):
    """SAC whose policy starts as the prior and is kept near it by a KL term (as in SPiRL).

    The update is numerically that of Stable-Baselines3, without its synchronisation with the device: losses
    stay there until :meth:`train` is done. The actor may learn more slowly than the critics, because the gain
    from a better action is small compared to the errors of a half-trained critic.

    Args:
        policy: ``LatentPriorPolicy``.
        env: ``BMVTrack-v0``, or any environment with its observations.
        target_kl: nats by which the policy may deviate from the prior; the temperature is tuned to it.
        learning_rate: learning rate of critics and temperature, a number or a function of the remaining
            share of training.
        actor_learning_rate: learning rate of the actor, likewise; None: that of the critics.
        truth_share: share of the environments that act by the true motion plus the prior's noise, so that
            part of the buffer shows the value of good tracking. It needs environments with a
            ``true_motion`` method.
        graphed: on a GPU, with :class:`TensorReplayBuffer` and target networks updated at every step, launch
            gradient steps as one CUDA graph, except for the first few and those after which it is captured
            again. Custom parts of a step, such as a features extractor, must then not synchronise with the
            device, and numbers that custom networks treat as constants must not change.
        kwargs: arguments of Stable-Baselines3's ``SAC``. The warm-up (``learning_starts``) draws from the
            prior.
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
        learning_rate: float | Schedule = 3e-4,
        actor_learning_rate: float | Schedule | None = None,
        truth_share: float = 0.0,
        graphed: bool = True,
        **kwargs: Any,
    ) -> None:
        self.target_kl, self.truth_share, self.graphed = target_kl, truth_share, graphed
        self._launcher: Launcher[Report] | None = None
        self._rates: list[torch.Tensor] = []  # learning rates, for the graph
        self.actor_learning_rate = actor_learning_rate
        # Not in _check(): agents that were saved with such arguments can be loaded.
        unused = sorted(_UNUSED & (kwargs.get("policy_kwargs") or {}).keys())
        if unused:
            raise UserError(
                f"the latent prior's networks do not use {', '.join(unused)}: omit them in policy_kwargs"
            )
        super().__init__(
            policy, env, learning_rate=learning_rate, target_entropy=-target_kl, **kwargs
        )

    def _setup_model(self) -> None:
        self._check()
        super()._setup_model()

    def _check(self) -> None:
        """Check for settings that would change the prior, or that this agent does not support.

        Raises:
            UserError: if there are any; it says which, and what to do instead.
        """
        if self.action_space not in [action_space(coordinates) for coordinates in COORDINATES]:
            raise UserError(
                "the action space must be that of BMVTrack-v0, because the prior is given in its units: "
                "remove wrappers that rescale actions"
            )
        moments = getattr(self.observation_space, "spaces", {}).get("prior_mean")
        if moments is None or moments.shape != (5,):
            raise UserError(
                "observations must be those of BMVTrack-v0, of a single frame: remove wrappers that stack or "
                "flatten them"
            )
        normalize = self._vec_normalize_env
        if normalize is not None and normalize.norm_obs and normalize.norm_obs_keys != ["features"]:
            raise UserError(
                "VecNormalize would change the prior in the observations: give it norm_obs=False"
            )
        if normalize is not None and issubclass(
            self.replay_buffer_class or ReplayBuffer, TensorReplayBuffer
        ):
            raise UserError(
                "TensorReplayBuffer takes no VecNormalize; remove it: rewards already lie in [0, 1]"
            )
        if self.use_sde or self.n_steps > 1:
            raise UserError("the latent prior does not support use_sde and n_steps: omit them")
        if not 0 <= self.truth_share <= 1:
            raise UserError(f"truth_share must lie in [0, 1], not {self.truth_share}")

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        assert self.env is not None
        if self.truth_share and not (self._followers and self.env.has_attr("true_motion")):
            raise UserError(
                f"truth_share {self.truth_share} of {self.n_envs} environments rounds to none, or they have "
                "no true_motion method; use more environments, and StableBaselinesEnv over BMVTrackVectorEnv"
            )
        return super()._setup_learn(*args, **kwargs)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """See ``SAC``; checks the environment as for a new agent."""
        super().set_env(env, force_reset)
        self._check()

    @property
    def _followers(self) -> int:
        """The number of environments that act by the true motion."""
        return round(self.truth_share * self.n_envs)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """See ``SAC``; also logs the KL to the prior."""
        if not self.policy.training:
            self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers)
        rate = self.actor_learning_rate
        if rate is not None:
            rate = rate(self._current_progress_remaining) if callable(rate) else rate
            update_learning_rate(self.actor.optimizer, rate)
        graphed = self._can_be_graphed()
        if graphed:
            self._prepare_graph()
        elif self.ent_coef_optimizer is not None:
            fuse(self.ent_coef_optimizer)  # the others are fused from the start
        names: tuple[str, ...] = ()
        sums = torch.zeros((), device=self.device)
        for step in range(gradient_steps):
            if graphed:
                names, values = self._launch(batch_size)
            else:
                names, values = self._gradient_step(
                    batch_size, step % self.target_update_interval == 0
                )
            sums = sums + values
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        means = sums.div(gradient_steps).tolist()  # the only synchronisation
        for name, mean in zip(names, means, strict=True):
            self.logger.record(f"train/{name}", mean)

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimisers of actor, critics and, if it is tuned, temperature."""
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        return optimizers

    def _gradient_step(self, batch_size: int, update_target: bool = True) -> Report:
        """Draw a batch and do one update with it."""
        assert self.replay_buffer is not None
        batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        report = self.update(cast("DictReplayBufferSamples", batch))
        if update_target:
            self._update_target()
        return tuple(report), torch.stack(list(report.values()))

    def _can_be_graphed(self) -> bool:
        return (
            self.graphed
            and self.device.type == "cuda"
            and self.target_update_interval == 1
            and isinstance(self.replay_buffer, TensorReplayBuffer)
            and all(isinstance(optimizer, torch.optim.Adam) for optimizer in self._optimizers)
        )

    def _prepare_graph(self) -> None:
        """Move learning rates and all optimiser states to where a graph can read them."""
        if self._launcher is None:
            self._launcher = Launcher(self.device)
            self._rates = [torch.zeros((), device=self.device) for _ in self._optimizers]
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            fuse(optimizer)
            rate.fill_(optimizer.param_groups[0]["lr"])

    def _launch(self, batch_size: int) -> Report:
        """A gradient step on a GPU: first eagerly a few times, then as a CUDA graph."""
        assert self._launcher is not None
        return self._launcher.run(
            partial(self._capturable_step, batch_size),
            self._tensors(),
            (batch_size, self.tau, self.gamma, self.target_kl, *self._hyperparameters()),
        )

    def _capturable_step(self, batch_size: int) -> Report:
        with rates_on_device(self._optimizers, self._rates):
            return self._gradient_step(batch_size)

    def _tensors(self) -> list[torch.Tensor]:
        """All tensors that a gradient step reads or writes and that loading or growth may replace."""
        assert isinstance(self.replay_buffer, TensorReplayBuffer)
        tensors = [*self.replay_buffer.tensors, *self._rates, *self.critic_target.parameters()]
        if self.ent_coef_optimizer is None:
            tensors.append(self.ent_coef_tensor)
        for optimizer in self._optimizers:
            for parameter in parameters_of(optimizer):
                tensors += [parameter, *optimizer.state.get(parameter, {}).values()]
        return tensors

    def _hyperparameters(self) -> list[object]:
        """The hyperparameters of all optimisers, except for their learning rates."""
        return [
            value
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for name, value in group.items()
            if name not in ("params", "lr")
        ]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_launcher", "_rates"]

    def update(self, batch: DictReplayBufferSamples) -> dict[str, torch.Tensor]:
        """Do one gradient step of temperature, critics and actor, as in ``SAC.train``.

        Returns:
            Losses, temperature and KL to the prior, each a scalar tensor on the device.
        """
        now, then = map(self.actor.state, (batch.observations, batch.next_observations))
        # The noise is drawn in two calls, as in SAC.train; the rest is one pass through the actor.
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
        minimize(self.critic.optimizer, critic_loss)
        value = self.critic.values(now, white).amin(0).squeeze(-1)
        actor_loss = (temperature * kl - value).mean()
        minimize(self.actor.optimizer, actor_loss)
        return report | {
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "kl_to_prior": kl.detach().mean(),
        }

    def _update_temperature(self, kl: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Update the temperature towards the target KL if it is tuned; return it as it was before."""
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            return self.ent_coef_tensor, {"ent_coef": self.ent_coef_tensor}
        log_temperature = self.log_ent_coef.detach()
        temperature = log_temperature.exp()
        missing = (self.target_kl - kl.detach()).mean()
        # The loss log α · (target − KL) is linear in log α: no graph is needed for its gradient.
        self.log_ent_coef.grad = missing.expand_as(log_temperature).clone()
        loss = (log_temperature * missing).squeeze()
        take_step(self.ent_coef_optimizer)
        return temperature, {"ent_coef": temperature.squeeze(), "ent_coef_loss": loss}

    @torch.no_grad()
    def _update_target(self) -> None:
        """Polyak averaging of all parameters at once."""
        target: list[torch.Tensor] = list(self.critic_target.parameters())
        torch._foreach_lerp_(target, parameters_of(self.critic.optimizer), self.tau)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[FloatArray, FloatArray]:
        # 0: no uniform warm-up. Before the first update the policy is the prior itself.
        action, scaled = super()._sample_action(0, action_noise, n_envs)
        if self._followers:
            self._follow_the_truth(action, scaled, self._followers)
        return action, scaled

    def _follow_the_truth(self, action: FloatArray, scaled: FloatArray, count: int) -> None:
        """Replace the first ``count`` actions, in place, where there is an object to track."""
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
