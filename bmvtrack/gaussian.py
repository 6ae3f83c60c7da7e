"""Full-covariance Gaussians as a mean and a lower Cholesky factor, batched, in torch.

No factorisation here waits for the device: a matrix that is not positive definite gives NaN, not an
exception. Matrices from outside are checked on entry (:class:`~bmvtrack.prior.MotionPrior`).
"""

from __future__ import annotations

import math

import torch


def cholesky(covariance: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor of ``(..., D, D)`` without a host synchronisation."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    result: torch.Tensor = factor.masked_fill((failed != 0)[..., None, None], math.nan)
    return result


def whiten(value: torch.Tensor, mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """L⁻¹(v − m): a draw of N(m, LLᵀ) in units of the distribution itself.

    Args:
        value: ``(..., D)``.
        mean: ``(..., D)``.
        factor: ``(..., D, D)`` lower triangular L.

    Returns:
        ``(..., D)``; standard normal if ``value`` is a draw.
    """
    difference = (value - mean).unsqueeze(-1)
    result: torch.Tensor = torch.linalg.solve_triangular(factor, difference, upper=False)
    return result.squeeze(-1)


def unwhiten(noise: torch.Tensor, mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """m + L·u, the inverse of :func:`whiten`: a draw if ``noise`` is standard normal."""
    return mean + (factor @ noise.unsqueeze(-1)).squeeze(-1)


def log_density(value: torch.Tensor, mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """log N(v; m, LLᵀ).

    Args:
        value: ``(..., D)``.
        mean: ``(..., D)``.
        factor: ``(..., D, D)`` lower triangular L.

    Returns:
        ``(...)`` in nats.
    """
    white = whiten(value, mean, factor)
    dimension = white.shape[-1]
    return -0.5 * (white.square().sum(-1) + dimension * math.log(2 * math.pi)) - _half_log_det(
        factor
    )


def kl_divergence(
    mean: torch.Tensor, factor: torch.Tensor, other_mean: torch.Tensor, other_factor: torch.Tensor
) -> torch.Tensor:
    """D(N(m₁, L₁L₁ᵀ) ‖ N(m₂, L₂L₂ᵀ)) in closed form, one triangular solve.

    ½(‖L₂⁻¹L₁‖²_F + |L₂⁻¹(m₁ − m₂)|² − D) + log|L₂| − log|L₁|.

    Args:
        mean: ``(..., D)``.
        factor: ``(..., D, D)``.
        other_mean: ``(..., D)``.
        other_factor: ``(..., D, D)``.

    Returns:
        ``(...)`` in nats, at least 0 up to rounding.
    """
    batch = torch.broadcast_shapes(
        mean.shape[:-1], factor.shape[:-2], other_mean.shape[:-1], other_factor.shape[:-2]
    )
    dimension = mean.shape[-1]
    difference = (mean - other_mean).unsqueeze(-1).expand(*batch, dimension, 1)
    first = factor.expand(*batch, dimension, dimension)
    second = other_factor.expand(*batch, dimension, dimension)
    solved: torch.Tensor = torch.linalg.solve_triangular(
        second, torch.cat([first, difference], dim=-1), upper=False
    )
    quadratic = solved.square().sum(dim=(-2, -1)) - dimension
    return 0.5 * quadratic + _half_log_det(second) - _half_log_det(first)


def mahalanobis(
    mean: torch.Tensor,
    covariance: torch.Tensor,
    other_mean: torch.Tensor,
    other_covariance: torch.Tensor,
) -> torch.Tensor:
    """(μ − μ')ᵀ((Σ + Σ')/2)⁻¹(μ − μ'), without a square root (paper Eq. 7).

    Args:
        mean: ``(..., D)``.
        covariance: ``(..., D, D)``.
        other_mean: ``(..., D)``.
        other_covariance: ``(..., D, D)``.

    Returns:
        ``(...)``.
    """
    factor = cholesky((covariance + other_covariance) / 2)
    return whiten(mean, other_mean, factor).square().sum(-1)


def pack_lower(factor: torch.Tensor) -> torch.Tensor:
    """Lower triangle of ``(..., D, D)`` row by row, as ``(..., D(D+1)/2)``."""
    rows, columns = torch.tril_indices(factor.shape[-1], factor.shape[-1], device=factor.device)
    return factor[..., rows, columns]


def unpack_lower(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`pack_lower`: ``(..., D(D+1)/2)`` → ``(..., D, D)``, zero above."""
    dimension = (math.isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    rows, columns = torch.tril_indices(dimension, dimension, device=packed.device)
    factor = packed.new_zeros(*packed.shape[:-1], dimension, dimension)
    factor[..., rows, columns] = packed
    return factor


def _half_log_det(factor: torch.Tensor) -> torch.Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
