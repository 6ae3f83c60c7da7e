"""Colours, and what is put behind objects, by their formulas written step by step."""

import pytest
import torch
from torch.nn import functional

from bmvtrack.data.augmentation import Augmentation, colour_jitter, with_others


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def jittered_in_steps(images, chance, augmentation):
    """Brightness, then contrast around the mean, then saturation around grey, then blur."""
    results = []
    for image, (*colours, whether, amount) in zip(images.double(), chance.T.double(), strict=True):
        brightness, contrast, saturation = (1 + augmentation.colour * (2 * c - 1) for c in colours)
        bright = brightness * image
        contrasted = bright.mean() + contrast * (bright - bright.mean())
        grey = contrasted.mean(dim=0)
        saturated = grey + saturation * (contrasted - grey)
        padded = functional.pad(saturated[None], (1, 1, 1, 1), mode="replicate")[0]
        blurred = padded.unfold(1, 3, 1).unfold(2, 3, 1).mean(dim=(-2, -1))
        share = amount if whether < augmentation.blur else 0.0
        results.append((saturated + share * (blurred - saturated)).clamp(0, 255))
    return torch.stack(results)


@pytest.mark.parametrize("layout", ["own", "part", "channels-last"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 9)])
def test_colours_change_step_by_step(layout, height, width):
    images, chance = 255 * random(12, 4, height, width), random(5, 12, seed=1)
    images = images[:, :3]
    if layout != "part":
        memory = {"own": torch.contiguous_format, "channels-last": torch.channels_last}[layout]
        images = images.contiguous(memory_format=memory)
    before = images.clone()
    augmentation = Augmentation(colour=0.4, blur=0.5)
    result = colour_jitter(images, chance, augmentation)
    expected = jittered_in_steps(images, chance, augmentation)
    torch.testing.assert_close(result, expected.float(), atol=1e-3, rtol=0)
    assert torch.equal(images, before)
    assert {float(result.min()), float(result.max())} == {0.0, 255.0}
    assert 2 <= (chance[3] < 0.5).sum() <= 10


def test_no_change_is_none():
    images = 255 * random(4, 3, 8, 8)
    result = colour_jitter(images, random(5, 4), Augmentation(colour=0, blur=0))
    torch.testing.assert_close(result, images)


def with_others_in_steps(images, masks, chosen, chance, augmentation):
    """The sample before, sampled by torch's own affine grid."""
    results, side = [], images.shape[-1]
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if chosen[i] >= augmentation.distractors + augmentation.backgrounds:
            results.append(image)
            continue
        flip, size, *place = chance[:, i].tolist()
        background = bool(chosen[i] >= augmentation.distractors)
        factor = 0.5 + 0.5 * size if background else 0.8 + 1.2 * size
        reach = (1 - factor) * (1 - 1 / side) if background else 0.8 * factor
        x, y = (reach * (2 * p - 1) for p in place)
        affine = torch.tensor([[factor * (-1 if flip < 0.5 else 1), 0, x], [0, factor, y]])
        layers = torch.cat([images[i - 1], masks[i - 1]])[None]
        grid = functional.affine_grid(affine[None], list(layers.shape), align_corners=False)
        other = functional.grid_sample(layers, grid, align_corners=False)[0]
        share = (torch.ones_like(mask) if background else other[3:]) * (1 - mask)
        results.append((1 - share) * image + share * other[:3])
    return torch.stack(results)


@pytest.mark.parametrize("side", [16, 31])
def test_what_is_put_behind_is_the_sample_before_placed_anew(side):
    smooth = functional.interpolate(random(12, 4, 6, 6), size=side, mode="bilinear")
    images, masks = 255 * smooth[:, :3], smooth[:, 3:]
    arguments = images, masks, random(12, seed=2), random(4, 12, seed=3)
    augmentation = Augmentation(distractors=0.4, backgrounds=0.4)
    result = with_others(*arguments, augmentation)
    torch.testing.assert_close(
        result, with_others_in_steps(*arguments, augmentation), atol=1e-2, rtol=0
    )
