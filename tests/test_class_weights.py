"""What a mask's probability means: of every pixel, or of classes that count alike."""

import pytest
import torch
from torch.nn import functional

from bmvtrack import prior
from bmvtrack.data.samples import Batch
from bmvtrack.losses import soft_jaccard_loss
from bmvtrack.models import Bottleneck, Output
from bmvtrack.training import PretrainOptions
from bmvtrack.training.objective import objective


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
