"""Stills that are shown whole in training, as saliency is evaluated."""

import dataclasses

import numpy as np
import pytest
import torch
from banks import SIZE, build, draw, mask, sequence, several, video
from hypothesis import given
from hypothesis import strategies as st
from networks import example
from rectangles import write_rectangles
from runs import train

from bmvtrack import prior
from bmvtrack.data import patches
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.samples import Sampler
from bmvtrack.errors import UserError
from bmvtrack.models import ResNetUNet
from bmvtrack.segmentation.views import view_whole
from bmvtrack.training import PretrainOptions
from bmvtrack.training.objective import objective

WHOLE = Augmentation(whole_images=1, colour=0, blur=0)


def sampler(bank, jitter=WHOLE, augment=True):
    targets = torch.arange(len(bank))
    return Sampler(bank, targets, SIZE, 4, "tracking", jitter, augment, templates=True)


@given(st.floats(60, 2000), st.floats(0.4, 2.5))
def test_the_window_of_its_box_is_the_image(width, ratio):
    box = patches.box_of_whole(np.array([width, width * ratio]))
    expected = [-0.5, -0.5, width - 0.5, width * ratio - 0.5]
    np.testing.assert_allclose(patches.window(box), expected, atol=1e-9 * width)


def test_a_still_is_shown_as_saliency_is_evaluated():
    still = several()
    network = ResNetUNet(prior.named("davis16"), width=4, input_size=SIZE)
    view = view_whole(network, [still.frame(0)], [still.mask(0)])
    batch = draw(sampler(build(still)), 16)
    labels = torch.stack([view.true[0], view.true[0].flip(-1)]).long()
    inputs = torch.stack([view.inputs[0], view.inputs[0].flip(-1)])
    mirrored = (batch.labels != labels[0]).any(dim=(1, 2)).long()
    assert set(mirrored.tolist()) == {0, 1}
    assert torch.equal(batch.labels, labels[mirrored])  # every object, whichever was drawn
    torch.testing.assert_close(batch.patches, inputs[mirrored], atol=1e-4, rtol=0)
    assert torch.equal(batch.template, batch.patches)
    assert batch.motion.isnan().all()


def test_nothing_is_put_behind_what_is_shown_whole():
    bank = build(several(), sequence([mask((4, 4, 40, 30))], colours=(90, 10, 20)))
    crowded = dataclasses.replace(WHOLE, distractors=0.5, backgrounds=0.5)
    colours = draw(sampler(bank, crowded), 16).patches[:, :3].flatten(2)
    assert colours.amax(dim=-1).sub(colours.amin(dim=-1)).max() < 1e-4  # of one image each


def test_a_share_of_stills_and_no_video_is_shown_whole():
    batch = draw(sampler(build(several()), dataclasses.replace(WHOLE, whole_images=0.3)), 500)
    whole = batch.motion.isnan().all(dim=1)
    assert 0.2 < whole.float().mean() < 0.4
    assert batch.motion[~whole].isfinite().all()
    assert (batch.template[~whole] != batch.patches[~whole]).any()
    assert draw(sampler(build(video())), 16).motion.isfinite().all()


def test_none_is_in_validation():
    assert draw(sampler(build(several()), augment=False), 16).motion.isfinite().all()


def test_where_there_is_no_motion_nothing_is_learned_of_it():
    output, batch, bottleneck = example(4)
    missing = torch.tensor([False, True, False, True])[:, None]
    partly = dataclasses.replace(batch, motion=torch.where(missing, torch.nan, batch.motion))
    known = objective(output, batch, bottleneck, 0.0, 0.1)
    nll = objective(output, partly, bottleneck, 0.0, 0.1)["motion_nll"]
    (gradient,) = torch.autograd.grad(nll, output.posterior.mean, retain_graph=True)
    (full,) = torch.autograd.grad(known["motion_nll"], output.posterior.mean)
    torch.testing.assert_close(gradient, torch.where(missing, 0.0, full))


def test_training_with_whole_images(tmp_path):
    data = write_rectangles(tmp_path / "data")
    small = {"width": 4, "input_size": 64, "samples": 10, "steps": 6, "batch_size": 4}
    options = PretrainOptions(
        out=tmp_path / "run", data=data, **small, validation_share=0.3, device="cpu"
    )
    metrics, _ = train(options, whole_images=0.5, template=True)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"whole_images": 1.5}, r"--whole-images must lie in \[0, 1\], not 1.5"),
        ({"whole_images": 0.5, "mode": "paper"}, "are for --mode tracking"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        PretrainOptions(**wrong).resolved()
