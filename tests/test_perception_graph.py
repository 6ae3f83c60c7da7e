"""One launch and one transfer a look: percepts as one tensor, and CUDA graphs on a GPU."""

import copy
import pickle

import numpy as np
import pytest
import torch

from bmvtrack import prior
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.models import ResNetUNet, Template
from bmvtrack.percept import Percept
from bmvtrack.perception import BoxedFrames, Perception, _together
from bmvtrack.perception_graphs import GraphCache

NAMES = Percept.names()
SEQUENCE = synthetic_sequence(3)


def network(template=True):
    torch.manual_seed(0)
    result = ResNetUNet(prior.named("davis16"), width=8, input_size=64, template=template)
    if template:
        for recall in result.recalls:  # or a template changes nothing
            torch.nn.init.normal_(recall.output.weight, std=0.05)
    return result


@pytest.mark.parametrize("count", [1, 3])
def test_a_percept_is_one_tensor_and_back(count):
    percept = Perception(network()).look(SEQUENCE.frame(1), SEQUENCE.boxes[:count])
    packed = percept.packed()
    found = percept.unpacked(packed)
    assert packed.shape == (sum(getattr(percept, name).nbytes for name in NAMES),)
    assert found.box_threshold == percept.box_threshold
    for name in NAMES:
        value, expected = getattr(found, name), getattr(percept, name)
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected)
        assert value.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


def test_a_percept_on_the_host_is_left_as_it_is():
    percept = Perception(network()).look(SEQUENCE.frame(1), SEQUENCE.boxes[0])
    assert percept.cpu() is percept


def test_templates_are_copied_and_overwritten_and_one_alone_is_itself():
    seer = Perception(network())
    first, second = (seer.remember(SEQUENCE.frame(t), SEQUENCE.boxes[t]) for t in (0, 5))
    held = first.clone()
    tensors = held.tensors()
    held.copy_(second)
    assert Template.cat([first]) is first
    for mine, new in zip(tensors, second.tensors(), strict=True):
        assert torch.equal(mine, new)
    assert not torch.equal(first.memories[0][0], second.memories[0][0])


def test_a_copy_has_no_graphs():
    seer = Perception(network())
    seer._graphs._graphs["of a shape"] = object()
    for other in (copy.deepcopy(seer), pickle.loads(pickle.dumps(seer))):
        assert isinstance(other._graphs, GraphCache)
        assert len(other._graphs) == 0
    assert len(seer._graphs) == 1


class Fake:
    """In the place of a graph: what was captured of which shapes, in order."""

    made: list[tuple[int, ...]]

    def __init__(self, look, frames, numbers, template, device):
        self.shape = tuple(frames.shape)
        Fake.made.append(self.shape)

    def __call__(self, frames, numbers, template):
        return self.shape


def test_a_shape_that_comes_twice_in_a_row_is_captured_and_four_are_kept(monkeypatch):
    monkeypatch.setattr("bmvtrack.perception_graphs._Graph", Fake)
    Fake.made, cache = [], GraphCache()

    def ask(size, count=1, template=None):
        numbers = torch.zeros(count, 10)
        return cache(None, torch.zeros(1, size, size, 3), numbers, template, torch.device("cuda"))

    assert [ask(8), ask(9), ask(8), ask(8)] == [None, None, None, (1, 8, 8, 3)]
    assert [ask(8, 2), ask(8, 2), ask(8)] == [None, (1, 8, 8, 3), (1, 8, 8, 3)]
    for size in (5, 6, 7):
        assert [ask(size), ask(size)] == [None, (1, size, size, 3)]
    assert len(cache) == 4
    assert len(Fake.made) == 5
    assert ask(8) is not None  # used last before the others came; that of two boxes is gone
    assert ask(8, 2) is None
    assert len(Fake.made) == 5


@pytest.mark.gpu
class TestOnAGPU:
    """Percepts of graphs are those without."""

    @pytest.mark.parametrize("template", [False, True])
    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_graphs_see_what_plain_looks_see(self, monkeypatch, precision, count, template):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        seer, host = Perception(network(), "cuda", precision), Perception(network())
        for size in (slice(None), slice(0, 200)):  # of two frame sizes
            boxes = SEQUENCE.boxes[:count]
            first = np.ascontiguousarray(SEQUENCE.frame(0)[size])
            known = seer.remember(first, boxes) if template else None
            here = host.remember(first, boxes) if template else None
            for t in range(1, 5):
                frame = np.ascontiguousarray(SEQUENCE.frame(t)[size])
                boxes = SEQUENCE.boxes[t : t + count]
                graphed = seer.look(frame, boxes, known)
                with monkeypatch.context() as plain:
                    plain.setattr(seer, "_graphs", lambda *inputs: None)
                    expected = seer.look(frame, boxes, known)
                exact = host.look(frame, boxes, here)
                for name in NAMES:
                    found = getattr(graphed, name)
                    torch.testing.assert_close(
                        found, getattr(expected, name), rtol=1e-5, atol=1e-5, msg=name
                    )
                    # Of a network that knows nothing, many pixels are about ½: in or out of a mask.
                    if precision == "float32" and name != "geometry":
                        torch.testing.assert_close(
                            found.cpu(), getattr(exact, name), rtol=2e-3, atol=2e-3, msg=name
                        )
        assert len(seer._graphs) == 2

    def test_a_batch_on_the_device_is_launched_whole_too(self, monkeypatch):
        seer = Perception(network(), "cuda")
        frames = torch.from_numpy(np.stack([SEQUENCE.frame(t) for t in range(3)])).cuda()
        boxes = torch.from_numpy(SEQUENCE.boxes[:3]).cuda()
        sizes = torch.tensor([SEQUENCE.size] * 3).cuda()
        boxed = BoxedFrames(frames, boxes, sizes, frames.float().mean(dim=(1, 2)))
        _, graphed = seer(boxed), seer(boxed)
        assert len(seer._graphs) == 1
        monkeypatch.setattr(seer, "_graphs", lambda *inputs: None)
        expected = seer(boxed)
        for name in NAMES:
            torch.testing.assert_close(
                getattr(graphed, name), getattr(expected, name), rtol=1e-5, atol=1e-5
            )

    def test_what_was_seen_stays_and_so_does_the_template(self):
        seer = Perception(network(), "cuda")
        known = seer.remember(SEQUENCE.frame(0), SEQUENCE.boxes[0])
        remembered = known.clone()
        for t in (1, 2, 3):
            kept = seer.look(SEQUENCE.frame(t), SEQUENCE.boxes[t], known)
        copies = {name: getattr(kept, name).clone() for name in NAMES}
        after = seer.look(SEQUENCE.frame(8), SEQUENCE.boxes[8], known)
        other = seer.remember(SEQUENCE.frame(5), SEQUENCE.boxes[5])
        told_other = seer.look(SEQUENCE.frame(8), SEQUENCE.boxes[8], other)
        told_again = seer.look(SEQUENCE.frame(8), SEQUENCE.boxes[8], known)
        for name in NAMES:
            assert torch.equal(getattr(kept, name), copies[name])
            torch.testing.assert_close(getattr(told_again, name), getattr(after, name))
        assert not torch.equal(kept.mean, after.mean)
        assert not torch.equal(told_other.features, after.features)
        for mine, was in zip(known.memories, remembered.memories, strict=True):
            assert torch.equal(mine[0], was[0])
            assert torch.equal(mine[1], was[1])

    def test_a_percept_comes_to_the_host_as_its_tensors_would(self):
        percept = Perception(network(), "cuda").look(SEQUENCE.frame(1), SEQUENCE.boxes[:2])
        host = percept.cpu()
        for name in NAMES:
            assert torch.equal(getattr(host, name), getattr(percept, name).cpu())

    def test_an_evicted_graph_leaves_the_others_alone(self):
        seer = Perception(network(), "cuda")
        boxes = SEQUENCE.boxes[:1]

        def look(height):
            return seer.look(np.ascontiguousarray(SEQUENCE.frame(1)[:height]), boxes)

        expected = [look(height) for height in (240, 240)][-1]
        for height in (200, 204, 208, 212, 216):
            _ = look(height), look(height), look(240)
        assert len(seer._graphs) == 4
        torch.testing.assert_close(look(240).mean, expected.mean)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.usefixtures("graphs")
def test_a_graph_looks_at_what_it_is_given(count):
    """All but the capture, on a CPU."""
    seer = Perception(network())
    templates = [seer.remember(SEQUENCE.frame(t), SEQUENCE.boxes[:count]) for t in (0, 6)]
    for t, known in enumerate([templates[0], templates[0], templates[1], None, None, templates[0]]):
        frame, boxes = SEQUENCE.frame(t), SEQUENCE.boxes[t : t + count]
        found = seer._launch(*_together(frame, boxes), known)
        expected = seer.look(frame, boxes, known)
        for name in NAMES:
            assert torch.equal(getattr(found, name), getattr(expected, name))
    assert len(seer._graphs) == 2
