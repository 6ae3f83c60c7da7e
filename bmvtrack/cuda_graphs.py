"""CUDA graphs: GPU work that is captured once and then launched as a whole."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import torch

from bmvtrack.devices import free_memory

Result = TypeVar("Result")
RowFunction = Callable[..., Sequence[torch.Tensor]]
"""Takes tensors ``(B, …)`` and returns tensors ``(B, …)`` whose row i depends on rows i alone."""
_WARM_UP = 3  # runs before a capture; in these, libraries choose kernels and allocate memory
_LEAST_ROWS = 8  # of a graph
_KEPT = 8  # graphs of one RowGraphs
_STREAMS = 32  # that torch has, of each priority


class Captured(Generic[Result]):
    """The GPU work of a function, captured once and launched as a whole from then on.

    The kernels of a small network finish sooner than the host can launch them one by one; as a graph they
    cost the host one launch. The function must do the same work at every call: it must not read values on
    the host or use shapes that depend on values, and everything it reads, other than constants, must be in
    tensors that keep their place in memory. The caller copies new values into them before :meth:`replay`.

    Args:
        work: called three times to warm up, and once during the capture, which computes nothing.
        device: the GPU.
        warm_up: calls before the capture; 0 if the caller has made enough of them itself.
        generators: those that ``work`` draws from, besides the device's own; each replay advances them.

    Attributes:
        result: what ``work`` returned during the capture; each replay overwrites its tensors.
        stream: that it was captured on.
    """

    def __init__(
        self,
        work: Callable[[], Result],
        device: torch.device,
        warm_up: int = _WARM_UP,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        with torch.cuda.device(device):
            self.stream = side = unused_stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(warm_up):
                    work()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            for generator in generators:
                self._graph.register_generator_state(generator)
            # Other threads may keep working: they read data ahead into pinned memory.
            mode = "thread_local"
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode=mode):
                self.result = work()
        _in_use.add(self)

    def replay(self) -> Result:
        """Repeat the work; returns :attr:`result`, whose tensors hold the new values."""
        self._graph.replay()
        return self.result


_in_use: WeakSet[Captured[Any]] = WeakSet()


def unused_stream() -> torch.cuda.Stream:
    """A stream of the current GPU on which no graph in use was captured.

    When several graphs are captured on one stream, the first to be freed also frees cuBLAS's workspace of the
    others (pytorch#193402). New streams are not enough: torch has 32 of each of two priorities and hands
    them out in turn. If more graphs are in use than that, this is one of theirs.
    """
    taken = {captured.stream for captured in _in_use}
    for priority in (0, -1):
        for _ in range(_STREAMS):
            stream = torch.cuda.Stream(priority=priority)
            if stream not in taken:
                return stream
    return stream


_plain = False  # inside of plain_calls()


@contextmanager
def plain_calls() -> Iterator[None]:
    """Make launchers call their work, as graphs would hide its operators from profilers and counters."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


class Launcher(Generic[Result]):
    """Does the same work repeatedly: by plain calls the first few times, then as a CUDA graph.

    For work that changes something, such as a training step: each :meth:`run` does it exactly once. If
    something that it works on has been replaced, it is captured again. A copied or unpickled launcher
    starts from the beginning.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: Captured[Result] | None = None
        self._runs = 0  # plain calls
        self._key: Any = None
        self._kept: list[object] = []

    def run(
        self,
        work: Callable[[], Result],
        tensors: Sequence[torch.Tensor],
        constants: tuple[object, ...] = (),
        generators: Sequence[torch.Generator] = (),
        memory: int = 0,
    ) -> Result:
        """Do the work once.

        Args:
            work: see :class:`Captured`. It may be a different object each time, but must do the same if
                the other arguments are the same.
            tensors: those of the tensors that it works on that may be replaced by others.
            constants: other values that it depends on and that may change.
            generators: see :class:`Captured`.
            memory: bytes that must be free on the GPU for a graph; without them, plain calls go on.

        Returns:
            What the work returned; the next run may overwrite its tensors.
        """
        if _plain:
            return work()
        places = [(id(tensor), tensor.data_ptr()) for tensor in tensors]
        key = constants, places, [id(generator) for generator in generators]
        if key != self._key:
            self._captured, self._runs = None, 0
            self._key, self._kept = key, [*tensors, *generators]  # kept: no other gets its id
        if self._captured is None and self._runs < _WARM_UP:
            self._runs += 1
            return work()
        if self._captured is None and memory and free_memory(self._device) < memory:
            self._runs = 1  # it is looked for again two calls later
            return work()
        if self._captured is None:
            self._captured = Captured(work, self._device, 0, generators)
        return self._captured.replay()

    def __getstate__(self) -> dict[str, Any]:
        return vars(Launcher(self._device))


class RowGraphs:
    """Functions of rows, launched as a whole on a GPU: one CUDA graph for each of a few numbers of rows.

    A graph with more rows also serves fewer; the unused rows hold old values. So the same few numbers of
    rows recur, although the batch size differs from step to step. That matters beyond the graphs: for each
    new shape cuDNN plans each convolution again, which takes milliseconds, and the memory blocks that
    torch has cached no longer fit. So batches are padded even where there is no graph.

    A capture takes as long as a few dozen calls, so a graph is made only for what is called a second time.
    Each graph holds its own memory; the eight used last are kept. Copies and pickles are empty. On a CPU the
    function is called directly.
    """

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, _RowGraph] = OrderedDict()
        self._asked: OrderedDict[Hashable, None] = OrderedDict()  # the last keys

    def __reduce__(self) -> tuple[type[RowGraphs], tuple[()]]:
        return type(self), ()

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
        """Call the function; the results are new tensors.

        Args:
            function: the same at each call with equal constants; see :class:`Captured` for what it must
                not do.
            tensors: B rows each, on one device.
            rows: rows of the graph, at least B; None: :func:`enough` of them.
            memory: bytes that must be free on the GPU for a graph.
            constants: values that the function depends on and that may change.
        """
        device, count = tensors[0].device, len(tensors[0])
        if device.type != "cuda":
            return list(function(*tensors))
        rows = enough(count) if rows is None else rows
        key = rows, constants, *((tensor.shape[1:], tensor.dtype) for tensor in tensors)
        if key not in self._graphs and not self._worthwhile(key, device, memory):
            return [t[:count] for t in function(*(filled(t, rows) for t in tensors))]
        if key not in self._graphs:
            while len(self._graphs) >= _KEPT:
                self._graphs.popitem(last=False)
            self._graphs[key] = _RowGraph(function, tensors, rows)
        self._graphs.move_to_end(key)
        return self._graphs[key](tensors)

    def _worthwhile(self, key: Hashable, device: torch.device, memory: int) -> bool:
        """Whether the key is among the last few requested, and there is enough memory."""
        again = key in self._asked
        self._asked[key] = None
        self._asked.move_to_end(key)
        if len(self._asked) > _KEPT:
            self._asked.popitem(last=False)
        return again and (not memory or free_memory(device) >= memory)


class _RowGraph:
    """A function captured for a number of rows; arguments as for :class:`RowGraphs`."""

    def __init__(self, function: RowFunction, tensors: Sequence[torch.Tensor], rows: int) -> None:
        # Not in inference mode: its tensors could not be written to outside of it.
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
    """Rows of a graph that serves ``count`` rows: up to an eighth more, or up to eight more."""
    step = max(_LEAST_ROWS, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def portions(count: int, most: int) -> list[tuple[slice, int]]:
    """Split a batch into parts of few different sizes, for work whose cost depends on the number of rows.

    Args:
        count: rows of the batch.
        most: largest number of rows in a part, a power of two.

    Returns:
        For each part, which rows, and the number of rows of its graph: a power of two, eight or more. If
        it is more than eight, the part fills at least three quarters of it.
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
    """Pad a tensor to ``rows`` rows by repeating its last row."""
    missing = rows - len(tensor)
    if not missing:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
