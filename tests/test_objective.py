"""What is minimised and reported, and what a mask's probability means by it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import example
from torch.distributions import MultivariateNormal
from torch.nn import functional

from bmvtrack import motion, prior
from bmvtrack.data.batch import Batch
from bmvtrack.losses import balanced_cross_entropy, soft_jaccard_loss
from bmvtrack.models import Bottleneck, Output, Posterior
from bmvtrack.training import PretrainOptions
from bmvtrack.training.objective import averaged, motion_nll, objective, validation_metrics


def terms_of(logits, labels, **arguments):
    bottleneck = Bottleneck(7, prior.named("davis16"), covariance="frame", standardized=True)
    posterior = bottleneck(torch.zeros(len(labels), 7))
    nothing = torch.zeros(len(labels), 7)
    batch = Batch(nothing, labels, nothing, nothing)
    return objective(Output(logits, posterior, nothing), batch, bottleneck, 0.0, 0.0, **arguments)


@pytest.mark.parametrize(("weights", "likeliest"), [("none", 0.125), ("balanced", 0.5)])
def test_where_nothing_can_be_seen_the_best_guess_is_the_share_of_the_object(weights, likeliest):
    """Of the pixels, or half if the classes count alike: there its gradient is 0."""
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[:, 0] = 1  # an eighth
    odds = torch.tensor(likeliest / (1 - likeliest)).log().requires_grad_()
    logits = torch.stack([torch.zeros(()), odds])[None, :, None, None].expand(2, 2, 8, 8)
    terms_of(logits, labels, class_weights=weights)["cross_entropy"].backward()
    assert odds.grad.abs() < 1e-6


def test_without_weights_the_loss_is_the_plain_cross_entropy_and_jaccard():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, generator=generator)
    labels = (torch.rand(2, 8, 8, generator=generator) < 0.2).long()
    total = terms_of(logits, labels, class_weights="none")["total"]
    expected = functional.cross_entropy(logits, labels) + soft_jaccard_loss(logits, labels)
    torch.testing.assert_close(total, expected)


def test_the_paper_balances_classes_and_tracking_does_not():
    assert PretrainOptions(mode="paper").resolved().class_weights == "balanced"
    assert PretrainOptions(mode="tracking").resolved().class_weights == "none"
    chosen = PretrainOptions(mode="tracking", class_weights="balanced").resolved()
    assert chosen.class_weights == "balanced"


@pytest.mark.parametrize("covariance", ["frame", "batch"])
@pytest.mark.parametrize("direction", ["posterior", "prior"])
def test_the_objective_is_the_weighted_sum_of_its_terms(direction, covariance):
    output, batch, bottleneck = example(covariance=covariance)
    terms = objective(output, batch, bottleneck, 5.0, 0.1, direction)
    posterior = bottleneck.to_motion(output.posterior)
    likelihood = MultivariateNormal(posterior.mean, posterior.covariance).log_prob(batch.motion)
    kl = bottleneck.kl_divergence(output.posterior, direction).mean()
    construction = [
        f(output.logits, batch.labels) for f in (balanced_cross_entropy, soft_jaccard_loss)
    ]
    expected = sum(construction) + 5 * kl - 0.1 * likelihood.mean()  # paper Eq. 2 and 3
    torch.testing.assert_close(terms["total"], expected, rtol=1e-4, atol=1e-4)
    without = objective(output, batch, bottleneck, 5.0, 0.0, direction)
    assert "motion_nll" not in without
    torch.testing.assert_close(
        without["total"], expected + 0.1 * likelihood.mean(), rtol=1e-4, atol=1e-4
    )


def test_metrics_of_a_perfect_output():
    output, batch, bottleneck = example()
    output.logits = torch.nn.functional.one_hot(batch.labels, 2).movedim(-1, 1).float()
    latent = (batch.motion - bottleneck.offset) / bottleneck.scale
    output.posterior = Posterior(latent, output.posterior.covariance, output.posterior.factor)
    metrics = validation_metrics(output, batch, bottleneck, with_motion=True)
    assert all(values.shape == (3,) for values in metrics.values())
    torch.testing.assert_close(metrics["mask_iou"], torch.ones(3))
    torch.testing.assert_close(metrics["motion_error"], torch.zeros(3), atol=1e-4, rtol=0)


def test_the_motion_error_is_the_distance_of_centres_in_pixels():
    output, batch, bottleneck = example()
    metrics = validation_metrics(output, batch, bottleneck, with_motion=True)
    mean = bottleneck.to_motion(output.posterior).mean.detach().double().numpy()
    boxes = batch.boxes.numpy()
    predicted = motion.apply(boxes, mean, 1, 1, "object")
    true = motion.apply(boxes, batch.motion.double().numpy(), 1, 1, "object")
    expected = np.hypot(*(predicted - true)[:, :2].T)
    np.testing.assert_allclose(metrics["motion_error"].detach(), expected, rtol=1e-4)


def test_mask_iou_is_of_the_foreground():
    output, batch, bottleneck = example(covariance="batch")
    batch.labels.zero_()
    batch.labels[0, :4], batch.labels[1, :4] = 1, 1
    guess = torch.zeros(3, 8, 8, dtype=torch.int64)
    guess[0, 2:6] = 1  # overlaps by 2 of 6 rows; the second is missed; the third is rightly empty
    output.logits = torch.nn.functional.one_hot(guess, 2).movedim(-1, 1).float()
    metrics = validation_metrics(output, batch, bottleneck, with_motion=False)
    torch.testing.assert_close(metrics["mask_iou"], torch.tensor([2 / 6, 0, 1]))
    assert metrics["kl"].shape == metrics["mahalanobis"].shape == (3,)
    assert metrics.keys() == {"mask_iou", "kl", "mahalanobis"}


def test_averages_are_over_samples():
    parts = [{"a": torch.tensor([1.0, 2, 3]), "b": torch.tensor(1.0)}, {"a": torch.tensor([6.0])}]
    assert averaged(parts) == {"a": 3.0, "b": 1.0}


def test_every_class_but_the_first_is_foreground():
    output, batch, bottleneck = example()
    batch.labels[:], batch.labels[:, :4] = 1, 2
    output.logits = functional.one_hot(3 - batch.labels, 3).movedim(-1, 1).float()
    metrics = validation_metrics(output, batch, bottleneck, with_motion=False)
    torch.testing.assert_close(metrics["mask_iou"], torch.ones(3))


def test_the_divergence_that_is_reported_is_of_the_posterior_from_the_prior():
    output, batch, bottleneck = example()
    metrics = validation_metrics(output, batch, bottleneck, with_motion=False)
    assert torch.equal(metrics["kl"], bottleneck.kl_divergence(output.posterior, "posterior"))


def test_a_motion_that_is_not_known_costs_nothing():
    output, batch, bottleneck = example()
    known = motion_nll(output, batch, bottleneck)
    partly = batch.motion.clone()
    partly[1, 2] = torch.nan
    found = motion_nll(output, replace(batch, motion=partly), bottleneck)
    torch.testing.assert_close(found, known * torch.tensor([1, 0, 1]))


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_half_precision_logits_cost_what_single_ones_do(weights):
    labels = (torch.rand(2, 8, 8) < 0.2).long()
    logits = torch.randn(2, 2, 8, 8).bfloat16()
    found, expected = (terms_of(x, labels, class_weights=weights) for x in (logits, logits.float()))
    torch.testing.assert_close(found["total"], expected["total"])
