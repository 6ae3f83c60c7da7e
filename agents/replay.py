"""Replay on the device: what the agent has seen, as tensors where it learns."""

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

_HALF = "features"  # layer-normalised by the encoder: three decimal digits are plenty
_FINAL_SHARE = 32  # transitions for each episode's last observation, at first
Tables = dict[torch.dtype, torch.Tensor]
"""All that observations hold in one number format, side by side: gathered at once."""
_MANY = 2**62  # of so many numbers, remainders are as good as uniform


class TensorReplayBuffer(ReplayBuffer):
    """Transitions with ``Dict`` observations as tensors on one device, each observation stored once.

    A transition's next observation is the observation of the next row; only where an episode ended
    is it kept apart, because the next row belongs to another episode. Encoder features are in half
    precision. Sampling does not wait for the device, and on a GPU can be part of a CUDA graph. A transition
    that a time limit cut short bootstraps; one that lost its target does not.

    Takes the arguments of Stable-Baselines3's ``ReplayBuffer``; give it to ``SAC`` as
    ``replay_buffer_class``.

    Raises:
        UserError: if it would not fit into the memory that is left.
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
                "each observation is stored once already: leave optimize_memory_usage out"
            )
        rows = max(buffer_size // n_envs, 1)
        super(ReplayBuffer, self).__init__(  # not ReplayBuffer's own: it allocates arrays
            rows, observation_space, action_space, device, n_envs=n_envs
        )
        self.optimize_memory_usage = False  # Stable-Baselines3 would cut the last episode short
        self.handle_timeout_termination = handle_timeout_termination
        self._sizes = {name: space.shape[0] for name, space in observation_space.spaces.items()}  # type: ignore[index]
        finals = rows * n_envs // _FINAL_SHARE + n_envs
        self._check_memory((rows + 1) * n_envs, finals)
        # One row more than transitions: the newest one's next observation.
        self._tables = self._empty(rows + 1, n_envs)
        self._finals = self._empty(finals)
        shape = rows + 1, n_envs
        self.actions = torch.zeros(*shape, self.action_dim, device=self.device)
        self.rewards = torch.zeros(shape, device=self.device)
        self.dones = torch.zeros(shape, device=self.device)
        self.final_slots = torch.full(shape, -1, dtype=torch.long, device=self.device)
        self._host_slots = np.full(shape, -1)
        self._free = list(range(finals))
        self._led_to: dict[str, FloatArray] | None = None  # by the newest row
        # What `pos` and `full` say, where a CUDA graph can read it; rows and environments as one.
        self._oldest = torch.zeros((), dtype=torch.long, device=self.device)
        self._count = torch.ones((), dtype=torch.long, device=self.device)

    @property
    def observations(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Views ``(rows, n_envs, …)`` of what is stored."""
        return self._named(self._tables)

    @property
    def finals(self) -> dict[str, torch.Tensor]:
        """Last observations of episodes, by slot; views."""
        return self._named(self._finals)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that is on the device; growth and :meth:`load_state` put others in their place."""
        return [
            *self._tables.values(),
            *self._finals.values(),
            *(self.actions, self.rewards, self.dones, self.final_slots),
            *(self._oldest, self._count),
        ]

    @property
    def bytes_per_transition(self) -> int:
        """Of one transition, last observations of episodes not counted."""
        return self._observation_bytes() + self._scalar_bytes()

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def add(  # type: ignore[override]
        self,
        obs: dict[str, FloatArray],
        next_obs: dict[str, FloatArray],
        action: FloatArray,
        reward: FloatArray,
        done: BoolArray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all environments: ``(n_envs, …)`` each, in scaled actions.

        Where ``obs`` is not what the step before led to, after a reset, that one keeps its own next
        observation.
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
        """Keep next observations of the newest row apart, where ``obs`` is to take their place."""
        if not self.size():
            return
        newest = (self.pos - 1) % (self.buffer_size + 1)
        parted = self._host_slots[newest] < 0
        if self._led_to is not None:  # a buffer that was loaded does not know
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
        """Copy observations of a row, of the environments ``which``, to slots ``where``."""
        for dtype, table in self._tables.items():
            self._finals[dtype][where] = table[row, which]

    def reset(self) -> None:
        """Forget all transitions."""
        self._go_to(0, False)

    def _go_to(self, pos: int, full: bool) -> None:
        """Say where the next row goes, without waiting for the device."""
        self.pos, self.full = pos, full
        self._oldest.fill_(self._oldest_row() * self.n_envs)
        self._count.fill_(max(self.size(), 1) * self.n_envs)

    def _oldest_row(self) -> int:
        """Row `pos` is the newest next observation."""
        return self.pos + 1 if self.full else 0

    def size(self) -> int:
        """Rows that hold transitions."""
        return self.buffer_size if self.full else self.pos

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        """Transitions drawn uniformly with replacement, float32, on the device.

        Raises:
            UserError: with a ``VecNormalize``, which works on arrays: normalise in the network instead.
        """
        if env is not None:
            raise UserError("the replay buffer on the device takes no VecNormalize")
        by_host = self.device.type == "cpu"
        return self._transitions(
            self._draw(batch_size) if by_host else self._draw_by_device(batch_size)
        )

    def state(self) -> dict[str, Any]:
        """Contents as tensors and numbers, for a checkpoint: copies, as files hold all that a view is of."""
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
            UserError: if the state is of a buffer of another size or other observations.
        """
        stored, used = state["observations"], len(state["actions"])
        shapes = {name: value.shape[1:] for name, value in stored.items()}
        expected = {name: value.shape[1:] for name, value in self.observations.items()}
        if state["capacity"] != self.buffer_size or shapes != expected:
            raise UserError(
                f"the checkpoint's replay buffer holds {state['capacity']} steps of other "
                f"environments or observations than this one of {self.buffer_size}; resume with "
                "the same options"
            )
        for name, rows in self.observations.items():
            rows[:used] = stored[name].to(self.device)
        self.final_slots.fill_(-1)  # those of rows that are not loaded
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
        """Where transitions are, drawn uniformly: row times environments plus environment."""
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
        """Free slots for last observations; there are always as many as asked for."""
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
        """Columns of tables by what they hold; views."""
        columns: dict[str, torch.Tensor] = {}
        for dtype, table in tables.items():
            names = self._names(dtype)
            parts = table.split([self._sizes[name] for name in names], dim=-1)
            columns |= zip(names, parts, strict=True)
        return columns

    def _upload(self, columns: Sequence[NDArray[Any]]) -> Sequence[torch.Tensor]:
        """Arrays ``(n_envs, …)`` in one transfer; as float64, in which slots are exact, too."""
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
                f"a replay buffer of {transitions:,} transitions takes {needed:,} bytes, and "
                f"{left:,} are left on {self.device}; use a smaller --buffer-size"
            )


_ROWS = ("actions", "rewards", "dones", "final_slots")


def _dtype(name: str) -> torch.dtype:
    return torch.float16 if name == _HALF else torch.float32
