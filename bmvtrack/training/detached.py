"""The effect of the KL divergence on a batch's posterior, with and without gradients at the Σ' head.

The paper's released code computes the covariance on detached arrays, so its Σ' head never trains. To show
this it is enough to train the bottleneck alone, on the KL divergence alone, with noise as features. The
Mahalanobis distance (paper Eq. 7) does not show it, because the mean converges to the prior's either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bmvtrack.arrays import FloatArray
from bmvtrack.figures import line_style, save_figure, tidy
from bmvtrack.models import Bottleneck, Posterior
from bmvtrack.prior import MotionPrior

FEATURES = 4
_BATCH = 32
_LEARNING_RATE = 1e-2
_EPSILON = 1e-3  # Adam's default 1e-8 amplifies vanishing gradients: the mean oscillates
_RECORDS = 200  # points of a curve
_LIMITS = {"mahalanobis": 1e-4, "error": 0.05}
_LABELS = {
    "mahalanobis": "Mahalanobis distance",
    "error": "largest |Σ'ᵢⱼ − Σᵢⱼ| / σᵢσⱼ",
}


class DetachedBottleneck(Bottleneck):
    """The bottleneck as in the paper's released code: no gradient reaches the Σ' head."""

    def forward(
        self, features: torch.Tensor, generator: torch.Generator | None = None
    ) -> Posterior:
        """See the base class."""
        posterior = super().forward(features, generator)
        return Posterior(posterior.mean, posterior.covariance.detach(), posterior.factor.detach())


@dataclass(frozen=True, eq=False)
class Convergence:
    """How a bottleneck converges to the prior, measured on a held-out batch.

    Attributes:
        steps: ``(N,)`` training steps of the measurements.
        mahalanobis: ``(N,)`` largest Mahalanobis distance in the batch.
        error: ``(N,)`` largest |Σ'ᵢⱼ − Σᵢⱼ|/(σᵢσⱼ).
        covariance: ``(5, 5)`` Σ' at the end.
        kl: KL divergence at the end, mean over the batch, in nats.
    """

    steps: FloatArray
    mahalanobis: FloatArray
    error: FloatArray
    covariance: FloatArray
    kl: float


def converge(kind: type[Bottleneck], prior: MotionPrior, steps: int, seed: int) -> Convergence:
    """Train a bottleneck with ``batch`` covariance on the KL divergence alone; every batch is new noise.

    The optimiser is Adam with a learning rate that falls to 0 along half a cosine.

    Args:
        kind: bottleneck class, with or without gradients at the Σ' head.
        prior: the prior of the KL divergence.
        steps: training steps.
        seed: seed of weights and features.
    """
    torch.manual_seed(seed)
    bottleneck = kind(FEATURES, prior)
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.randn(_BATCH, FEATURES, generator=generator)
    optimizer = torch.optim.Adam(bottleneck.parameters(), lr=_LEARNING_RATE, eps=_EPSILON)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rows = []
    for step in range(1, steps + 1):
        posterior = bottleneck(torch.randn(_BATCH, FEATURES, generator=generator))
        optimizer.zero_grad()
        bottleneck.kl_divergence(posterior).mean().backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // _RECORDS) == 0 or step == steps:
            rows.append((float(step), *_distances(bottleneck, held_out, prior)))
    with torch.no_grad():
        posterior = bottleneck(held_out)
        kl = float(bottleneck.kl_divergence(posterior).mean())
    covariance = posterior.covariance[0].double().numpy()
    recorded, mahalanobis, error = np.array(rows).T
    return Convergence(recorded, mahalanobis, error, covariance, kl)


@torch.no_grad()
def _distances(
    bottleneck: Bottleneck, features: torch.Tensor, prior: MotionPrior
) -> tuple[float, float]:
    posterior = bottleneck(features)
    spread = np.outer(prior.standard_deviations, prior.standard_deviations)
    error = np.abs(posterior.covariance[0].numpy() - prior.covariance) / spread
    return float(bottleneck.mahalanobis(posterior).max()), float(error.max())


def plot_convergence(results: Mapping[str, Convergence], prior: MotionPrior, path: Path) -> None:
    """Write a PNG of the distances over the steps, and of Σ' against Σ entry by entry.

    Args:
        results: by name in the legend.
        prior: the prior of the KL divergence.
        path: PNG to write.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for number, (name, result) in enumerate(results.items()):
        colour, dashes = line_style(number)
        for axes, values in ((left, result.mahalanobis), (middle, result.error)):
            axes.plot(result.steps, values, dashes, color=colour, linewidth=1.2, label=name)
        lower = np.tril_indices(5)
        marks = prior.covariance[lower], result.covariance[lower]
        right.plot(*marks, "ox+"[number], color=colour, markersize=5, fillstyle="none")
    for axes, quantity in ((left, "mahalanobis"), (middle, "error")):
        axes.axhline(_LIMITS[quantity], color="0.5", linewidth=0.8)
        axes.set(xlabel="step", ylabel=_LABELS[quantity], yscale="log")
    _draw_identity(right)
    for axes in (left, middle, right):
        tidy(axes)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    save_figure(figure, path)


def _draw_identity(axes: Axes) -> None:
    axes.axline((0, 0), slope=1, color="0.5", linewidth=0.8, zorder=0)
    axes.set(xlabel="entry of Σ (the prior's)", ylabel="entry of Σ' (the posterior's)")
