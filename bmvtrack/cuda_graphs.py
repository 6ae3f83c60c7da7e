"""Work of a GPU that is launched as a whole: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

Result = TypeVar("Result")
_WARM_UP = 3  # runs before a capture: libraries choose kernels and take memory in the first ones


class Captured(Generic[Result]):
    """What a function has a GPU do, captured once and launched as a whole from then on.

    A small network's kernels are over sooner than the host can launch them one by one; a graph of
    them costs the host one launch. The function must do the same at every call: no reading on the host,
    no shapes that depend on values, and all that it reads, other than constants, in tensors that keep
    their place in memory, into which the caller copies new values before :meth:`replay`.

    Args:
        work: is called three times to warm up, and once while it is captured, which computes nothing.
        device: the GPU.
        warm_up: calls before the capture; fewer if the caller has made some on a side stream.
        generators: that ``work`` draws from, other than the device's own; each replay moves them on.

    Attributes:
        result: what ``work`` returned during the capture; its tensors are written anew by each replay.
    """

    def __init__(
        self,
        work: Callable[[], Result],
        device: torch.device,
        warm_up: int = _WARM_UP,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(warm_up):
                    work()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            for generator in generators:
                self._graph.register_generator_state(generator)
            # On a stream of its own: of those captured on one stream, the first that goes takes what
            # cuBLAS works in along (pytorch#193402). Other threads may go on: they read data ahead, into
            # pinned memory.
            mode = "thread_local"
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode=mode):
                self.result = work()

    def replay(self) -> Result:
        """Do it again; returns :attr:`result`, whose tensors hold the new values."""
        self._graph.replay()
        return self.result


class Launcher(Generic[Result]):
    """Does the same work again and again: plainly the first few times, then as a CUDA graph.

    For work that changes something, such as a step of training: each :meth:`run` does it exactly once.
    Where something that it works on was replaced, it is captured anew. A copy, or one from a pickle, starts
    from the beginning.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: Captured[Result] | None = None
        self._runs = 0  # plain ones
        self._key: Any = None
        self._kept: list[object] = []

    def run(
        self,
        work: Callable[[], Result],
        tensors: Sequence[torch.Tensor],
        constants: tuple[object, ...] = (),
        generators: Sequence[torch.Generator] = (),
    ) -> Result:
        """Do the work once.

        Args:
            work: see :class:`Captured`. It may be another object each time, but does the same if the
                rest is the same.
            tensors: on which it works, as far as others may be put in their place.
            constants: likewise, what it takes for granted.
            generators: see :class:`Captured`.

        Returns:
            What the work returned; tensors may be written anew by the next run.
        """
        places = [(id(tensor), tensor.data_ptr()) for tensor in tensors]
        key = constants, places, [id(generator) for generator in generators]
        if key != self._key:
            self._captured, self._runs = None, 0
            self._key, self._kept = key, [*tensors, *generators]  # no other one gets its id
        if self._captured is None and self._runs < _WARM_UP:
            self._runs += 1
            return work()
        if self._captured is None:
            self._captured = Captured(work, self._device, 0, generators)
        return self._captured.replay()

    def __getstate__(self) -> dict[str, Any]:
        return vars(Launcher(self._device))
