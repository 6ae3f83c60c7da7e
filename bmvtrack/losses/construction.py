"""The construction loss of the mask: balanced cross-entropy + soft Jaccard (paper Eq. 3)."""

from __future__ import annotations

import torch
from torch.nn import functional


def balanced_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Class weights "balanced" by the labels themselves: N / (C_present · count_c), 0 if absent.

    Args:
        labels: integer labels of any shape.
        classes: number of classes C.

    Returns:
        ``(C,)`` float32 on the labels' device, without a host synchronisation.
    """
    counts = torch.zeros(classes, device=labels.device).scatter_add_(
        0, labels.flatten(), torch.ones((), device=labels.device).expand(labels.numel())
    )
    present = counts > 0
    return torch.where(present, labels.numel() / (present.sum() * counts.clamp_min(1)), 0.0)


def balanced_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, weighted by :func:`balanced_weights` of the batch.

    Args:
        logits: ``(B, C, H, W)``.
        labels: ``(B, H, W)`` int64.

    Returns:
        A scalar: the weighted mean over pixels.
    """
    weights = balanced_weights(labels, logits.shape[1])
    return functional.cross_entropy(logits.float(), labels, weight=weights)


def soft_jaccard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 − soft Jaccard of the softmax probabilities, averaged over the classes present.

    Soft Jaccard of class c: Σ p_c y_c / Σ (p_c + y_c − p_c y_c), sums over the batch's pixels.

    Args:
        logits: ``(B, C, H, W)``.
        labels: ``(B, H, W)`` int64.

    Returns:
        A scalar in [0, 1].
    """
    probabilities = logits.float().softmax(dim=1)
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    intersection = (probabilities * truth).sum(dim=(0, 2, 3))
    union = (probabilities + truth).sum(dim=(0, 2, 3)) - intersection
    present = truth.sum(dim=(0, 2, 3)) > 0
    jaccard = intersection / union.clamp_min(torch.finfo(torch.float32).tiny)
    return 1 - (jaccard * present).sum() / present.sum()


def construction_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """L_cons = cross-entropy + Jaccard loss (paper Eq. 3); arguments as above."""
    return balanced_cross_entropy(logits, labels) + soft_jaccard_loss(logits, labels)
