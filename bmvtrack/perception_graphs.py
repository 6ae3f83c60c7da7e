"""Passes over few frames on a GPU, each launched as a whole: one CUDA graph for each input shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

from bmvtrack.cuda_graphs import Captured
from bmvtrack.models import Template
from bmvtrack.percept import Percept

_KEPT = 4  # graphs


Look = Callable[[torch.Tensor, torch.Tensor, Template | None], Percept]
"""(frames, numbers of each box, template) → percept, without reading any value on the host."""


class GraphCache:
    """Graphs of one :data:`Look` by the shapes of its inputs; the four used last are kept.

    Each holds all feature maps of a pass in its own memory, which nothing else can use: about ten megabytes
    per frame, plus the frames in float32. A capture takes as long as a few dozen passes, so a graph is made
    only for a shape that is requested twice in a row. Copies and pickles are empty.
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
        """What ``look`` returns, in new tensors; None while a graph for such inputs is not worthwhile.

        Args:
            look: the same at each call.
            frames: on the GPU or in pinned memory, like ``numbers``; neither copy is waited for.
            numbers: of each box.
            template: on the GPU; if the same object is passed again, it must not have been changed.
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
    """A look captured for inputs of given shapes; arguments as for :class:`GraphCache`."""

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
        """Copy the inputs to where the graph reads them."""
        self._frames.copy_(frames, non_blocking=True)
        self._numbers.copy_(numbers, non_blocking=True)
        if self._template is not None and template is not None and template is not self._shown:
            self._template.copy_(template)
            self._shown = template
