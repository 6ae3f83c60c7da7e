"""Work shared among processes, or, on few cores, threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2
import psutil
from loky import ProcessPoolExecutor, cpu_count

from bmvtrack.distributed import rank_count
from bmvtrack.errors import UserError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_FEWEST, _MOST = 4, 16  # processes
_WORTH_STARTING = 1000  # images: they take longer than starting a process does
_CHUNKS = 16  # for each process: few, to send them quickly, and many, so that all end together
_made: Sequence[Any] = ()  # in a worker of :func:`mapped`: the items


@contextmanager
def worker_pool(
    count: int, begin: Callable[..., object] | None = None, *arguments: object
) -> Iterator[ProcessPoolExecutor]:
    """``count`` processes, which are started anew instead of forked: torch's threads do not survive a fork.

    They do not import the main module, so a script that needs them may do without ``if __name__ ==
    "__main__"``. They ignore Ctrl-C and SIGTERM and end with this process, however that ends.

    Args:
        count: number of processes.
        begin: what each calls at first.
        arguments: of that call.
    """
    pool = ProcessPoolExecutor(
        count,
        initializer=_start,
        initargs=(os.getpid(), begin, *arguments),
        env={"OMP_NUM_THREADS": "1"},  # torch and the BLAS have one thread each
    )
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


def mapped(
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    make: Callable[[], Sequence[_Item]] | None,
    pieces: int,
) -> Iterator[_Result]:
    """``map(work, items)`` on all cores.

    Reading and rendering images keep Python's lock for about half of the time, so more threads than two gain
    little. Processes do, but take seconds to start.

    Args:
        work: for one item.
        items: what to work on.
        make: returns the same items. Each process calls it, as items may be large to send. None: threads
            do the work.
        pieces: size of the work; with less than about 4,000 images, threads do it.

    Raises:
        UserError: if a process was killed.
    """
    workers = 0 if make is None else _worker_count(pieces)
    if workers < _FEWEST:
        threads = ThreadPoolExecutor(min(_FEWEST, cpu_count()))
        try:
            yield from threads.map(work, items)
        finally:  # also if one fails: the rest need not be done
            threads.shutdown(cancel_futures=True)
        return
    chunk = max(1, len(items) // (_CHUNKS * workers))
    numbers = range(len(items))
    with worker_pool(workers, _make, make) as pool:
        # Not by its map(), which cancels what is left when this is interrupted: the pool's own thread would
        # then raise, too, as it finds those cancelled.
        parts = deque(
            pool.submit(_work_on, work, numbers[first : first + chunk])
            for first in numbers[::chunk]
        )
        try:
            while parts:
                yield from parts.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {workers} processes was killed, perhaps for lack of memory; the environment "
                "variable LOKY_MAX_CPU_COUNT limits their number (below 4, threads do the work)"
            ) from error


def _worker_count(pieces: int) -> int:
    """Number of processes that are worth starting: at most 16, and one for each core that a rank has."""
    return int(min(_MOST, cpu_count() // rank_count(), pieces // _WORTH_STARTING))


def _start(parent: int, begin: Callable[..., object] | None, *arguments: object) -> None:
    # Ctrl-C, and what batch systems send to all processes, are for the main one: a worker that ended while it
    # sends a result would leave that one waiting for the rest.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    cv2.setNumThreads(1)
    if begin is not None:
        begin(*arguments)


def _end_with(parent: int) -> None:
    """Exit with the main process: otherwise workers outlive one that is killed, and wait for ever."""
    while os.getppid() == parent and psutil.pid_exists(parent):
        time.sleep(1)
    os._exit(1)


def _make(make: Callable[[], Sequence[Any]]) -> None:
    global _made
    _made = make()


def _work_on(work: Callable[[Any], _Result], numbers: Sequence[int]) -> list[_Result]:
    return [work(_made[number]) for number in numbers]
