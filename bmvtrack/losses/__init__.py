"""Losses of pretraining, except the KL divergence, which the bottleneck computes in closed form."""

from bmvtrack.losses.construction import (
    balanced_cross_entropy,
    balanced_weights,
    soft_jaccard_loss,
)

__all__ = [
    "balanced_cross_entropy",
    "balanced_weights",
    "soft_jaccard_loss",
]
