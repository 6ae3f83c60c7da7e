"""Batches whose numbers of rows recur, and functions of rows as CUDA graphs."""

import copy
import pickle

import numpy as np
import pytest
import torch
from environments import of_three_sizes

from bmvtrack import cuda_graphs, prior
from bmvtrack.cuda_graphs import RowGraphs, enough, filled, portions
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.masks import PendingMasks, boxes_of_pending, mask_boxes
from bmvtrack.models import ResNetUNet
from bmvtrack.motion import AT_REST
from bmvtrack.percept import Percept
from bmvtrack.perception import BoxedFrames, Perception
from envs import BMVTrackVectorEnv

NAMES = Percept.names()
SEQUENCE = synthetic_sequence(3)


def network():
    torch.manual_seed(0)
    result = ResNetUNet(prior.named("davis16"), width=4, input_size=64, template=True)
    for recall in result.recalls:  # or a template changes nothing
        torch.nn.init.normal_(recall.output.weight, std=0.05)
    return result


def batch(count: int, device: str = "cpu") -> BoxedFrames:
    """What a look at so many frames takes."""
    steps = np.arange(count) % len(SEQUENCE)
    frames = torch.from_numpy(np.stack([SEQUENCE.frame(t) for t in steps.tolist()]))
    boxes = torch.from_numpy(SEQUENCE.boxes[steps] + np.arange(count)[:, None] % 7 * 0.5)
    fill = frames.float().mean(dim=(1, 2))
    tensors = frames, boxes, torch.tensor([SEQUENCE.size] * count), fill
    return BoxedFrames(*(tensor.to(device) for tensor in tensors))


@pytest.mark.parametrize("most", [8, 64, 256])
def test_portions_are_of_few_sizes_and_have_every_row_once(most):
    sizes = set()
    for count in range(1, 1100):
        parts = portions(count, most)
        rows = [i for part, _ in parts for i in range(part.start, part.stop)]
        assert rows == list(range(count))
        for part, size in parts:
            length = part.stop - part.start
            assert length <= size <= most
            assert size == 8 or length >= 0.75 * size
            assert portions(length, most) == [(slice(0, length), size)]
            sizes.add(size)
    assert sizes == {2**i for i in range(3, 9) if 2**i <= most}


def test_there_is_little_too_much():
    for count in range(1, 5000):
        assert count <= enough(count) <= max(8, count * 9 / 8 + 8)
    assert [enough(n) for n in (1, 8, 9, 64, 1024, 1060)] == [8, 8, 16, 64, 1024, 1152]
    assert len({enough(1024 + k) for k in range(1024)}) == 9


def test_rows_are_filled_up_with_the_last_one():
    values = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(filled(values, 5), torch.tensor([[0.0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]))
    assert filled(values, 3) is values


@pytest.mark.parametrize("count", [3, 9, 45])
def test_a_filled_batch_is_seen_as_it_is_without(count):
    """What a GPU does with batches of more than eight, on a CPU."""
    seer = Perception(network())
    boxed = batch(count)
    known = seer.memorize(batch(count + 1)).rows(torch.arange(count))
    expected = seer(boxed, known)
    tensors = *boxed.tensors(), *(t for memory in known.memories for t in memory)
    with torch.inference_mode():
        parts = [
            [t[: rows.stop - rows.start] for t in seer._perceive_rows(*parts)]
            for rows, size in portions(count, 32)
            for parts in [[filled(t[rows], size) for t in tensors]]
        ]
    for name, found in zip(NAMES, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(
            torch.cat(found), getattr(expected, name), rtol=1e-5, atol=1e-5, msg=name
        )


class OnAGPU(torch.Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda")


@pytest.fixture
def row_graphs(monkeypatch, graphs):
    """Row graphs, and a call of them that takes any tensors for those of a GPU."""
    empty = torch.empty
    monkeypatch.setattr(
        cuda_graphs.torch, "empty", lambda *a, device, **k: empty(*a, **k), raising=True
    )
    monkeypatch.setattr(cuda_graphs, "_KEPT", 2)
    result = RowGraphs()

    def call(function, *tensors, **more):
        return result(function, [t.as_subclass(OnAGPU) for t in tensors], **more)

    return result, call


def test_graphs_give_what_the_function_gives_in_tensors_of_their_own(row_graphs, graphs):
    held, call = row_graphs
    kept = []
    for count in (5, 3, 8, 1, 6):  # all of eight rows
        a, b = torch.randn(count, 2), torch.randn(count, 2, 3).double()
        found = call(lambda a, b: [a + 1, b.sum(1), a], a, b)
        kept.append((found, [a + 1, b.sum(1), a.clone()]))
    assert (len(held), graphs.made) == (1, 1)
    for found, expected in kept:
        for mine, right in zip(found, expected, strict=True):
            assert torch.equal(torch.Tensor(mine.as_subclass(torch.Tensor)), right)


def test_only_what_is_asked_for_again_is_captured_and_few_are_kept(row_graphs, graphs):
    held, call = row_graphs

    def ask(rows):
        call(lambda a: [a * 2], torch.ones(rows, 1), rows=rows)
        return graphs.made, len(held)

    assert [ask(8), ask(16), ask(8), ask(16)] == [(0, 0), (0, 0), (1, 1), (2, 2)]
    assert [ask(8), ask(32), ask(64), ask(32), ask(64)] == [(2, 2)] * 3 + [(3, 2), (4, 2)]


def test_there_is_no_graph_where_memory_is_short(row_graphs, monkeypatch):
    held, call = row_graphs
    monkeypatch.setattr(cuda_graphs, "free_memory", lambda device: 100)
    for memory, captured in ((101, 0), (100, 1)):
        for _ in range(3):
            call(lambda a: [a * 2], torch.ones(3, 1), memory=memory)
        assert len(held) == captured


def test_what_a_function_takes_for_granted_may_change(row_graphs):
    _, call = row_graphs
    for factor in (2, 2, 2, 3, 3, 3, 2):
        (found,) = call(lambda a, f=factor: [a * f], torch.ones(3, 1), constants=(factor,))
        assert found.flatten().tolist() == [factor] * 3


def test_rules_of_environments_may_change(perception):
    """As ``set_attr`` of Stable-Baselines3's environments lets them."""
    env, told = BMVTrackVectorEnv(2, of_three_sizes(), perception), []

    def moves(function, tensors, constants):
        told.append(constants)
        return function(*tensors)

    env._moves = moves
    observations, _ = env.reset(seed=0)
    env.step(observations["prior_mean"])
    env.lost_after, env.reward = 3, "axis_aligned"
    env.step(observations["prior_mean"])
    assert told == [("frame", "rotated", 10), ("frame", "axis_aligned", 3)]


def test_copies_are_empty(row_graphs):
    held, call = row_graphs
    for _ in range(2):
        call(lambda a: [a], torch.ones(3, 1))
    for other in (copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
        assert len(other) == 0


def test_graphs_serve_in_and_outside_of_inference_mode(row_graphs):
    _, call = row_graphs
    for inference in (True, True, False, True):
        with torch.inference_mode(inference):
            (found,) = call(lambda a: [a * 2], torch.ones(3, 1))
    assert not found.is_inference()


class AtOnce:
    """In the place of a copy on its way."""

    def __init__(self, tensor):
        self.numpy = tensor.numpy


@pytest.mark.parametrize("threads", [1, 3])
def test_masks_that_come_in_batches_have_the_boxes_of_all_at_once(monkeypatch, threads):
    monkeypatch.setattr("bmvtrack.masks.ToHost", AtOnce)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    values = torch.nn.functional.avg_pool2d(torch.rand(150, 24, 24), 5, 1, 2)
    values[3] = 0
    windows = (
        torch.tensor([30.0, 20, 330, 220]).double().repeat(150, 1) + torch.arange(150)[:, None]
    )
    expected = mask_boxes(values, windows, 0.5)
    parts = [slice(0, 100), slice(100, 150)]
    found = boxes_of_pending(PendingMasks(values[p], windows[p], 0.5) for p in parts)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.gpu
class TestOnAGPU:
    """Steps of graphs are those without."""

    @pytest.mark.parametrize("coordinates", ["frame", "object"])
    def test_environments_with_graphs_step_as_those_without(self, monkeypatch, coordinates):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        plain, graphed = (
            BMVTrackVectorEnv(
                64,
                of_three_sizes(),
                Perception(network(), "cuda"),
                device="cuda",
                coordinates=coordinates,
                clip_length=7,
            )
            for _ in range(2)
        )
        for graphs in (plain.perception._passes, plain.perception._memories):
            graphs._worthwhile = lambda *_: False
        plain._moves._worthwhile = plain._observer._numbers._worthwhile = lambda *_: False
        actions = torch.tensor(AT_REST, device="cuda").expand(64, 5)
        found, expected = graphed.reset(seed=0)[0], plain.reset(seed=0)[0]
        restarts = 0
        for _ in range(40):
            assert_equal(found, expected)
            ours, theirs = graphed.step(actions), plain.step(actions)
            for mine, right in zip(ours[1:4], theirs[1:4], strict=True):
                torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
            found, expected = ours[0], theirs[0]
            if "final_obs" in ours[4]:
                restarts += 1
                assert_equal(ours[4]["final_obs"], theirs[4]["final_obs"])
        assert restarts > 3
        assert len(graphed.perception._passes) >= 2
        assert len(graphed.perception._memories) >= 1
        assert (len(graphed._moves), len(plain._moves)) == (1, 0)

    def test_a_batch_is_seen_as_its_parts_are(self, monkeypatch):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        seer = Perception(network(), "cuda")
        boxed = batch(77, "cuda")
        known = seer.memorize(boxed)
        _, graphed = seer(boxed, known), seer(boxed, known)
        assert len(seer._passes) == 2  # of 64 and 16 rows
        with torch.inference_mode():
            expected = seer._perceive(boxed, known)
        for name in NAMES:
            if name != "geometry":  # of pixels about ½: in or out of a mask
                torch.testing.assert_close(
                    getattr(graphed, name), getattr(expected, name), rtol=1e-4, atol=1e-4, msg=name
                )

    def test_memory_is_bounded(self):
        """Graphs of all sizes that 24 steps need take less than the room that was asked for."""
        before = torch.cuda.memory_reserved()
        env = BMVTrackVectorEnv(
            300, of_three_sizes(), Perception(network(), "cuda"), device="cuda", clip_length=5
        )
        actions = torch.tensor(AT_REST, device="cuda").expand(300, 5)
        env.reset(seed=0)
        for _ in range(24):
            env.step(actions)
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() - before < 4 * 2**30


def assert_equal(found, expected):
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)
