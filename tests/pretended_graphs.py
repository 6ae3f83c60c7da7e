"""A CUDA graph that needs no GPU: it does its work anew each time it is launched."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


class PretendedGraph:
    """In the place of :class:`~bmvtrack.cuda_graphs.Captured`: its results keep their memory, too.

    Attributes:
        made: how many there have been; the fixture ``graphs`` begins at 0.
    """

    made = 0

    def __init__(
        self,
        work: Callable[[], Any],
        device: torch.device,
        warm_up: int = 3,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        PretendedGraph.made += 1
        for _ in range(warm_up):
            work()
        self.work, self.result = work, None

    def replay(self) -> Any:
        new = self.work()
        if self.result is None:
            self.result = new
        for kept, value in zip(_tensors(self.result), _tensors(new), strict=True):
            kept.copy_(value)
        return self.result


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    for leaf in tree_leaves(result):
        if is_dataclass(leaf):
            yield from _tensors(vars(leaf))
        elif isinstance(leaf, torch.Tensor):
            yield leaf
