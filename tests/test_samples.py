"""Training samples: what the network sees, and what it is told, agree."""

import math

import numpy as np
import pytest
import torch
from banks import SIZE, build, draw, mask, rectangle, sequence, several, video

from bmvtrack import geometry, motion
from bmvtrack.data import patches
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.patches import normalize
from bmvtrack.data.samples import HostSampler, MixedSampler, Sampler
from bmvtrack.iou import rotated_iou_torch
from bmvtrack.training.parts import home_of

STILL = Augmentation(log_scale=0, turn=0, shift=0)
GENTLE = Augmentation(strengths=(0.5,))


CPU = torch.device("cpu")


def sampler(bank, targets=None, mode="tracking", channels=4, jitter=GENTLE, augment=False):
    chosen = torch.arange(len(bank)) if targets is None else torch.tensor(targets)
    return Sampler(bank, chosen, SIZE, channels, mode, jitter, augment)


def test_shapes_types_and_ranges():
    batch = draw(sampler(build(video()), jitter=Augmentation(), augment=True), 5)
    assert batch.patches.shape == (5, 4, SIZE, SIZE)
    assert batch.patches.dtype == torch.float32
    assert batch.patches.abs().max() <= 2
    assert batch.labels.shape == (5, SIZE, SIZE)
    assert batch.labels.dtype == torch.int64
    assert batch.labels.unique().tolist() == [0, 1]
    assert batch.boxes.shape == batch.motion.shape == (5, 5)
    assert batch.motion.dtype == torch.float32


@pytest.mark.parametrize("mode", ["paper", "tracking"])
@pytest.mark.parametrize(
    ("make", "target", "parts"),
    [
        (video, 1, None),
        (several, 0, [(2, 3, 22, 23), (30, 5, 50, 19), (55, 35, 58, 38)]),
        (several, 1, [(2, 3, 22, 23)]),
        (several, 2, [(30, 5, 50, 19)]),
    ],
)
def test_labels_are_the_targets_mask_through_the_window(make, target, parts, mode):
    bank = build(make())
    truth = make().mask(1) if parts is None else mask(*parts)
    batch = draw(sampler(bank, [target], mode), 16)
    steps = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1).reshape(-1, 2)
    windows = patches.window(batch.boxes)
    height, width = truth.shape
    if mode == "paper":
        windows = patches.clipped(windows, torch.tensor([[width, height]] * 16))
    windows = windows.numpy()
    points = patches.to_frame(np.broadcast_to(1.0 * steps, (16, SIZE**2, 2)), windows, SIZE)
    x, y = np.moveaxis(points.round().astype(int), -1, 0)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    expected = inside & truth[y.clip(0, height - 1), x.clip(0, width - 1)]
    agreement = batch.labels.flatten(1).bool().numpy() == expected
    assert agreement.mean(axis=1).min() > 0.95  # they differ along the outline only
    assert expected.any(axis=1).all()


def test_without_augmentation_the_patch_is_the_frame_through_the_window():
    bank = build(video())
    batch = draw(sampler(bank, [2]), 4)
    windows = patches.window(batch.boxes)
    frames, sizes = bank.frames[[2] * 4], bank.sizes[[2] * 4]
    images = patches.crop(frames, windows, SIZE, sizes, bank.means[[2] * 4])
    torch.testing.assert_close(batch.patches[:, :3], normalize(images))
    filled = patches.fill_box(batch.boxes, windows, SIZE)
    torch.testing.assert_close(batch.patches[:, 3:], 2 * filled - 1)


@pytest.mark.parametrize(
    "jitter", [STILL, GENTLE, Augmentation()], ids=["still", "gentle", "usual"]
)
@pytest.mark.parametrize("target", [0, 1, 2])
def test_the_motion_takes_the_box_to_the_true_one(target, jitter):
    bank = build(video())
    batch = draw(sampler(bank, [target], jitter=jitter), 64)
    moved = motion.apply(batch.boxes, batch.motion.double(), 1.0, 1.0, "object")
    overlap = rotated_iou_torch(moved, bank.boxes[target].expand_as(moved))
    assert overlap.min() > 1 - 1e-5
    assert batch.motion[:, 2].abs().max() <= math.sin(math.pi / 4) + 1e-6


def test_a_still_is_seen_through_its_own_box_moved():
    bank = build(several())
    batch = draw(sampler(bank, [1], jitter=Augmentation(strengths=(1.0,))), 600)
    offset = (batch.boxes[:, :2] - bank.boxes[1, :2]) / bank.boxes[1, 2:4].prod().sqrt()
    assert offset.mean(dim=0).abs().max() < 0.02
    torch.testing.assert_close(
        offset.std(dim=0), torch.full((2,), 0.11).double(), rtol=0.05, atol=0
    )


def test_each_sample_draws_one_of_the_strengths():
    bank = build(several())
    boxes = draw(sampler(bank, [1], jitter=Augmentation(strengths=(0.0, 1.0))), 200).boxes
    level = geometry.relabel(bank.boxes[1], geometry.turns_to_level(bank.boxes[1]))
    away = (boxes - level).abs().amax(dim=1)
    still = away < 1e-9
    assert still.double().mean() == pytest.approx(0.5, abs=0.1)
    assert away[~still].min() > 0.05  # pixels, of a box of 20×14


def test_a_video_is_seen_through_the_box_of_the_frame_before():
    bank = build(video())
    batch = draw(sampler(bank, [2], jitter=Augmentation(strengths=(1.0,))), 600)
    offset = (batch.boxes[:, :2] - bank.boxes[1, :2]) / bank.boxes[1, 2:4].prod().sqrt()
    assert offset.mean(dim=0).abs().max() < 0.01
    spread = torch.full((2,), 0.5 * 0.11).double()
    torch.testing.assert_close(offset.std(dim=0), spread, rtol=0.12, atol=0)
    exact = draw(sampler(bank, [2], jitter=STILL), 16)
    level = geometry.relabel(bank.boxes[1], geometry.turns_to_level(bank.boxes[1]))
    torch.testing.assert_close(exact.boxes, level.expand(16, 5))
    after = geometry.nearest_label(bank.boxes[2], level)
    expected = motion.solve(level, after, 1.0, 1.0, "object").float()
    torch.testing.assert_close(exact.motion, expected.expand(16, 5), atol=1e-5, rtol=0)


def test_boxes_are_labelled_as_one_can_see_them():
    """With the other label the picture would be the same, and the scales swapped."""
    batch = draw(sampler(build(video()), [0], jitter=Augmentation(turn=0.6)), 400)
    assert batch.boxes[:, 4].abs().max() <= math.pi / 4 + 1e-9
    longer = (batch.boxes[:, 2] > batch.boxes[:, 3]).double().mean()
    assert 0.5 < longer < 1


def test_paper_mode_is_centred_on_its_own_object():
    bank = build(video())
    batch = draw(sampler(bank, [2], "paper", channels=3, jitter=Augmentation()), 8)
    assert batch.patches.shape == (8, 3, SIZE, SIZE)
    torch.testing.assert_close(batch.boxes, bank.boxes[[2] * 8])
    still = torch.tensor([1.0, 1, 0, 0, 0]).expand(8, 5)
    torch.testing.assert_close(batch.motion, still, atol=1e-6, rtol=0)
    centre, _ = moments(batch.labels)
    assert (centre - (SIZE - 1) / 2).abs().max() < 0.5


def moments(pictures, stretch=None):
    """Centroids ``(B, 2)`` and angles of the longest axes ``(B,)`` of ``(B, S, S)`` pictures."""
    weights = pictures.double()
    weights = weights / weights.sum(dim=(1, 2), keepdim=True)
    steps = torch.arange(SIZE).double()
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    points = points.expand(len(pictures), -1, -1, -1)
    if stretch is not None:
        points = points * stretch[:, None, None]
    centre = torch.einsum("bij,bijk->bk", weights, points)
    away = points - centre[:, None, None]
    second = torch.einsum("bij,bijk,bijl->bkl", weights, away, away)
    return centre, 0.5 * torch.atan2(2 * second[:, 0, 1], second[:, 0, 0] - second[:, 1, 1])


def test_flipped_or_not_the_motion_is_what_the_pictures_show():
    """From the box in the fourth channel to the object in the labels, in the patch itself."""
    bank = build(video())
    batch = draw(sampler(bank, [0], augment=True), 64)
    windows = patches.window(batch.boxes)
    filled = patches.fill_box(batch.boxes, windows, SIZE)
    as_drawn = (batch.patches[:, 3:] - (2 * filled - 1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (batch.patches[:, 3:] - (2 * filled.flip(-1) - 1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (as_drawn | mirrored).all()
    assert 16 < mirrored.sum() < 48
    stretch = (windows[:, 2:] - windows[:, :2]) / SIZE  # frame pixels per patch pixel
    box_centre, box_angle = moments((batch.patches[:, 3] + 1) / 2, stretch)
    centre, angle = moments(batch.labels, stretch)
    unit = batch.boxes[:, 2:4].prod(dim=1).sqrt()[:, None]
    shift = (centre - box_centre) / unit
    torch.testing.assert_close(shift, batch.motion[:, 3:].double(), atol=0.03, rtol=0)
    turn = (2 * (angle - box_angle)).sin() / 2
    torch.testing.assert_close(turn, batch.motion[:, 2].double(), atol=0.04, rtol=0)
    assert batch.motion[:, 2].abs().max() > 0.1
    assert batch.motion[:, 3:].abs().max() > 0.08


def test_the_frame_is_flipped_with_its_labels():
    masks = [rectangle(60, 60, 50, 18, 0.3)]
    still = sequence(masks)
    still.read_frame = lambda t: np.repeat(masks[t][..., None] * np.uint8(255), 3, axis=-1)
    batch = draw(sampler(build(still), augment=True), 32)
    shown = batch.patches[:, 1] > batch.patches[:, 1].mean(dim=(1, 2), keepdim=True)
    assert (shown == batch.labels.bool()).float().mean(dim=(1, 2)).min() > 0.95


def test_colours_change_and_geometry_does_not():
    bank = build(video())
    plain, augmented = (
        draw(sampler(bank, [1], "paper", jitter=Augmentation(), augment=augment), 64)
        for augment in (False, True)
    )
    mirrored = augmented.labels.ne(plain.labels).any(dim=1).any(dim=1)
    torch.testing.assert_close(augmented.labels[~mirrored], plain.labels[~mirrored])
    torch.testing.assert_close(augmented.labels[mirrored], plain.labels[mirrored].flip(-1))
    means = augmented.patches[:, :3].mean(dim=(2, 3))
    assert (means.std(dim=0) > 0.05).all()
    assert (plain.patches[:, :3].mean(dim=(2, 3)).std(dim=0) < 1e-4).all()


def test_all_randomness_comes_from_the_generator():
    source = sampler(build(video(), several()), jitter=Augmentation(), augment=True)
    torch.manual_seed(1)
    first, other = draw(source, seed=3), draw(source, seed=4)
    torch.manual_seed(2)
    again = draw(source, seed=3)
    for name in ("patches", "labels", "boxes", "motion"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.boxes, other.boxes)


def test_targets_are_drawn_by_their_weights():
    bank = build(several())
    batch = draw(sampler(bank, mode="paper", channels=3), 1000)
    found = (batch.boxes[:, None] - bank.boxes).abs().amax(dim=-1) < 1e-9
    share = found.double().mean(dim=0)
    torch.testing.assert_close(share, torch.tensor([0.3, 0.35, 0.35]).double(), atol=0.05, rtol=0)
    only = draw(sampler(bank, [2], mode="paper", channels=3), 16)
    torch.testing.assert_close(only.boxes, bank.boxes[[2] * 16])


def counts(mixed, count, seed):
    """How many samples come from each of the samplers of :func:`mixture`."""
    x = draw(mixed, count, seed).boxes[:, 0]
    return [int(((x - c).abs() < 3).sum()) for c in (30, 70, 110)]


def mixture(shares):
    """Samplers of stills whose objects lie at different places."""
    stills = [build(sequence([rectangle(x, 50, 20, 30, 0)])) for x in (30, 70, 110)]
    return MixedSampler(
        [sampler(b, mode="paper", channels=3) for b in stills[: len(shares)]], shares
    )


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ([3, 1], 32, [24, 8, 0]),
        ([1, 1, 2], 8, [2, 2, 4]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([1], 5, [5, 0, 0]),
    ],
)
def test_whole_shares_are_exact(shares, count, expected):
    mixed = mixture(shares)
    for seed in range(5):
        assert counts(mixed, count, seed) == expected


def test_broken_shares_are_right_on_average():
    mixed = mixture([1, 1, 1])
    found = torch.tensor([counts(mixed, 4, seed) for seed in range(100)])
    assert (found.sum(dim=1) == 4).all()
    assert found.min() == 1
    assert found.max() == 2
    assert (found.double().mean(dim=0) - 4 / 3).abs().max() < 0.2


def test_a_mixture_keeps_samples_together():
    batch = draw(mixture([2, 1]), 12)
    assert len(batch.patches) == len(batch.labels) == len(batch.boxes) == len(batch.motion) == 12
    assert geometry.corners(batch.boxes).shape == (12, 4, 2)


def test_what_does_not_fit_the_device_is_drawn_on_the_host():
    gpu = torch.device("cuda", 1)
    assert home_of(10, CPU, None) == home_of(10, CPU, 5) == CPU
    assert home_of(10, gpu, 10) == gpu
    assert home_of(11, gpu, 10) == CPU
    there = HostSampler(sampler(build(video()), [1], "tracking", augment=True), CPU)
    first, again = (torch.Generator().manual_seed(4) for _ in range(2))
    batches = [there.draw(3, generator) for generator in (first, again, first)]
    assert torch.equal(batches[0].patches, batches[1].patches)
    assert not torch.equal(batches[0].patches, batches[2].patches)


def test_sides_change_by_factors_about_one():
    wild = Augmentation(log_scale=0.8, turn=0, shift=0, strengths=(1.0,))
    bank = build(several())
    batch = draw(sampler(bank, [1], jitter=wild), 2000)
    factors = (batch.boxes[:, 2:4] / bank.boxes[1, 2:4]).sort(dim=1).values  # of either label
    assert (factors > 0).all()
    grown = factors.log().sum(dim=1)
    assert grown.mean().abs() < 0.1
    assert grown.std() == pytest.approx(0.8 * 2**0.5, rel=0.1)


def test_what_is_left_of_broken_shares_goes_where_it_is_missing():
    mixed = mixture([9, 1])
    found = np.array([counts(mixed, 1, seed) for seed in range(100)])
    assert 0.8 < found[:, 0].mean() < 0.98
