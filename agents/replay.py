"""A replay buffer that keeps its transitions as tensors on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from bmvtrack.arrays import BoolArray, FloatArray
from bmvtrack.devices import free_memory, to_device
from bmvtrack.errors import UserError

_HALF = "features"  # of order one (ResNetUNet normalises them), so three decimal digits are enough
_FINAL_SHARE = 32  # initially, one slot for a last observation per this many transitions
Tables = dict[torch.dtype, torch.Tensor]
"""The parts of observations with the same dtype side by side, so that they are gathered at once."""
_MANY = 2**62  # remainders of random numbers in this range are practically uniform


class TensorReplayBuffer(ReplayBuffer):
    """Transitions with ``Dict`` observations as tensors on one device, each observation stored once.

    A transition's next observation is the observation in the next row. Only where an episode ended is it
    stored separately, because the next row belongs to another episode. Encoder features are stored in half
    precision. Sampling does not synchronise with the device, and on a GPU it can be part of a CUDA graph.
    Transitions truncated by a time limit bootstrap; those that lost the target do not.

    It takes the arguments of Stable-Baselines3's ``ReplayBuffer``; pass it to ``SAC`` as
    ``replay_buffer_class``.

    Raises:
        UserError: if it would not fit into the free memory.
    """

    actions: torch.Tensor  # type: ignore[assignment]
    rewards: torch.Tensor  # type: ignore[assignment]
    dones: torch.Tensor  # type: ignore[assignment]

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
    ) -> None:
        if optimize_memory_usage:
            raise UserError(
                "each observation is already stored only once: omit optimize_memory_usage"
            )
        rows = max(buffer_size // n_envs, 1)
        super(ReplayBuffer, self).__init__(  # skips ReplayBuffer's, which allocates arrays
            rows, observation_space, action_space, device, n_envs=n_envs
        )
        self.optimize_memory_usage = False  # Stable-Baselines3 would cut the last episode short
        self.handle_timeout_termination = handle_timeout_termination
        self._sizes = {name: space.shape[0] for name, space in observation_space.spaces.items()}  # type: ignore[index]
        finals = rows * n_envs // _FINAL_SHARE + n_envs
        self._check_memory((rows + 1) * n_envs, finals)
        # One row more than transitions, for the newest one's next observation.
        self._tables = self._empty(rows + 1, n_envs)
        self._finals = self._empty(finals)
        shape = rows + 1, n_envs
        self.actions = torch.zeros(*shape, self.action_dim, device=self.device)
        self.rewards = torch.zeros(shape, device=self.device)
        self.dones = torch.zeros(shape, device=self.device)
        self.final_slots = torch.full(shape, -1, dtype=torch.long, device=self.device)
        self._host_slots = np.full(shape, -1)
        self._free = list(range(finals))
        self._led_to: dict[str, FloatArray] | None = None  # next observations of the newest row
        # `pos` and `full` in a form that a CUDA graph can read, with rows and environments flattened.
        self._oldest = torch.zeros((), dtype=torch.long, device=self.device)
        self._count = torch.ones((), dtype=torch.long, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie; setting it moves them, as Stable-Baselines3 does with a loaded buffer."""
        device: torch.device = self.__dict__["device"]  # under its name, as in older pickles
        return device

    @device.setter
    def device(self, device: torch.device) -> None:
        self.__dict__["device"] = device
        if hasattr(self, "_count"):
            self.__dict__.update(self._moved(device))

    def __getstate__(self) -> dict[str, Any]:
        """On the CPU, so that it can be loaded where there is no GPU."""
        cpu = torch.device("cpu")
        return self.__dict__ | self._moved(cpu) | {"device": cpu}

    def _moved(self, device: torch.device) -> dict[str, Any]:
        tables = {
            name: {dtype: table.to(device) for dtype, table in getattr(self, name).items()}
            for name in ("_tables", "_finals")
        }
        return tables | {name: getattr(self, name).to(device) for name in (*_ROWS, *_POSITION)}

    @property
    def observations(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Views ``(rows, n_envs, …)`` of the stored observations."""
        return self._named(self._tables)

    @property
    def finals(self) -> dict[str, torch.Tensor]:
        """Views of the last observations of episodes, by slot."""
        return self._named(self._finals)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors on the device; growth and :meth:`load_state` replace them."""
        return [
            *self._tables.values(),
            *self._finals.values(),
            *(self.actions, self.rewards, self.dones, self.final_slots),
            *(self._oldest, self._count),
        ]

    @property
    def bytes_per_transition(self) -> int:
        """Bytes of one transition, not counting the last observations of episodes."""
        return self._observation_bytes() + self._scalar_bytes()

    def add(  # type: ignore[override]
        self,
        obs: dict[str, FloatArray],
        next_obs: dict[str, FloatArray],
        action: FloatArray,
        reward: FloatArray,
        done: BoolArray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all environments, ``(n_envs, …)`` each, with scaled actions.

        Where ``obs`` is not the previous step's next observation (after a reset), that next observation is
        stored separately.
        """
        self._part_from(obs)
        row, following = self.pos, (self.pos + 1) % (self.buffer_size + 1)
        self._free.extend(self._host_slots[row][self._host_slots[row] >= 0].tolist())
        ended = np.flatnonzero(done)
        slots = np.full(self.n_envs, -1)
        slots[ended] = self._take(len(ended))
        self._host_slots[row] = slots
        terminal = np.array(done, dtype=np.float32)
        if self.handle_timeout_termination:
            terminal *= [not info.get("TimeLimit.truncated", False) for info in infos]
        columns = [values[name] for values in (obs, next_obs) for name in self._sizes]
        columns += [action, *(np.asarray(part)[:, None] for part in (reward, terminal, slots))]
        *observed, action_, reward_, terminal_, slots_ = self._upload(columns)
        count = len(self._sizes)
        stored = self.observations
        for name, now, then in zip(self._sizes, observed[:count], observed[count:], strict=True):
            stored[name][row] = now
            stored[name][following] = then
        if len(ended):
            pairs = torch.from_numpy(np.stack([slots[ended], ended]))
            where, which = to_device(pairs, self.device)
            self._keep_finals(where, following, which)
        self.actions[row] = action_
        self.rewards[row], self.dones[row] = reward_[:, 0], terminal_[:, 0]
        self.final_slots[row] = slots_[:, 0]
        self._go_to(following, self.full or following == 0)
        self._led_to = next_obs

    def _part_from(self, obs: dict[str, FloatArray]) -> None:
        """Store next observations of the newest row separately where ``obs`` would overwrite them."""
        if not self.size():
            return
        newest = (self.pos - 1) % (self.buffer_size + 1)
        parted = self._host_slots[newest] < 0
        if self._led_to is not None:  # unknown after loading
            same = [(obs[name] == self._led_to[name]).all(axis=1) for name in self._sizes]
            parted &= ~np.logical_and.reduce(same)
        ended = np.flatnonzero(parted)
        if len(ended):
            slots = np.array(self._take(len(ended)))
            self._host_slots[newest, ended] = slots
            where, which = torch.from_numpy(np.stack([slots, ended])).to(self.device)
            self.final_slots[newest, which] = where
            self._keep_finals(where, self.pos, which)

    def _keep_finals(self, where: torch.Tensor, row: int, which: torch.Tensor) -> None:
        """Copy the observations of environments ``which`` in a row to the slots ``where``."""
        for dtype, table in self._tables.items():
            self._finals[dtype][where] = table[row, which]

    def reset(self) -> None:
        """Delete all transitions."""
        self._go_to(0, False)

    def _go_to(self, pos: int, full: bool) -> None:
        """Set the position of the next row, without synchronising with the device."""
        self.pos, self.full = pos, full
        self._oldest.fill_(self._oldest_row() * self.n_envs)
        self._count.fill_(max(self.size(), 1) * self.n_envs)

    def _oldest_row(self) -> int:
        """The oldest row; row ``pos`` holds the newest next observation."""
        return self.pos + 1 if self.full else 0

    def size(self) -> int:
        """The number of rows that hold transitions."""
        return self.buffer_size if self.full else self.pos

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        """Transitions drawn uniformly with replacement, float32, on the device.

        Raises:
            UserError: if a ``VecNormalize`` is given, which works on arrays.
        """
        if env is not None:
            raise UserError("TensorReplayBuffer takes no VecNormalize; normalise in the network")
        by_host = self.device.type == "cpu"
        return self._transitions(
            self._draw(batch_size) if by_host else self._draw_by_device(batch_size)
        )

    def state(self) -> dict[str, Any]:
        """The contents as tensors and numbers, for a checkpoint; copied, as a saved view holds its base."""
        used = self._used_rows()
        return {
            "observations": {k: v[:used].clone() for k, v in self.observations.items()},
            "finals": self.finals,
            **{n: getattr(self, n)[:used].clone() for n in _ROWS},
            "position": self.pos,
            "full": self.full,
            "capacity": self.buffer_size,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`.

        Raises:
            UserError: if the state belongs to a buffer of another size or with other observations.
        """
        stored, used = state["observations"], len(state["actions"])
        shapes = {name: value.shape[1:] for name, value in stored.items()}
        expected = {name: value.shape[1:] for name, value in self.observations.items()}
        if state["capacity"] != self.buffer_size or shapes != expected:
            raise UserError(
                f"the checkpoint's replay buffer, of {state['capacity']} steps, differs from this one, of "
                f"{self.buffer_size}, in size, environments or observations; resume with the same options"
            )
        for name, rows in self.observations.items():
            rows[:used] = stored[name].to(self.device)
        self.final_slots.fill_(-1)  # for rows that are not loaded
        for name in _ROWS:
            getattr(self, name)[:used] = state[name].to(self.device)
        finals = state["finals"]
        count = len(next(iter(finals.values())))
        self._finals = self._empty(count)
        for name, kept in self.finals.items():
            kept.copy_(finals[name])
        self._go_to(state["position"], state["full"])
        self._led_to = None
        self._host_slots = self.final_slots.cpu().numpy().copy()
        taken = set(self._host_slots[self._host_slots >= 0].tolist())
        self._free = [slot for slot in range(count) if slot not in taken]

    def _draw(self, count: int) -> torch.Tensor:
        """Uniformly drawn indices of transitions: row times number of environments plus environment."""
        offsets = torch.randint(self.size(), (count,), device=self.device)
        rows = (self._oldest_row() + offsets) % (self.buffer_size + 1)
        return rows * self.n_envs + torch.randint(self.n_envs, (count,), device=self.device)

    def _draw_by_device(self, count: int) -> torch.Tensor:
        """As :meth:`_draw`, of as many transitions as the device knows of when it comes to it."""
        offsets = torch.randint(_MANY, (count,), device=self.device) % self._count
        return (self._oldest + offsets) % self.final_slots.numel()

    def _transitions(self, where: torch.Tensor) -> DictReplayBufferSamples:
        following = (where + self.n_envs) % self.final_slots.numel()
        slots = self.final_slots.flatten()[where]
        ended, slots = (slots >= 0)[:, None], slots.clamp_min(0)
        now, then = {}, {}
        for dtype, table in self._tables.items():
            stored = table.flatten(0, 1)
            now[dtype] = stored[where].float()
            final = self._finals[dtype][slots]
            then[dtype] = torch.where(ended, final, stored[following]).float()
        return DictReplayBufferSamples(
            observations=self._named(now),
            actions=self.actions.flatten(0, 1)[where],
            next_observations=self._named(then),
            dones=self.dones.flatten()[where][:, None],
            rewards=self.rewards.flatten()[where][:, None],
        )

    def _used_rows(self) -> int:
        return self.buffer_size + 1 if self.full else self.pos + 1

    def _take(self, count: int) -> list[int]:
        """Take free slots for last observations; the storage grows if there are not enough."""
        if count > len(self._free):
            old = len(next(iter(self._finals.values())))
            self._check_memory(0, old)
            more = self._empty(old)
            self._finals = {dtype: torch.cat([v, more[dtype]]) for dtype, v in self._finals.items()}
            self._free.extend(range(old, 2 * old))
        return [self._free.pop() for _ in range(count)]

    def _empty(self, *shape: int) -> Tables:
        names = {dtype: self._names(dtype) for dtype in map(_dtype, self._sizes)}
        return {
            dtype: torch.zeros(
                *shape, sum(self._sizes[n] for n in group), dtype=dtype, device=self.device
            )
            for dtype, group in names.items()
        }

    def _names(self, dtype: torch.dtype) -> list[str]:
        return [name for name in self._sizes if _dtype(name) is dtype]

    def _named(self, tables: Tables) -> dict[str, torch.Tensor]:
        """Views of the tables' columns, by observation name."""
        columns: dict[str, torch.Tensor] = {}
        for dtype, table in tables.items():
            names = self._names(dtype)
            parts = table.split([self._sizes[name] for name in names], dim=-1)
            columns |= zip(names, parts, strict=True)
        return columns

    def _upload(self, columns: Sequence[NDArray[Any]]) -> Sequence[torch.Tensor]:
        """Upload arrays ``(n_envs, …)`` in one transfer, as float64, which represents slots exactly."""
        together = torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float64))
        parts: Sequence[torch.Tensor] = to_device(together, self.device).split(
            [column.shape[1] for column in columns], dim=1
        )
        return parts

    def _observation_bytes(self) -> int:
        return sum(size * _dtype(name).itemsize for name, size in self._sizes.items())

    def _scalar_bytes(self) -> int:
        return 4 * (self.action_dim + 2) + 8  # action, reward, done; slot of the last observation

    def _check_memory(self, transitions: int, finals: int) -> None:
        needed = transitions * self.bytes_per_transition + finals * self._observation_bytes()
        left = free_memory(self.device)
        if needed > left:
            raise UserError(
                f"a replay buffer of {transitions:,} transitions takes {needed:,} bytes, but only "
                f"{left:,} are left on {self.device}; use a smaller --buffer-size"
            )


_ROWS = ("actions", "rewards", "dones", "final_slots")
_POSITION = ("_oldest", "_count")


def _dtype(name: str) -> torch.dtype:
    return torch.float16 if name == _HALF else torch.float32
