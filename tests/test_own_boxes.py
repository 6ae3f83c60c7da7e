"""Videos seen through the boxes that the network itself came to."""

import dataclasses
import math
import sys

import pytest
import torch
from banks import SIZE, build, draw, several, video
from rectangles import write_rectangles
from runs import assert_equal, final_state, killed_at, small_run, train

from bmvtrack import geometry, motion
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.samples import HostSampler, MixedSampler, Sampler
from bmvtrack.errors import UserError
from bmvtrack.training import PretrainOptions
from bmvtrack.training.pretrain import PretrainRun

LOOP = sys.modules[PretrainRun.__module__]  # the package gives the function of that name
OWN = Augmentation(own_boxes=1)
COUNT = 24


def sampler(targets, augmentation=OWN, make=video):
    return Sampler(build(make()), torch.tensor(targets), SIZE, 4, "tracking", augmentation)


def level(boxes):
    return geometry.relabel(boxes, geometry.turns_to_level(boxes))


def test_the_frame_after_is_seen_through_the_box_that_was_reached():
    source = sampler([1])
    by = draw(source, 1).motion + torch.tensor([0.05, -0.03, 0.0, 0.0, 0.0])
    source.follow(by)
    (reached,) = source.reached()
    assert (reached[1, 2:4] > 0).all()
    assert (reached[[0, 2]] == 0).all()
    source.targets, source._weights = torch.tensor([2]), torch.ones(1)
    batch = draw(source, COUNT)
    torch.testing.assert_close(batch.boxes, reached[[1] * COUNT])
    truth = geometry.nearest_label(source.bank.boxes[2], reached[1])
    onward = motion.solve(reached[1], truth, 1.0, 1.0, "object").float()
    flipped = onward * torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    wrong = [(batch.motion - either).abs().amax(dim=1) for either in (onward, flipped)]
    assert torch.minimum(*wrong).max() < 1e-5
    assert all((away < 1e-5).any() for away in wrong)


def test_true_motion_leads_to_true_boxes_flipped_or_not():
    """Of each target the last sample counts; flipped are half of them."""
    for seed in range(8):
        source = sampler([0, 1, 2])
        source.follow(draw(source, COUNT, seed).motion)
        (reached,) = source.reached()
        torch.testing.assert_close(reached, level(source.bank.boxes), atol=1e-3, rtol=0)


class Written:
    """Takes the place of the boxes that were reached."""

    def __setitem__(self, targets, boxes):
        self.targets, self.boxes = targets, boxes


def test_what_is_written_to_one_place_is_one_box():
    """On a GPU, where the order is not known, a mixture of several would be left otherwise."""
    source = sampler([0, 1, 2])
    by = draw(source, COUNT).motion + 0.02 * torch.randn(COUNT, 5)
    by[::3, 0] = -1  # lost
    source._reached = written = Written()
    source.follow(by)
    for target in range(3):
        rows = (written.targets == target).nonzero()[:, 0]
        assert len(rows) > 1
        last = int(rows[-1])
        assert (written.boxes[rows] == written.boxes[last]).all()
    assert len({tuple(box) for box in written.boxes.tolist()}) <= 3


def test_a_box_that_lost_its_object_is_forgotten():
    source = sampler([1])
    batch = draw(source, 4)
    source.follow(batch.motion)
    assert source.reached()[0][1, 2] > 0
    for lost in ([1, 1, 0, 3, 0], [-1, 1, 0, 0, 0], [1, 1, 2, 0, 0], [torch.nan] * 5):
        draw(source, 4)
        source.follow(torch.tensor(lost).expand(4, 5))
        assert (source.reached()[0] == 0).all()


def test_a_box_that_turned_past_45_degrees_is_kept_with_its_other_label():
    still = Augmentation(log_scale=0, turn=0, shift=0)
    source = sampler([1], still, several)
    before = draw(source, 4).boxes[0]
    assert before[4] == pytest.approx(0, abs=1e-9)
    source.follow(torch.tensor([1, 1, math.sin(0.9), 0, 0]).expand(4, 5))
    after = source.reached()[0][1]
    torch.testing.assert_close(after[:4], before[[0, 1, 3, 2]])
    assert after[4].abs() == pytest.approx(math.pi / 2 - 0.9, abs=1e-6)  # flipped or not


def test_a_share_of_videos_and_no_still():
    source = sampler([2], dataclasses.replace(OWN, own_boxes=0.25))
    source.reached()[0][1] = level(source.bank.boxes[1])
    batch = draw(source, 800)
    own = (batch.boxes == source.reached()[0][1]).all(dim=1).double().mean()
    assert own == pytest.approx(0.25, abs=0.05)
    stills = sampler([0, 1, 2], make=several)
    stills.reached()[0][:] = stills.bank.boxes + 1
    assert torch.equal(draw(stills, 32).boxes, draw(sampler([0, 1, 2], make=several), 32).boxes)


def test_a_share_of_none_draws_as_if_no_box_were_known():
    none = draw(sampler([0, 1, 2], Augmentation()), 16)
    known = sampler([0, 1, 2], Augmentation())
    known.reached()[0][:] = known.bank.boxes
    assert torch.equal(draw(known, 16).boxes, none.boxes)


def test_each_of_a_mixture_is_told_of_its_own():
    first, second = sampler([0, 1, 2]), sampler([0, 1, 2])
    mixed = MixedSampler([first, HostSampler(second, torch.device("cpu"))], [1, 2])
    mixed.follow(draw(mixed, COUNT).motion)
    for boxes, source in zip(mixed.reached(), (first, second), strict=True):
        torch.testing.assert_close(boxes, level(source.bank.boxes), atol=1e-3, rtol=0)


def test_a_run_stopped_and_resumed_equals_one_that_was_not(tmp_path, monkeypatch):
    """With what the network has come to, which later batches are drawn from."""
    monkeypatch.setattr(LOOP, "_VALIDATION_BATCHES", 1)
    options = small_run(tmp_path / "run", write_rectangles(tmp_path / "data"))
    options = dataclasses.replace(options, own_boxes=1.0, width=2, validate_every=4)
    train(options, out=tmp_path / "straight")
    with killed_at(5):
        train(options)
    _, printed = train(options, resume=True)
    assert "at step 4 of 6" in printed
    states = [final_state(out) for out in (options.out, tmp_path / "straight")]
    assert_equal(*states)
    assert any(boxes[0, :, 2].gt(0).any() for boxes in states[0]["reached"])
    train(options, out=tmp_path / "without", own_boxes=0.0)
    others = final_state(tmp_path / "without")["network"]
    assert any(not torch.equal(value, others[name]) for name, value in states[0]["network"].items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"own_boxes": -0.5}, r"--own-boxes must lie in \[0, 1\], not -0.5"),
        ({"own_boxes": 0.5, "mode": "paper"}, "are for --mode tracking"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        PretrainOptions(**wrong).resolved()
