"""``BMVTrackVectorEnv`` for wrappers and agents that work on NumPy arrays."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import VectorWrapper


class ToNumpy(VectorWrapper[Any, Any, Any, Any]):
    """All that a vector environment returns as NumPy arrays, infos included.

    Gymnasium's vector wrappers (``RecordEpisodeStatistics``, ``NormalizeReward``, ``DictInfoToList``) work
    on arrays: put them around this one. (Its own ``ArrayConversion`` takes no array of names in infos.)
    Whoever learns on the device is better off without.
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
    """Tensors in it as arrays; the environment hands out nothing that it goes on from."""
    if isinstance(value, dict):
        return {name: _to_numpy(part) for name, part in value.items()}
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value
