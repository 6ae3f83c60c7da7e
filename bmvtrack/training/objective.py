"""Training objective and metrics: L = L_cons + β·KL (paper Eq. 2–3) + λ·NLL of the motion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch.nn import functional

from bmvtrack import gaussian, motion
from bmvtrack.data.batch import Batch
from bmvtrack.losses import balanced_cross_entropy, soft_jaccard_loss
from bmvtrack.models import Bottleneck, Output
from bmvtrack.models.bottleneck import Direction

ClassWeights = Literal["balanced", "none"]
"""Weighting of the cross-entropy: equal weight for every class, or for every pixel."""
_ACTIVE = 0.01


def objective(
    output: Output,
    batch: Batch,
    bottleneck: Bottleneck,
    beta: float,
    likelihood: float,
    kl_direction: Direction = "posterior",
    class_weights: ClassWeights = "balanced",
) -> dict[str, torch.Tensor]:
    """The loss (``total``) and its terms, each a scalar tensor.

    Args:
        output: the network's output.
        batch: the batch that it was computed from.
        bottleneck: the network's bottleneck.
        beta: weight of the KL divergence.
        likelihood: weight of the negative log-likelihood of the true motion; 0 leaves the term out.
        kl_direction: see :meth:`~bmvtrack.models.bottleneck.Bottleneck.kl_divergence`.
        class_weights: weighting of the cross-entropy.
    """
    balanced = class_weights == "balanced"
    cross_entropy = balanced_cross_entropy if balanced else functional.cross_entropy
    terms = {
        "cross_entropy": cross_entropy(output.logits.float(), batch.labels),
        "jaccard": soft_jaccard_loss(output.logits, batch.labels),
        "kl": bottleneck.kl_divergence(output.posterior, kl_direction).mean(),
    }
    terms["total"] = terms["cross_entropy"] + terms["jaccard"] + beta * terms["kl"]
    if likelihood:
        terms["motion_nll"] = motion_nll(output, batch, bottleneck).mean()
        terms["total"] = terms["total"] + likelihood * terms["motion_nll"]
    return terms


def motion_nll(output: Output, batch: Batch, bottleneck: Bottleneck) -> torch.Tensor:
    """−log N(true motion; posterior), ``(B,)`` in nats, in units of the motion parameters.

    It is 0, without a gradient, where the true motion is NaN.
    """
    posterior = bottleneck.to_motion(output.posterior)
    known = batch.motion.isfinite().all(dim=-1)
    truth = torch.where(known[:, None], batch.motion, posterior.mean.detach())
    density = gaussian.log_density(truth, posterior.mean, posterior.factor)
    return torch.where(known, -density, 0.0)


def validation_metrics(
    output: Output, batch: Batch, bottleneck: Bottleneck, with_motion: bool
) -> dict[str, torch.Tensor]:
    """Metrics of each sample, ``(B,)`` each: mask IoU, KL, Mahalanobis distance, NLL and error of the motion.

    ``motion_error`` is the distance between the true centre and the centre of the box moved by the
    posterior's mean, in pixels of the frames as trained on.
    """
    predicted, truth = output.logits.argmax(dim=1) > 0, batch.labels > 0
    union = (predicted | truth).sum(dim=(1, 2))
    intersection = (predicted & truth).sum(dim=(1, 2))
    count = len(batch.labels)
    metrics = {
        "mask_iou": torch.where(union > 0, intersection / union.clamp_min(1), 1.0),
        "kl": bottleneck.kl_divergence(output.posterior).expand(count),
        "mahalanobis": bottleneck.mahalanobis(output.posterior).expand(count),
    }
    if with_motion:
        mean = bottleneck.to_motion(output.posterior).mean.to(batch.boxes)
        moved = motion.apply(batch.boxes, mean, 1.0, 1.0, "object")
        true = motion.apply(batch.boxes, batch.motion.to(batch.boxes), 1.0, 1.0, "object")
        metrics["motion_nll"] = motion_nll(output, batch, bottleneck)
        metrics["motion_error"] = (moved - true)[:, :2].norm(dim=-1).float()
    return metrics


def active_units(means: torch.Tensor, bottleneck: Bottleneck) -> torch.Tensor:
    """The number of active latent variables: a scalar tensor, 0 to 5.

    Variable i is active if the variance of its posterior mean over the data exceeds 0.01 of its prior
    variance (Burda et al. 2016, §5.2, whose prior variance is 1). If the posterior has collapsed, none is.

    Args:
        means: ``(N, 5)`` posterior means of N ≥ 2 frames.
        bottleneck: the bottleneck that they come from.
    """
    variance = means.var(dim=0) / bottleneck.latent_covariance.diagonal()
    return (variance > _ACTIVE).sum()


def averaged(parts: Iterable[dict[str, torch.Tensor]]) -> dict[str, float]:
    """The mean of each metric over all samples of several batches."""
    collected: dict[str, list[torch.Tensor]] = {}
    for part in parts:
        for name, values in part.items():
            collected.setdefault(name, []).append(values.float().reshape(-1))
    return {name: float(torch.cat(values).mean()) for name, values in collected.items()}
