import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bmvtrack import gaussian


def random_gaussians(*batch, seed=0, scale=1.0):
    """Means ``(*batch, 5)`` and covariances ``(*batch, 5, 5)``, float64."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    root = scale * torch.randn(*batch, 5, 5, **options)
    return torch.randn(*batch, 5, **options), root @ root.mT + 0.05 * scale**2 * torch.eye(5)


@pytest.fixture(params=[(), (7,), (2, 3)], ids=str)
def batch(request):
    return request.param


def test_log_density_is_that_of_torch(batch):
    mean, covariance = random_gaussians(*batch)
    value, _ = random_gaussians(*batch, seed=1)
    expected = MultivariateNormal(mean, covariance).log_prob(value)
    result = gaussian.log_density(value, mean, gaussian.cholesky(covariance))
    torch.testing.assert_close(result, expected)


def test_kl_is_that_of_torch(batch):
    first, second = random_gaussians(*batch), random_gaussians(*batch, seed=1)
    expected = kl_divergence(MultivariateNormal(*first), MultivariateNormal(*second))
    factors = [gaussian.cholesky(covariance) for _, covariance in (first, second)]
    result = gaussian.kl_divergence(first[0], factors[0], second[0], factors[1])
    torch.testing.assert_close(result, expected)
    assert (result > 0).all()


def test_one_covariance_serves_a_batch_of_means():
    mean, _ = random_gaussians(6)
    _, covariance = random_gaussians()
    other = random_gaussians(seed=1)
    expected = kl_divergence(MultivariateNormal(mean, covariance), MultivariateNormal(*other))
    factors = gaussian.cholesky(covariance), gaussian.cholesky(other[1])
    result = gaussian.kl_divergence(mean, factors[0], other[0], factors[1])
    torch.testing.assert_close(result, expected)


def test_kl_of_a_gaussian_to_itself_is_zero(batch):
    mean, covariance = random_gaussians(*batch)
    factor = gaussian.cholesky(covariance)
    result = gaussian.kl_divergence(mean, factor, mean, factor)
    torch.testing.assert_close(result, torch.zeros_like(result))


def test_kl_in_single_precision_of_small_covariances():
    first, second = random_gaussians(50, scale=0.05), random_gaussians(50, seed=1, scale=0.05)
    first[0].copy_(second[0] + 0.02)
    expected = kl_divergence(MultivariateNormal(*first), MultivariateNormal(*second))
    tensors = (first[0], gaussian.cholesky(first[1]), second[0], gaussian.cholesky(second[1]))
    result = gaussian.kl_divergence(*(t.float() for t in tensors))
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-4)


def test_whitening_can_be_undone(batch):
    mean, covariance = random_gaussians(*batch)
    value, _ = random_gaussians(*batch, seed=1)
    factor = gaussian.cholesky(covariance)
    white = gaussian.whiten(value, mean, factor)
    torch.testing.assert_close(gaussian.unwhiten(white, mean, factor), value)


def test_unwhitened_noise_has_the_mean_and_the_covariance():
    mean, covariance = random_gaussians()
    noise = torch.randn(100_000, 5, generator=torch.Generator().manual_seed(0)).double()
    draws = gaussian.unwhiten(noise, mean, gaussian.cholesky(covariance))
    spread = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() < 0.02 * spread).all()
    assert ((draws.T.cov() - covariance).abs() < 0.03 * torch.outer(spread, spread)).all()


def test_mahalanobis_is_the_papers_formula(batch):
    (mean, covariance), (other, other_covariance) = (
        random_gaussians(*batch),
        random_gaussians(*batch, seed=1),
    )
    inverse = torch.linalg.inv((covariance + other_covariance) / 2)
    difference = mean - other
    expected = torch.einsum("...i,...ij,...j->...", difference, inverse, difference)
    result = gaussian.mahalanobis(mean, covariance, other, other_covariance)
    torch.testing.assert_close(result, expected)


def test_packed_factors_are_rows_of_the_lower_triangle(batch):
    packed = torch.arange(1.0, 7).expand(*batch, 6)
    factor = gaussian.unpack_lower(packed)
    expected = torch.tensor([[1.0, 0, 0], [2, 3, 0], [4, 5, 6]]).expand(*batch, 3, 3)
    torch.testing.assert_close(factor, expected)
    torch.testing.assert_close(gaussian.pack_lower(factor), packed)


def test_gradients_pass_through_everything():
    mean, covariance = (t.requires_grad_() for t in random_gaussians(3))
    packed = gaussian.pack_lower(gaussian.cholesky(covariance))
    factor = gaussian.unpack_lower(packed)
    other = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    gaussian.kl_divergence(mean, factor, *other).sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())  # d/dm of |m|²/2
    expected = (torch.eye(5) - torch.linalg.inv(covariance.detach())) / 2
    torch.testing.assert_close(covariance.grad, expected)


@pytest.mark.parametrize("diagonal", [[1, 1, -1], [-1, 1, 1], [1, 0, 1], [1, 1, math.nan]], ids=str)
def test_a_matrix_that_is_not_positive_definite_gives_nan_and_spoils_no_other(diagonal):
    bad = torch.tensor(diagonal).diag()
    factor = gaussian.cholesky(torch.stack([torch.eye(3), bad]))
    zero = torch.zeros(3)
    densities = gaussian.log_density(zero, zero, factor)
    np.testing.assert_allclose(densities, [-1.5 * math.log(2 * math.pi), math.nan], rtol=1e-6)
    assert gaussian.mahalanobis(zero, bad, zero, bad).isnan()
