"""The construction loss of the mask: balanced cross-entropy + soft Jaccard (paper Eq. 3).

Both terms are computed over the batch as a whole. In a distributed run that is the batch of all ranks, with
equally many pixels on each: classes are counted, and soft Jaccard is summed, over all of them.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from bmvtrack.distributed import all_sum, rank_count


def class_counts(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Number of pixels of each class.

    Args:
        labels: integer labels of any shape.
        classes: number of classes C.

    Returns:
        ``(C,)`` int64 (float32 cannot count past 2²⁴), without a host synchronisation.
    """
    if labels.device.type != "cpu":  # there, additions to one address are serialized
        return _is_of_class(labels.flatten()[None], classes, dim=0).sum(dim=1)
    one = torch.ones((), dtype=torch.int64)
    counts = torch.zeros(classes, dtype=torch.int64)
    return counts.scatter_add_(0, labels.flatten(), one.expand(labels.numel()))


def balanced_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Class weights "balanced" by label frequency: N / (C_present · count_c), 0 if absent.

    Args:
        labels: integer labels of any shape.
        classes: number of classes C.

    Returns:
        ``(C,)`` float32 on the labels' device, without a host synchronisation.
    """
    counts = all_sum(class_counts(labels, classes))
    present = counts > 0
    total = rank_count() * labels.numel()
    return torch.where(present, total / (present.sum() * counts.clamp_min(1)), 0.0)


def balanced_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, weighted by :func:`balanced_weights` of the batch.

    Args:
        logits: ``(B, C, H, W)``.
        labels: ``(B, H, W)`` int64.

    Returns:
        A scalar: the weighted mean over this rank's pixels. The weights of all ranks' pixels sum to
        their number, so the mean over ranks is the weighted mean over the whole batch.
    """
    weights = balanced_weights(labels, logits.shape[1])
    total = functional.cross_entropy(logits.float(), labels, weight=weights, reduction="sum")
    return total / labels.numel()


def soft_jaccard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 − soft Jaccard of the softmax probabilities, averaged over the classes present.

    Soft Jaccard of class c: Σ p_c y_c / Σ (p_c + y_c − p_c y_c), sums over the batch's pixels.

    Args:
        logits: ``(B, C, H, W)``.
        labels: ``(B, H, W)`` int64.

    Returns:
        A scalar in [0, 1], the same on every rank.
    """
    probabilities = logits.float().softmax(dim=1)
    truth = _is_of_class(labels[:, None], logits.shape[1], dim=1)
    sums = [(probabilities * truth).sum(dim=(0, 2, 3)), probabilities.sum(dim=(0, 2, 3))]
    intersection, predicted, true = all_sum(torch.stack([*sums, truth.sum(dim=(0, 2, 3))]))
    union = predicted + true - intersection
    present = true > 0
    jaccard = intersection / union.clamp_min(torch.finfo(torch.float32).tiny)
    loss: torch.Tensor = 1 - (jaccard * present).sum() / present.sum()
    return loss


def _is_of_class(labels: torch.Tensor, classes: int, dim: int) -> torch.Tensor:
    """Boolean one-hot encoding of labels, along a dimension that has one element."""
    shape = [classes if i == dim else 1 for i in range(labels.ndim)]
    return labels == torch.arange(classes, device=labels.device).reshape(shape)
