"""Normalizing flows at the bottleneck: the baselines of the paper's §5.1.

The two heads give each frame a Gaussian without correlations; a flow, the same for all frames, transforms
it to the posterior. The prior is the factorised version of the one that the paper learns. Planar and
radial flows: Rezende and Mohamed 2015; RealNVP: Dinh et al. 2017; IAF: Kingma et al. 2016. All four come
from the library ``normflows`` (the extra ``flows``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from bmvtrack import gaussian
from bmvtrack.errors import UserError
from bmvtrack.models.bottleneck import (
    VARIABLES,
    Bottleneck,
    CovarianceKind,
    Direction,
    Posterior,
    Reduction,
    Reparameterization,
    definite_covariance,
    sample_covariance,
)
from bmvtrack.prior import MotionPrior

FlowKind = Literal["planar", "radial", "realnvp", "iaf"]
BottleneckKind = Literal["multivariational", FlowKind]
STEPS = 8
"""Layers of each flow."""
_DRAWS = 256  # per frame, for what has no closed form
_HIDDEN = 32  # units of the small networks inside RealNVP and IAF


@dataclass
class FlowPosterior(Posterior):
    """A posterior known by its draws; ``(B, 5)`` mean and ``(B, 5, 5)`` covariance are those of the draws.

    Attributes:
        base_mean: ``(B, 5)`` mean of the Gaussian that the flow starts from.
        base_deviation: ``(B, 5)`` its standard deviations.
        divergence: ``(B,)`` Monte-Carlo estimate of D(q‖p), nats.
    """

    base_mean: torch.Tensor
    base_deviation: torch.Tensor
    divergence: torch.Tensor


class FlowBottleneck(Bottleneck):
    """The bottleneck with a flow in it.

    Args:
        kind: kind of flow.
        features: number of input features.
        prior: N(μ, Σ), of which the flow uses N(μ, diag Σ).
        samples: S, numbers per variable.
        standardized: see :class:`~bmvtrack.models.bottleneck.Bottleneck`.

    Raises:
        UserError: if ``normflows`` is not installed.
    """

    nodes: torch.Tensor

    def __init__(
        self,
        kind: FlowKind,
        features: int,
        prior: MotionPrior,
        samples: int = 50,
        standardized: bool = False,
    ) -> None:
        factorised = replace(prior, covariance=np.diag(np.diag(prior.covariance)))
        super().__init__(features, factorised, samples, "frame", standardized=standardized)
        self.steps = nn.ModuleList(_steps(kind))
        self.register_buffer("nodes", _standard_nodes(_DRAWS), persistent=False)

    def forward(
        self, features: torch.Tensor, generator: torch.Generator | None = None
    ) -> FlowPosterior:
        """Posterior of ``(B, F)`` features, in float32 whatever the surrounding precision.

        Args:
            features: of the frames.
            generator: of the draws from which the moments and KL are estimated. Without one the draws are
                always the same, and the same for all frames, so that posteriors can be compared.
        """
        heads = super().forward(features)
        deviation = heads.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        noise = self.nodes.expand(len(features), -1, -1)
        if generator is not None:
            noise = torch.randn(noise.shape, generator=generator, device=features.device)
        with torch.autocast(features.device.type, enabled=False):
            z, log_density = self.carry(heads.mean, deviation, noise)
            covariance = definite_covariance(z.transpose(1, 2))
            return FlowPosterior(
                z.mean(dim=1),
                covariance,
                gaussian.cholesky(covariance),
                heads.mean,
                deviation,
                (log_density - self._prior_log_density(z)).mean(dim=1),
            )

    def carry(
        self, mean: torch.Tensor, deviation: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pass standard normal noise through base and flow: draws, and log q of each by its Jacobian.

        Args:
            mean: ``(B, 5)`` mean of the base.
            deviation: ``(B, 5)`` standard deviations of the base.
            noise: ``(B, N, 5)``.

        Returns:
            z, ``(B, N, 5)``, and log q(z), ``(B, N)``, nats.
        """
        z = (mean[:, None] + deviation[:, None] * noise).flatten(0, 1)  # (B·N, 5)
        log_density = _standard_log_density(noise) - deviation.log().sum(dim=-1, keepdim=True)
        for step in self.steps:
            z, log_determinant = step(z)
            log_density = log_density - log_determinant.reshape(log_density.shape)
        return z.reshape(noise.shape), log_density

    def draw(self, posterior: Posterior, generator: torch.Generator | None = None) -> torch.Tensor:
        """z, ``(B, 5, S)``."""
        assert isinstance(posterior, FlowPosterior)
        shape = len(posterior.mean), self.samples, VARIABLES
        noise = torch.randn(shape, generator=generator, device=posterior.mean.device)
        with torch.autocast(noise.device.type, enabled=False):
            z, _ = self.carry(posterior.base_mean, posterior.base_deviation, noise)
        return z.transpose(1, 2)

    def kl_divergence(
        self, posterior: Posterior, direction: Direction = "posterior"
    ) -> torch.Tensor:
        """``(B,)`` nats, estimated from draws.

        Raises:
            ValueError: if the direction is D(p‖q): planar and radial flows cannot be inverted.
        """
        assert isinstance(posterior, FlowPosterior)
        if direction == "prior":
            raise ValueError("a flow has D(q‖p) only: direction must be posterior")
        return posterior.divergence

    def _prior_log_density(self, z: torch.Tensor) -> torch.Tensor:
        deviation = self.latent_factor.diagonal()
        return _standard_log_density((z - self.latent_mean) / deviation) - deviation.log().sum()


def build_bottleneck(
    kind: BottleneckKind,
    features: int,
    prior: MotionPrior,
    samples: int,
    covariance: CovarianceKind,
    reduction: Reduction,
    reparameterization: Reparameterization,
    standardized: bool,
) -> Bottleneck:
    """Build a bottleneck by name; arguments as for :class:`~bmvtrack.models.bottleneck.Bottleneck`.

    Raises:
        ValueError: if the name is unknown, or a flow is to have one covariance for the batch.
        UserError: if it is a flow and ``normflows`` is not installed.
    """
    if kind == "multivariational":
        return Bottleneck(
            features, prior, samples, covariance, reduction, reparameterization, standardized
        )
    if kind not in get_args(FlowKind):
        kinds = ", ".join(get_args(BottleneckKind))
        raise ValueError(f"bottleneck must be one of {kinds}, not {kind!r}")
    if covariance != "frame":
        raise ValueError(f"covariance must be frame for the flow {kind}, not {covariance!r}")
    return FlowBottleneck(kind, features, prior, samples, standardized)


def _steps(kind: FlowKind) -> list[nn.Module]:
    try:
        from normflows import flows, nets
    except ImportError as error:
        raise UserError(
            f"the flow {kind} needs the library normflows: pip install 'bmvtrack[flows]'"
        ) from error
    if kind == "planar":
        return [flows.Planar((VARIABLES,)) for _ in range(STEPS)]
    if kind == "radial":
        return [flows.Radial((VARIABLES,)) for _ in range(STEPS)]
    if kind == "realnvp":
        sizes = [VARIABLES, _HIDDEN, VARIABLES]
        alternating = torch.arange(VARIABLES) % 2
        masks = [(alternating if i % 2 else 1 - alternating).float() for i in range(STEPS)]
        return [
            flows.MaskedAffineFlow(
                mask,
                nets.MLP(sizes, init_zeros=True),
                nets.MLP(sizes, init_zeros=True, output_fn="tanh"),  # bounds the scale
            )
            for mask in masks
        ]
    layers: list[nn.Module] = []
    for _ in range(STEPS):
        layers += [
            flows.MaskedAffineAutoregressive(VARIABLES, _HIDDEN),
            flows.Permute(VARIABLES, mode="swap"),
        ]
    return layers


def _standard_log_density(noise: torch.Tensor) -> torch.Tensor:
    """log N(u; 0, I) of ``(..., D)``: ``(...)`` nats."""
    return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(dim=-1)


def _standard_nodes(count: int) -> torch.Tensor:
    """``(count, 5)`` normal draws from a fixed seed, with mean 0 and covariance I to rounding."""
    draws = torch.randn(
        count, VARIABLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    draws = draws - draws.mean(dim=0)
    factor = torch.linalg.cholesky(sample_covariance(draws.T))
    return gaussian.whiten(draws, torch.zeros(VARIABLES, dtype=torch.float64), factor).float()
