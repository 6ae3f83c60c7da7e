"""Each CUDA graph is captured on a stream that no other graph in use has."""

import gc
from itertools import count
from typing import Any, ClassVar

import pytest
import torch

from bmvtrack import cuda_graphs
from bmvtrack.cuda_graphs import unused_stream


class Stream:
    """Handed out in turn from a pool of 32 for each priority, as torch does it."""

    turns: ClassVar[dict[int, Any]] = {}

    def __init__(self, priority: int = 0) -> None:
        turn = self.turns.setdefault(priority, count())
        self.name = priority, next(turn) % 32

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Graph:
    def __init__(self) -> None:
        self.stream = unused_stream()
        cuda_graphs._in_use.add(self)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    assert not cuda_graphs._in_use
    monkeypatch.setattr(Stream, "turns", {})
    monkeypatch.setattr(torch.cuda, "Stream", Stream)


def test_no_two_graphs_in_use_have_the_same_stream() -> None:
    """Graphs come and go while one stays, for longer than the pool lasts."""
    first, others = Graph(), [Graph() for _ in range(3)]
    for i in range(200):
        others[i % 3] = Graph()
        assert len({graph.stream for graph in (first, *others)}) == 4
    many = [first, *others, *(Graph() for _ in range(60))]
    assert len({graph.stream for graph in many}) == 64


def test_there_is_a_stream_even_if_all_are_in_use() -> None:
    many = [Graph() for _ in range(70)]
    assert len({graph.stream for graph in many}) == 64
