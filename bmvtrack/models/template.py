"""Templates: what a network remembers of the frame that showed it the object, and how it reads them.

A patch alone does not say *which* thing in it to follow. A template does: it is the patch of the first
frame, seen through the true box. Its feature maps are stored as keys and values, and every position of a
later frame reads the values of the positions that look similar, as in the memory networks of video object
segmentation (Oh et al. 2019, STM, Eq. 1-2), here with cosine similarity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

Memory = tuple[torch.Tensor, torch.Tensor]
"""Keys ``(B, P, D)`` of unit length and values ``(B, P, C)`` of the P positions of a map."""

_FIRST_SCALE = 10.0  # initial scale of the cosines, before the softmax
_SCORES_AT_ONCE = 2**17  # on a CPU


@dataclass(frozen=True)
class Template:
    """The memories of B templates.

    Attributes:
        memories: one for each map that is read, fine to coarse.
    """

    memories: tuple[Memory, ...]

    def __len__(self) -> int:
        return len(self.memories[0][0])

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Template:
        """The inverse of :meth:`tensors`."""
        return cls(tuple(zip(tensors[::2], tensors[1::2], strict=True)))

    def tensors(self) -> list[torch.Tensor]:
        """Keys and values, map by map."""
        return [value for memory in self.memories for value in memory]

    def rows(self, index: torch.Tensor) -> Template:
        """The templates of the given rows, ``(K,)`` int64."""
        return self._each(lambda value: value[index])

    def with_rows(self, index: torch.Tensor, others: Template) -> Template:
        """A new template whose given rows, ``(K,)`` int64, are replaced by K others."""
        pairs = zip(self.tensors(), others.tensors(), strict=True)
        return Template.of([mine.index_copy(0, index, other) for mine, other in pairs])

    def clone(self) -> Template:
        """A copy."""
        return self._each(torch.clone)

    def copy_(self, other: Template) -> None:
        """Copy another template of the same shapes into this one, in place."""
        for mine, new in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(new)

    @staticmethod
    def cat(parts: list[Template]) -> Template:
        """Concatenate batches of templates; a single one is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        return Template.of([torch.cat(t) for t in zip(*(p.tensors() for p in parts), strict=True)])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Template:
        return Template.of([change(value) for value in self.tensors()])


class Recall(nn.Module):
    """Adds to a map what it reads from a memory. Before training it adds nothing.

    Args:
        channels: C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))
        self.output = nn.Conv2d(channels + 1, channels, 1)
        self.silence()

    def silence(self) -> None:
        """Set the output weights to zero, so that nothing is added."""
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def memorize(self, maps: torch.Tensor) -> Memory:
        """The memory of maps ``(B, C, H, W)``."""
        return functional.normalize(_rows(self.key(maps)), dim=-1), _rows(self.value(maps))

    def forward(self, maps: torch.Tensor, memory: Memory) -> torch.Tensor:
        """``(B, C, H, W)`` → the same shape, with what each position reads and its best similarity."""
        scale = self.log_scale.exp()
        # The queries are scaled, not the cosines, which are many times as many.
        queries = functional.normalize(_rows(self.query(maps)), dim=-1) * scale
        in_parts = maps.device.type == "cpu" and not torch.is_grad_enabled()
        scores, values = (_read_in_parts if in_parts else _read)(queries, *memory)
        read = torch.cat([values, (scores / scale).to(values)], dim=-1)  # (B, H·W, C + 1)
        batch, _, height, width = maps.shape
        grid = read.transpose(1, 2).reshape(batch, -1, height, width)
        result: torch.Tensor = maps + self.output(grid)
        return result


def _read(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For Q positions ``(B, Q, D)``, the best score ``(B, Q, 1)`` and what is read ``(B, Q, C)``."""
    scores = queries @ keys.transpose(1, 2)
    return scores.amax(dim=-1, keepdim=True), scores.softmax(dim=-1).to(values) @ values


def _read_in_parts(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`_read` with few scores at a time, so that they stay in a core's cache.

    For a map of 32×32 all scores take 4 MiB per frame, which would be allocated anew each time.
    """
    positions = keys.shape[1]
    frames, rows = (max(1, _SCORES_AT_ONCE // count) for count in (positions**2, positions))
    parts = zip(*(tensor.split(frames) for tensor in (queries, keys, values)), strict=True)
    read = [
        _read(some, key, value) for query, key, value in parts for some in query.split(rows, dim=1)
    ]
    scores, found = (
        torch.cat([t.flatten(0, 1) for t in column]) for column in zip(*read, strict=True)
    )
    return scores.unflatten(0, queries.shape[:2]), found.unflatten(0, queries.shape[:2])


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """``(B, C, H, W)`` → ``(B, H·W, C)``."""
    return maps.flatten(2).transpose(1, 2)
