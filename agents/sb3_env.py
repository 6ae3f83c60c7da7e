"""Adapter of the vector environment to Stable-Baselines3, with its four-tuple API and NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from bmvtrack.arrays import FloatArray
from bmvtrack.errors import UserError
from envs.vector_env import BMVTrackVectorEnv

Arrays = dict[str, FloatArray]
_PER_EPISODE = ("sequence", "frame", "rbbox", "truth", "iou")


class StableBaselinesEnv(VecEnv):
    """A ``VecEnv`` over :class:`~envs.vector_env.BMVTrackVectorEnv`.

    ``step`` returns observations, rewards, dones and infos; where an episode ended, the info has
    ``terminal_observation`` and ``TimeLimit.truncated``. It works with ``VecMonitor``, ``VecNormalize`` and
    ``EvalCallback``.

    Args:
        environment: a ``BMVTrackVectorEnv``, or wrappers around one.

    Raises:
        UserError: if ``environment`` is or consists of single environments.
    """

    def __init__(self, environment: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(environment.unwrapped, BMVTrackVectorEnv):
            raise UserError(
                "StableBaselinesEnv takes the vector environment that gym.make_vec makes by default; pass "
                "single environments to Stable-Baselines3 directly"
            )
        self.environment: Any = environment  # with Any, its reset takes a list of seeds
        self.render_mode = None
        super().__init__(
            environment.num_envs,
            environment.single_observation_space,
            environment.single_action_space,
        )

    def reset(self) -> Arrays:
        """Reset all environments, with the seeds from ``seed`` once; return observations, ``(N, …)`` each."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        options = next(filter(None, self._options), None)  # refused whichever environment has them
        observations, info = self.environment.reset(seed=seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = _per_environment(info)
        return _arrays(observations)

    def step_async(self, actions: FloatArray) -> None:
        """Keep the actions ``(N, 5)`` for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step with the actions from :meth:`step_async`."""
        observations, rewards, terminated, truncated, info = self.environment.step(self._actions)
        ended, timed_out = terminated.cpu().numpy(), truncated.cpu().numpy()
        done = ended | timed_out
        infos = _per_environment(info)
        if done.any():
            finals = _arrays(info["final_obs"])
            final_infos = _per_environment(info["final_info"])
            for i in np.flatnonzero(done):
                infos[i] = {
                    **final_infos[i],
                    "terminal_observation": {name: value[i] for name, value in finals.items()},
                    "TimeLimit.truncated": bool(timed_out[i] and not ended[i]),
                }
        return _arrays(observations), rewards.cpu().numpy(), done, infos

    def close(self) -> None:
        """See ``VecEnv``."""
        self.environment.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The environment's attribute, once per index, as the N environments share it.

        Raises:
            AttributeError: if there is no such attribute.
        """
        value = getattr(self.environment, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute for all N environments together.

        Raises:
            ValueError: if ``indices`` selects only some of them.
        """
        self._refuse_some(indices)
        setattr(self.environment, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the environment once and return its result N times.

        Raises:
            ValueError: if ``indices`` selects only some of them.
        """
        self._refuse_some(indices)
        result = getattr(self.environment, method_name)(*args, **kwargs)
        return [result] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Always False, as there are no wrappers of single environments."""
        return [False for _ in self._get_indices(indices)]

    def _refuse_some(self, indices: VecEnvIndices) -> None:
        if indices is not None and list(self._get_indices(indices)) != list(range(self.num_envs)):
            raise ValueError("the N environments are one object: only all can be addressed")


def _arrays(tensors: dict[str, torch.Tensor]) -> Arrays:
    """Convert tensors on one device to arrays in one transfer."""
    widths = [value.shape[1] for value in tensors.values()]
    together = torch.cat(list(tensors.values()), dim=1).cpu()
    parts: Sequence[torch.Tensor] = together.split(widths, dim=1)
    return {name: part.contiguous().numpy() for name, part in zip(tensors, parts, strict=True)}


def _per_environment(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a batched info into one per environment."""
    columns = [
        value.cpu().numpy() if isinstance(value, torch.Tensor) else value
        for value in (info[name] for name in _PER_EPISODE)
    ]
    return [dict(zip(_PER_EPISODE, row, strict=True)) for row in zip(*columns, strict=True)]
