"""The multivariational bottleneck: features → full-covariance posterior over the motion → latents.

Paper §4.2–4.3, Figure 4 and Eq. 6. Two linear heads give 5×S numbers per frame, S samples per variable;
variable i is row i everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from bmvtrack import gaussian
from bmvtrack.distributed import all_sum, rank_count
from bmvtrack.prior import MotionPrior

CovarianceKind = Literal["batch", "frame"]
Reduction = Literal["norm", "mean"]
Reparameterization = Literal["affine", "full"]
Direction = Literal["posterior", "prior"]
"""Of the KL divergence: D(q‖p), paper Eq. 2, or D(p‖q), its Algorithm 1."""
VARIABLES = 5
_JITTER = 1e-6


@dataclass  # not frozen: Fabric rebuilds it when it converts the precision of outputs
class Posterior:
    """N(μ', Σ') in the bottleneck's own units; :meth:`Bottleneck.to_motion` converts to those of motion.

    Attributes:
        mean: ``(B, 5)``.
        covariance: ``(B, 5, 5)``, or ``(1, 5, 5)`` if the batch shares one covariance.
        factor: its lower Cholesky factor, of the same shape.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    factor: torch.Tensor


class Bottleneck(nn.Module):
    """Posterior and reparameterised latents from features.

    Args:
        features: number of input features.
        prior: N(μ, Σ) that the KL term pulls towards and that the noise ε is drawn from.
        samples: S, numbers per variable (the published weights: 50; the paper's text: 10).
        covariance: ``batch`` (the paper): the covariance head's output is reduced over the batch (that of
            all processes, in a distributed run), and its sample covariance over S serves the whole batch.
            ``frame``: the sample covariance of each frame's own 5×S.
        reduction: over the batch, for ``batch``: ``norm`` (the paper's text) or ``mean`` (its
            code). Under ``norm``, a frame repeated B times has B times the covariance of one frame.
        reparameterization: ``affine`` (paper Eq. 6: the posterior's marginals with the prior's
            correlations) or ``full`` (the posterior's covariance itself).
        standardized: the heads' output is in units of the prior's standard deviations around its mean.
            Rows are then numbers of order one whatever the units of motion.

    Raises:
        ValueError: if covariance, reduction or reparameterization is none of these.
    """

    latent_mean: torch.Tensor
    latent_covariance: torch.Tensor
    latent_factor: torch.Tensor
    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        features: int,
        prior: MotionPrior,
        samples: int = 50,
        covariance: CovarianceKind = "batch",
        reduction: Reduction = "norm",
        reparameterization: Reparameterization = "affine",
        standardized: bool = False,
    ) -> None:
        super().__init__()
        for name, value, kind in (
            ("covariance", covariance, CovarianceKind),
            ("reduction", reduction, Reduction),
            ("reparameterization", reparameterization, Reparameterization),
        ):
            if value not in get_args(kind):
                raise ValueError(f"{name} must be {' or '.join(get_args(kind))}, not {value!r}")
        self.samples = samples
        self.covariance_kind = covariance
        self.reduction = reduction
        self.reparameterization = reparameterization
        self.mean_head = nn.Linear(features, VARIABLES * samples)
        self.covariance_head = nn.Linear(features, VARIABLES * samples)
        mean, sigma = torch.tensor(prior.mean), torch.tensor(prior.covariance)
        offset, scale = torch.zeros_like(mean), torch.ones_like(mean)
        if standardized:
            offset, scale = mean, sigma.diagonal().sqrt()
        latent_covariance = sigma / scale.outer(scale)
        for name, value in {
            "offset": offset,
            "scale": scale,
            "latent_mean": (mean - offset) / scale,
            "latent_covariance": latent_covariance,
            "latent_factor": torch.linalg.cholesky(latent_covariance),
        }.items():
            self.register_buffer(name, value.float(), persistent=False)

    def forward(
        self, features: torch.Tensor, generator: torch.Generator | None = None
    ) -> Posterior:
        """Posterior of ``(B, F)`` features, in float32 whatever the surrounding precision.

        Args:
            features: of the frames.
            generator: for posteriors that are known only through draws (:mod:`bmvtrack.models.flows`);
                not used here.
        """
        shape = VARIABLES, self.samples
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            rows = self.mean_head(features).unflatten(-1, shape)  # (B, 5, S)
            spread = self.covariance_head(features).unflatten(-1, shape)
            if self.covariance_kind == "batch":
                spread = self._reduce(spread)[None]  # (1, 5, S)
            covariance = definite_covariance(spread)
            return Posterior(rows.mean(dim=-1), covariance, gaussian.cholesky(covariance))

    def draw(self, posterior: Posterior, generator: torch.Generator | None = None) -> torch.Tensor:
        """z, ``(B, 5, S)``: ε ~ N(μ, Σ), transformed from the prior to the posterior (paper Eq. 6)."""
        batch = len(posterior.mean)
        noise = torch.randn(
            batch, self.samples, VARIABLES, generator=generator, device=posterior.mean.device
        )
        epsilon = gaussian.unwhiten(noise, self.latent_mean, self.latent_factor)  # (B, S, 5)
        if self.reparameterization == "affine":
            # a_i = σ'_i / σ_i, b_i = μ'_i − a_i μ_i
            ratio = (
                posterior.covariance.diagonal(dim1=-2, dim2=-1)
                / self.latent_covariance.diagonal(dim1=-2, dim2=-1)
            ).sqrt()[:, None]  # (B or 1, 1, 5)
            z = ratio * (epsilon - self.latent_mean) + posterior.mean[:, None]
        else:
            # z = μ' + L'L⁻¹(ε − μ), and L⁻¹(ε − μ) is the noise that ε was made from
            z = gaussian.unwhiten(noise, posterior.mean[:, None], posterior.factor[:, None])
        return z.transpose(1, 2)

    def center(self, posterior: Posterior) -> torch.Tensor:
        """z without noise (ε = μ), ``(B, 5, S)``: the posterior's mean in every sample."""
        return posterior.mean[..., None].expand(-1, -1, self.samples)

    def to_motion(self, posterior: Posterior) -> Posterior:
        """The posterior in units of the motion parameters."""
        return Posterior(
            self.offset + self.scale * posterior.mean,
            self.scale[:, None] * posterior.covariance * self.scale,
            self.scale[:, None] * posterior.factor,
        )

    def kl_divergence(
        self, posterior: Posterior, direction: Direction = "posterior"
    ) -> torch.Tensor:
        """``(B,)`` nats. ``posterior``: D(q‖p), paper Eq. 2. ``prior``: D(p‖q), its Algorithm 1."""
        q = posterior.mean, posterior.factor
        p = self.latent_mean, self.latent_factor
        if direction == "posterior":
            return gaussian.kl_divergence(*q, *p)
        return gaussian.kl_divergence(*p, *q)

    def mahalanobis(self, posterior: Posterior) -> torch.Tensor:
        """``(B,)`` distance to the prior, paper Eq. 7."""
        return gaussian.mahalanobis(
            posterior.mean, posterior.covariance, self.latent_mean, self.latent_covariance
        )

    def _reduce(self, spread: torch.Tensor) -> torch.Tensor:
        """``(B, 5, S)`` → ``(5, S)`` over the batch of all ranks, which has equal size on each."""
        if self.reduction == "norm":
            squares = all_sum(spread.square().sum(dim=0))
            # The root of zero has no gradient; clamped, it has that of the norm: zero.
            return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        return all_sum(spread.sum(dim=0)) / (rank_count() * len(spread))


def sample_covariance(rows: torch.Tensor) -> torch.Tensor:
    """Unbiased covariance between the rows of ``(..., V, S)``, over S: ``(..., V, V)``."""
    centred = rows - rows.mean(dim=-1, keepdim=True)
    return centred @ centred.transpose(-1, -2) / (rows.shape[-1] - 1)


def definite_covariance(rows: torch.Tensor) -> torch.Tensor:
    """:func:`sample_covariance`, which may be singular, with a little more variance: it has a factor."""
    return sample_covariance(rows) + _JITTER * torch.eye(rows.shape[-2], device=rows.device)
