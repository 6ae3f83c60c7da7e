"""The construction loss: balanced cross-entropy and soft Jaccard."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmvtrack.losses import (
    balanced_cross_entropy,
    balanced_weights,
    construction,
    soft_jaccard_loss,
)

LOSSES = balanced_cross_entropy, soft_jaccard_loss


def random_case(classes=4, batch=3, size=8, seed=0, present=None):
    """Logits ``(B, C, S, S)`` and labels ``(B, S, S)`` drawn from the classes present."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, size, size, generator=generator)
    chosen = torch.tensor(list(range(classes)) if present is None else present)
    shares = torch.arange(1.0, len(chosen) + 1)
    picks = torch.multinomial(shares, batch * size**2, replacement=True, generator=generator)
    return logits, chosen[picks].reshape(batch, size, size)


def certain(labels, classes, confidence=100.0):
    """Logits that leave no doubt."""
    return confidence * torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


CASES = pytest.mark.parametrize(
    ("classes", "present"), [(2, [0, 1]), (2, [1]), (4, [0, 2, 3]), (66, [0, 7, 65])]
)


@CASES
def test_weights_are_scikit_learns_balanced_ones(classes, present):
    _, labels = random_case(classes, present=present)
    found, numbers = np.unique(labels, return_counts=True)
    expected = np.zeros(classes)
    expected[found] = labels.numel() / (len(found) * numbers)  # compute_class_weight("balanced")
    np.testing.assert_allclose(balanced_weights(labels, classes), expected, rtol=1e-6)


@CASES
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu), "as if cuda"]
)
def test_pixels_are_counted(classes, present, device):
    _, labels = random_case(classes, present=present)
    expected = torch.bincount(labels.flatten(), minlength=classes)
    if device == "as if cuda":
        counts = construction._is_of_class(labels.flatten()[None], classes, dim=0).sum(dim=1)
    else:
        counts = construction.class_counts(labels.to(device), classes).cpu()
    assert torch.equal(counts, expected)


@pytest.mark.gpu
def test_a_gpu_counts_past_the_whole_numbers_of_float32():
    labels = torch.zeros(2**24 + 3, dtype=torch.int64, device="cuda")
    labels[:5] = 1
    assert construction.class_counts(labels, 3).tolist() == [2**24 - 2, 5, 0]
    labels = torch.zeros(2**25 + 1, dtype=torch.int64, device="cuda")
    assert construction.class_counts(labels, 2).tolist() == [2**25 + 1, 0]


def test_every_class_present_weighs_the_same_in_all():
    _, labels = random_case(5, present=[0, 1, 3])
    totals = torch.bincount(labels.flatten(), minlength=5) * balanced_weights(labels, 5)
    expected = torch.tensor([1.0, 1, 0, 1, 0]) * labels.numel() / len(labels.unique())
    torch.testing.assert_close(totals, expected)


@CASES
def test_cross_entropy_is_the_weighted_mean_over_pixels(classes, present):
    logits, labels = random_case(classes, present=present)
    weights = balanced_weights(labels, classes).double().numpy()[labels.numpy()]
    shifted = logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    chosen = np.take_along_axis(log_probabilities, labels.numpy()[:, None], axis=1)[:, 0]
    expected = -(weights * chosen).sum() / weights.sum()
    np.testing.assert_allclose(balanced_cross_entropy(logits, labels), expected, rtol=1e-5)


@CASES
def test_soft_jaccard_is_the_formula(classes, present):
    logits, labels = random_case(classes, present=present)
    exponentials = np.exp(logits.double().numpy())
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    scores = []
    for c in np.unique(labels):
        p, y = probabilities[:, c], (labels == c).numpy()
        scores.append((p * y).sum() / (p + y - p * y).sum())
    np.testing.assert_allclose(soft_jaccard_loss(logits, labels), 1 - np.mean(scores), rtol=1e-5)


@CASES
def test_a_perfect_mask_costs_nothing(classes, present):
    _, labels = random_case(classes, present=present)
    for loss in LOSSES:
        assert loss(certain(labels, classes), labels) == pytest.approx(0, abs=1e-6)


def test_a_perfectly_wrong_mask_costs_all():
    _, labels = random_case(2)
    assert soft_jaccard_loss(certain(1 - labels, 2), labels) == pytest.approx(1, abs=1e-6)


def test_soft_jaccard_of_a_certain_mask_is_the_jaccard_index():
    _, labels = random_case(2, seed=0)
    _, guess = random_case(2, seed=1)
    scores = [
        ((guess == c) & (labels == c)).sum() / ((guess == c) | (labels == c)).sum() for c in (0, 1)
    ]
    result = soft_jaccard_loss(certain(guess, 2), labels)
    assert result == pytest.approx(1 - float(sum(scores)) / 2, abs=1e-5)


def test_soft_jaccard_has_a_gradient_that_lowers_it():
    logits, labels = random_case(3)
    logits.requires_grad_()
    loss = soft_jaccard_loss(logits, labels)
    loss.backward()
    assert (logits.grad != 0).all()
    lower = soft_jaccard_loss(logits.detach() - 20 * logits.grad, labels)
    assert lower < loss.detach() - 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_logits_are_computed_in_single(loss):
    logits, labels = random_case()
    rounded = logits.bfloat16()
    result = loss(rounded, labels)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, loss(rounded.float(), labels))


@settings(max_examples=60)
@given(
    classes=st.integers(2, 5),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_the_loss_is_finite_and_jaccard_in_0_1(classes, scale, seed, data):
    present = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    logits, labels = random_case(classes, 2, 3, seed, present)
    jaccard = soft_jaccard_loss(scale * logits, labels)
    assert -1e-6 <= jaccard <= 1 + 1e-6
    cross_entropy = balanced_cross_entropy(scale * logits, labels)
    assert torch.isfinite(cross_entropy)
    assert cross_entropy >= 0
