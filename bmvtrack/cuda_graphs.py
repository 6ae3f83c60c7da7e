"""Work of a GPU that is launched as a whole: CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch

from bmvtrack.devices import free_memory

Result = TypeVar("Result")
RowFunction = Callable[..., Sequence[torch.Tensor]]
"""Of tensors ``(B, …)``; gives tensors ``(B, …)`` whose row i comes of rows i alone."""
_WARM_UP = 3  # runs before a capture: libraries choose kernels and take memory in the first ones
_LEAST_ROWS = 8  # of a graph


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


class RowGraphs:
    """A function of rows on a GPU, launched as a whole: a CUDA graph for each of a few numbers of rows.

    A graph of more rows does for fewer: those that nobody asked for hold what lay there before. So the
    numbers of rows recur, though batches differ in theirs from step to step. That matters beyond the
    graphs: for each new shape cuDNN plans each convolution anew, which takes milliseconds, and what
    torch keeps of memory fits no more. So rows are filled up where there is no graph, too.

    A capture takes as long as a few dozen calls, so only what is asked for a second time has a graph.
    Each holds memory of its own. Copies and pickles are empty. On a CPU the function is called as it is.

    Args:
        kept: graphs; of more, the one that was used least recently goes.
    """

    def __init__(self, kept: int = 8) -> None:
        self._kept = kept
        self._graphs: OrderedDict[Hashable, _RowGraph] = OrderedDict()
        self._asked: OrderedDict[Hashable, None] = OrderedDict()  # what was last

    def __reduce__(self) -> tuple[type[RowGraphs], tuple[int]]:
        return type(self), (self._kept,)

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self,
        function: RowFunction,
        tensors: Sequence[torch.Tensor],
        rows: int | None = None,
        memory: int = 0,
        constants: tuple[Hashable, ...] = (),
    ) -> list[torch.Tensor]:
        """What the function gives, in tensors of its own.

        Args:
            function: the same at each call with equal constants; see :class:`Captured` for what it may not
                do.
            tensors: B rows each, on one device.
            rows: of the graph, at least B; None: :func:`enough` of them.
            memory: bytes that must be free on the GPU for a graph.
            constants: what the function takes for granted and others may change.
        """
        device, count = tensors[0].device, len(tensors[0])
        if device.type != "cuda":
            return list(function(*tensors))
        rows = enough(count) if rows is None else rows
        key = rows, constants, *((tensor.shape[1:], tensor.dtype) for tensor in tensors)
        if key not in self._graphs and not self._worthwhile(key, device, memory):
            return [t[:count] for t in function(*(filled(t, rows) for t in tensors))]
        if key not in self._graphs:
            while len(self._graphs) >= self._kept:
                self._graphs.popitem(last=False)
            self._graphs[key] = _RowGraph(function, tensors, rows)
        self._graphs.move_to_end(key)
        return self._graphs[key](tensors)

    def _worthwhile(self, key: Hashable, device: torch.device, memory: int) -> bool:
        """Whether it was asked for among the last few, and there is room."""
        again = key in self._asked
        self._asked[key] = None
        self._asked.move_to_end(key)
        if len(self._asked) > self._kept:
            self._asked.popitem(last=False)
        return again and (not memory or free_memory(device) >= memory)


class _RowGraph:
    """A function of a number of rows, captured; arguments as of :class:`RowGraphs`."""

    def __init__(self, function: RowFunction, tensors: Sequence[torch.Tensor], rows: int) -> None:
        # Not in inference mode: such tensors could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = [
                torch.empty((rows, *t.shape[1:]), dtype=t.dtype, device=t.device).copy_(t[:1])
                for t in tensors
            ]
            self._captured = Captured(lambda: function(*self._inputs), tensors[0].device)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        count = len(tensors[0])
        with torch.inference_mode(False), torch.no_grad():
            for mine, new in zip(self._inputs, tensors, strict=True):
                mine[:count].copy_(new)
            return [result[:count].clone() for result in self._captured.replay()]


def enough(count: int) -> int:
    """Rows of a graph for so many: up to an eighth more, or eight."""
    step = max(_LEAST_ROWS, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def portions(count: int, most: int) -> list[tuple[slice, int]]:
    """A batch in parts of few sizes, for work that depends much on the number of rows.

    Args:
        count: of its rows.
        most: rows of a part, a power of two.

    Returns:
        Which rows, and how many the graph of them has: a power of two from eight on, of which they fill
        three quarters at least if there are more than eight.
    """
    result, first = [], 0
    while first < count:
        left = count - first
        rows = min(max(_LEAST_ROWS, 1 << (left - 1).bit_length()), max(most, _LEAST_ROWS))
        if rows > _LEAST_ROWS and rows - left > rows // 4:
            rows //= 2
        result.append((slice(first, min(first + rows, count)), rows))
        first += rows
    return result


def filled(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """A tensor with its last row again and again behind it, up to a number of rows."""
    missing = rows - len(tensor)
    if not missing:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
