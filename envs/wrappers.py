"""Wrappers that adapt the environments to other libraries' agents and wrappers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorWrapper
from numpy.typing import NDArray

from bmvtrack import gaussian
from bmvtrack.errors import UserError
from envs.state import Observation, checked_action

_REACH = 3.0  # standard deviations


class WhitenedActions(
    gym.Wrapper[Observation, NDArray[np.float32], Observation, NDArray[np.float32]],
    RecordConstructorArgs,
):
    """Actions u in units of the encoder's Gaussian: the box moves by m + L u.

    m and L are ``prior_mean`` and ``prior_cholesky`` of the previous observation. With u = 0 the box moves as
    the encoder predicts. Agents that initially act around 0 or around the middle of their bounds, as those of
    Stable-Baselines3 do, therefore start from the encoder's prediction; in the environment's own units they
    lose the object, or most of it, at once.

    The wrapper takes a single environment; for ``gym.make_vec`` use
    ``vectorization_mode="sync", wrappers=[WhitenedActions]``.

    Args:
        env: ``BMVTrack-v0`` with unmodified observations.
        reach: bound of each u_i, in standard deviations.

    Raises:
        UserError: if the observations lack the prior, or ``reach`` is not positive.
    """

    def __init__(self, env: gym.Env[Any, Any], reach: float = _REACH) -> None:
        RecordConstructorArgs.__init__(self, reach=reach)
        gym.Wrapper.__init__(self, env)
        known = getattr(env.observation_space, "spaces", {})
        if not {"prior_mean", "prior_cholesky"} <= known.keys():
            raise UserError(
                "the observations lack the prior: put WhitenedActions around BMVTrack-v0 itself, and other "
                "wrappers around it"
            )
        if not 0 < reach < np.inf:
            raise UserError(f"reach must be positive, not {reach}")
        self.action_space = gym.spaces.Box(-reach, reach, (5,), np.float32)
        self._reach = reach
        self._prior: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """See ``BMVTrackEnv.reset``."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._keep(observation)
        return observation, info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """See ``BMVTrackEnv.step``.

        Args:
            action: u, ``(5,)``; clipped to its bounds.

        Raises:
            ValueError: if it has another shape or contains NaN.
        """
        if self._prior is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        u = checked_action(action).clip(-self._reach, self._reach).astype(np.float32)
        mean, packed = map(torch.from_numpy, self._prior)
        motion = gaussian.unwhiten(torch.from_numpy(u), mean, gaussian.unpack_lower(packed))
        observation, reward, terminated, truncated, info = self.env.step(motion.numpy())
        self._keep(observation)
        return observation, reward, terminated, truncated, info

    def _keep(self, observation: Observation) -> None:
        """Keep a copy of the prior, because the caller may modify the observation."""
        self._prior = observation["prior_mean"].copy(), observation["prior_cholesky"].copy()


class ToNumpy(VectorWrapper[Any, Any, Any, Any]):
    """Converts everything that a vector environment returns to NumPy arrays, infos included.

    Gymnasium's vector wrappers (``RecordEpisodeStatistics``, ``NormalizeReward``, ``DictInfoToList``) work
    on arrays: put them around this one. (Gymnasium's ``ArrayConversion`` cannot handle the array of names in
    the infos.) Agents that learn on the device should not use it.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """See ``BMVTrackVectorEnv.reset``."""
        observations, info = self.env.reset(**kwargs)
        return _to_numpy(observations), _to_numpy(info)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See ``BMVTrackVectorEnv.step``."""
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        arrays = (_to_numpy(part) for part in (observations, rewards, terminated, truncated))
        return *arrays, _to_numpy(info)


def _to_numpy(value: Any) -> Any:
    """Convert tensors to arrays; no copies are needed, as the environment never reuses what it returns."""
    if isinstance(value, dict):
        return {name: _to_numpy(part) for name, part in value.items()}
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value
