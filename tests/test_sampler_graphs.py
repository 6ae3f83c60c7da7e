"""Batches drawn by a CUDA graph are those that plain calls draw.

What needs no GPU is tested with a graph that does its work anew each time it is launched.
"""

from dataclasses import replace

import pytest
import torch
from banks import SIZE, build, several, video
from pretended_graphs import PretendedGraph
from runs import assert_equal

from bmvtrack import cuda_graphs
from bmvtrack.cuda_graphs import plain_calls
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.batch import Batch
from bmvtrack.data.samples import MixedSampler, Sampler

EVERYTHING = Augmentation(distractors=0.3, backgrounds=0.3, whole_images=0.5, own_boxes=0.7)
COUNTS = (4, 4, 2, 4, 4, 2, 2, 4, 4, 2, 4, 4)  # graphs of both are launched


def samplers(device: str, graphed: bool, mode: str = "tracking") -> MixedSampler:
    banks = [build(video()).to(device), build(several()).to(device)]
    return MixedSampler(
        [
            Sampler(
                bank,
                torch.arange(len(bank), device=device),
                SIZE,
                4 if mode == "tracking" else 3,
                mode,  # type: ignore[arg-type]
                EVERYTHING,
                templates=mode == "tracking",
                graphed=graphed,
            )
            for bank in banks
        ],
        [1, 1],
    )


def drawn(source: MixedSampler, generator: torch.Generator, follows: bool) -> list[Batch]:
    batches = []
    for count in COUNTS:
        batch = source.draw(count, generator)
        batches.append(replace(batch, motion=batch.motion.nan_to_num(1.0)))
        if follows:
            source.follow(0.9 * batches[-1].motion)
    return batches


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("mode", "follows"), [("paper", False), ("tracking", True)])
def test_graphs_draw_what_plain_calls_do(
    device: str, mode: str, follows: bool, request: pytest.FixtureRequest
) -> None:
    pretended = request.getfixturevalue("graphs") if device == "cpu" else None
    ours, plain = samplers(device, True, mode), samplers(device, False, mode)
    generators = [torch.Generator(device).manual_seed(3) for _ in range(2)]
    # All are compared at the end: a batch must not change when the next one is drawn.
    for one, other in zip(
        drawn(ours, generators[0], follows), drawn(plain, generators[1], follows), strict=True
    ):
        assert_equal(vars(one), vars(other))
    assert_equal(ours.reached(), plain.reached())
    assert torch.equal(*(generator.get_state() for generator in generators))
    assert any((boxes[:, 2] > 0).any() for boxes in ours.reached()) == follows
    for source in ours.samplers:
        assert isinstance(source, Sampler)
        assert source._graphs
        assert all(graphs.draw._captured is not None for graphs in source._graphs.values())
        assert any(g.follow._captured is not None for g in source._graphs.values()) == follows
    if pretended is not None:
        assert PretendedGraph.made >= 4


@pytest.mark.usefixtures("graphs")
def test_operators_can_be_seen() -> None:
    ours, plain = samplers("cpu", True), samplers("cpu", False)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    with plain_calls():
        batches = drawn(ours, generators[0], True)
    assert PretendedGraph.made == 0
    for one, other in zip(batches, drawn(plain, generators[1], True), strict=True):
        assert_equal(vars(one), vars(other))


def test_a_full_gpu_gets_no_graphs(
    graphs: type[PretendedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But those that are there stay, and others come when there is room again."""
    ours, plain = samplers("cpu", True), samplers("cpu", False)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    made = []
    for free in (0, 2**40, 0):
        monkeypatch.setattr(cuda_graphs, "free_memory", lambda device, free=free: free)
        for one, other in zip(
            drawn(ours, generators[0], False), drawn(plain, generators[1], False), strict=True
        ):
            assert_equal(vars(one), vars(other))
        made.append(graphs.made)
    assert made[0] == 0
    assert made[1] >= 4
    assert made[2] == made[1]
