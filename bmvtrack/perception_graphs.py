"""Looks of a GPU at few frames, each launched as a whole: one CUDA graph for each shape of its inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

from bmvtrack.cuda_graphs import Captured
from bmvtrack.models import Template
from bmvtrack.percept import Percept

_KEPT = 4  # graphs


Look = Callable[[torch.Tensor, torch.Tensor, Template | None], Percept]
"""(frames, numbers of each box, template) → what is seen, without the host's reading anything."""


class GraphCache:
    """Graphs of one :data:`Look` by the shapes of its inputs, the four used last.

    Each holds all maps of a pass in memory of its own, which nothing else can use: some ten megabytes a
    frame, and the frames in float32. A capture takes as long as a few dozen looks, so only a shape that is
    asked for twice in a row has one. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._last: Hashable = None

    def __reduce__(self) -> tuple[type[GraphCache], tuple[()]]:
        return type(self), ()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self,
        look: Look,
        frames: torch.Tensor,
        numbers: torch.Tensor,
        template: Template | None,
        device: torch.device,
    ) -> Percept | None:
        """What ``look`` sees, in tensors of its own; None where no graph of such inputs is worth it yet.

        Args:
            look: the same at each call.
            frames: on the GPU or in pinned memory, as ``numbers``; both are not waited for.
            numbers: of each box.
            template: on the GPU; whoever gives the same object again has not changed it.
            device: the GPU.
        """
        key = frames.shape, frames.dtype, numbers.shape, template is None
        again, self._last = key == self._last, key
        if key not in self._graphs:
            if not again:
                return None
            while len(self._graphs) >= _KEPT:
                self._graphs.popitem(last=False)
            self._graphs[key] = _Graph(look, frames, numbers, template, device)
        self._graphs.move_to_end(key)
        return self._graphs[key](frames, numbers, template)


class _Graph:
    """A look at inputs of given shapes, captured; arguments as of :class:`GraphCache`."""

    def __init__(
        self,
        look: Look,
        frames: torch.Tensor,
        numbers: torch.Tensor,
        template: Template | None,
        device: torch.device,
    ) -> None:
        self._frames = torch.empty(frames.shape, dtype=frames.dtype, device=device)
        self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, device=device)
        self._template = None if template is None else template.clone()
        self._shown = template
        self._show(frames, numbers, template)

        def work() -> tuple[Percept, torch.Tensor]:
            seen = look(self._frames, self._numbers, self._template)
            return seen, seen.packed()

        self._captured = Captured(work, device)

    def __call__(
        self, frames: torch.Tensor, numbers: torch.Tensor, template: Template | None
    ) -> Percept:
        self._show(frames, numbers, template)
        seen, packed = self._captured.replay()
        return seen.unpacked(packed.clone())

    def _show(self, frames: torch.Tensor, numbers: torch.Tensor, template: Template | None) -> None:
        """Put inputs where the graph reads them."""
        self._frames.copy_(frames, non_blocking=True)
        self._numbers.copy_(numbers, non_blocking=True)
        if self._template is not None and template is not None and template is not self._shown:
            self._template.copy_(template)
            self._shown = template
