"""Losses of pretraining; the KL divergence is the bottleneck's, in closed form."""

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
