"""The multivariational bottleneck in all its variants."""

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as reference_kl

from bmvtrack import gaussian, prior
from bmvtrack.models.bottleneck import VARIABLES, Bottleneck, Posterior, sample_covariance

FEATURES = 12
PAPER = prior.named("paper")
OPTIONS = [
    dict(
        zip(("covariance", "reduction", "reparameterization", "standardized"), values, strict=True)
    )
    for values in itertools.product(
        ("batch", "frame"), ("norm", "mean"), ("affine", "full"), (False, True)
    )
    if values[:2] != ("frame", "mean")  # there is nothing to reduce
]
VARIANTS = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o.values())))


def make(samples=50, fitted=PAPER, seed=0, **options):
    torch.manual_seed(seed)
    return Bottleneck(FEATURES, fitted, samples, **options)


def features(batch=6, seed=1):
    return torch.randn(batch, FEATURES, generator=torch.Generator().manual_seed(seed))


def head_rows(head, x, samples):
    """``(B, 5, S)`` outputs of a head, by hand: variable i is outputs i·S … i·S + S − 1."""
    flat = (x.double() @ head.weight.double().T + head.bias.double()).detach().numpy()
    return np.stack([flat[:, i * samples : (i + 1) * samples] for i in range(VARIABLES)], axis=1)


def distributions(bottleneck, posterior):
    """Posterior and prior in the bottleneck's units, as torch's own, in double precision."""
    q = MultivariateNormal(posterior.mean.double(), posterior.covariance.double())
    p = MultivariateNormal(bottleneck.latent_mean.double(), bottleneck.latent_covariance.double())
    return q, p


@pytest.mark.parametrize("samples", [10, 50])
@VARIANTS
def test_shapes(options, samples):
    bottleneck = make(samples, **options)
    posterior = bottleneck(features(4))
    count = 1 if options["covariance"] == "batch" else 4
    assert posterior.mean.shape == (4, 5)
    assert posterior.covariance.shape == posterior.factor.shape == (count, 5, 5)
    assert bottleneck.draw(posterior).shape == (4, 5, samples)
    assert bottleneck.center(posterior).shape == (4, 5, samples)
    assert bottleneck.kl_divergence(posterior).shape == (4,)
    assert bottleneck.mahalanobis(posterior).shape == (4,)


@pytest.mark.parametrize("samples", [10, 50])
def test_the_mean_is_the_average_over_samples(samples):
    bottleneck, x = make(samples), features()
    expected = head_rows(bottleneck.mean_head, x, samples).mean(axis=-1)
    assert_allclose(bottleneck(x).mean.detach(), expected, atol=1e-6)


@pytest.mark.parametrize("covariance", ["batch", "frame"])
@pytest.mark.parametrize("variable", range(VARIABLES))
def test_row_i_is_variable_i(variable, covariance):
    """What the heads say of one variable touches nothing of the others."""
    samples = 10
    bottleneck, x = make(samples, covariance=covariance), features()
    before = bottleneck(x)
    rows = slice(variable * samples, (variable + 1) * samples)
    with torch.no_grad():
        for head in (bottleneck.mean_head, bottleneck.covariance_head):
            head.bias[rows] += torch.randn(samples)
    after = bottleneck(x)
    changed = [i == variable for i in range(VARIABLES)]
    assert (after.mean != before.mean).all(dim=0).tolist() == changed
    assert (after.mean == before.mean).all(dim=0).tolist() == [not c for c in changed]
    untouched = torch.tensor(
        [[i != variable and j != variable for j in range(5)] for i in range(5)]
    )
    assert torch.equal((after.covariance == before.covariance).all(dim=0), untouched)


def test_frame_covariance_is_numpys_of_each_frame():
    bottleneck, x = make(covariance="frame"), features()
    expected = [np.cov(rows) for rows in head_rows(bottleneck.covariance_head, x, 50)]
    assert_allclose(bottleneck(x).covariance.detach(), expected, atol=3e-6)


@pytest.mark.parametrize("reduction", ["norm", "mean"])
def test_batch_covariance_is_numpys_of_the_reduced_batch(reduction):
    bottleneck, x = make(covariance="batch", reduction=reduction), features()
    rows = head_rows(bottleneck.covariance_head, x, 50)
    reduced = np.sqrt((rows**2).sum(axis=0)) if reduction == "norm" else rows.mean(axis=0)
    assert_allclose(bottleneck(x).covariance[0].detach(), np.cov(reduced), atol=3e-6)


def test_a_frame_repeated_has_as_many_times_the_covariance():
    """Under the norm over the batch; so there is no need to run the encoder 32 times."""
    norm, mean = (make(covariance="batch", reduction=r) for r in ("norm", "mean"))
    x = features(1)
    jitter = norm(x).covariance - sample_covariance(
        torch.from_numpy(np.abs(head_rows(norm.covariance_head, x, 50))).float()
    )
    repeated = x.expand(32, -1)
    expected = 32 * (norm(x).covariance - jitter) + jitter
    torch.testing.assert_close(norm(repeated).covariance, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean(repeated).covariance, mean(x).covariance)


def test_the_factor_is_that_of_the_covariance():
    posterior = make(covariance="frame")(features())
    product = posterior.factor @ posterior.factor.mT
    torch.testing.assert_close(product, posterior.covariance)
    assert (posterior.factor.triu(1) == 0).all()


@VARIANTS
@pytest.mark.parametrize("through", ["kl", "reverse kl", "z", "density"])
def test_gradients_reach_both_heads(options, through):
    """The released code computes the covariance on detached arrays: its Σ' head never trains."""
    bottleneck = make(**options)
    posterior = bottleneck(features())
    if through == "kl":
        loss = bottleneck.kl_divergence(posterior).sum()
    elif through == "reverse kl":
        loss = bottleneck.kl_divergence(posterior, "prior").sum()
    elif through == "z":
        loss = bottleneck.draw(posterior, torch.Generator().manual_seed(0)).square().sum()
    else:
        motion = bottleneck.to_motion(posterior)
        loss = gaussian.log_density(torch.ones(6, 5), motion.mean, motion.factor).sum()
    loss.backward()
    for head in (bottleneck.mean_head, bottleneck.covariance_head):
        for parameter in head.parameters():
            assert torch.isfinite(parameter.grad).all()
            assert (parameter.grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("direction", ["posterior", "prior"])
@pytest.mark.parametrize("detached", [False, True])
def test_kl_drives_the_posterior_to_the_prior(direction, detached):
    """And does not where the covariance is detached, as in the released code."""
    bottleneck, x = make(), torch.ones(8, FEATURES)
    heads = bottleneck.mean_head, bottleneck.covariance_head
    optimizer = torch.optim.Adam([p for head in heads for p in head.parameters()], lr=3e-3)
    start = bottleneck(x).covariance.detach()
    for _ in range(400):
        posterior = bottleneck(x)
        if detached:
            fixed = posterior.covariance.detach()
            posterior = Posterior(posterior.mean, fixed, gaussian.cholesky(fixed))
        optimizer.zero_grad()
        bottleneck.kl_divergence(posterior, direction).mean().backward()
        optimizer.step()
    posterior = bottleneck(x)
    spread = np.outer(PAPER.standard_deviations, PAPER.standard_deviations)
    error = np.abs(posterior.covariance[0].detach().numpy() - PAPER.covariance) / spread
    assert_allclose(posterior.mean.detach(), np.broadcast_to(PAPER.mean, (8, 5)), atol=0.01)
    assert bottleneck.mahalanobis(posterior).max() < 1e-3
    if detached:
        torch.testing.assert_close(posterior.covariance, start)
        assert error.max() > 0.5
    else:
        assert error.max() < 0.05
        assert bottleneck.kl_divergence(posterior, direction).max() < 0.01


def many_draws(reparameterization, standardized=False):
    """A posterior unlike the prior, and 100,000 draws of z: ``(100000, 5)``."""
    bottleneck = make(1000, reparameterization=reparameterization, standardized=standardized)
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(5, 5, generator=generator)
    covariance = (root @ root.mT / 4 + 0.1 * torch.eye(5))[None]
    mean = torch.randn(1, 5, generator=generator).expand(100, 5)
    posterior = Posterior(mean, covariance, gaussian.cholesky(covariance))
    z = bottleneck.draw(posterior, generator)
    return posterior, z.transpose(1, 2).reshape(-1, 5).double()


def assert_covariance(draws, expected):
    spread = expected.diagonal().sqrt()
    error = (draws.T.cov() - expected) / spread.outer(spread)
    assert error.abs().max() < 0.02


@pytest.mark.parametrize("standardized", [False, True])
def test_affine_z_has_the_posteriors_marginals_and_the_priors_correlations(standardized):
    posterior, draws = many_draws("affine", standardized)
    assert (draws.mean(dim=0) - posterior.mean[0]).abs().max() < 0.02
    deviations = posterior.covariance[0].diagonal().sqrt().double()
    sigma = torch.from_numpy(PAPER.covariance / np.outer(*[PAPER.standard_deviations] * 2))
    assert_covariance(draws, sigma * deviations.outer(deviations))


@pytest.mark.parametrize("standardized", [False, True])
def test_full_z_has_the_posteriors_covariance(standardized):
    posterior, draws = many_draws("full", standardized)
    assert (draws.mean(dim=0) - posterior.mean[0]).abs().max() < 0.02
    assert_covariance(draws, posterior.covariance[0].double())


@pytest.mark.parametrize("reparameterization", ["affine", "full"])
def test_the_same_noise_is_carried_as_in_equation_6(reparameterization):
    bottleneck = make(reparameterization=reparameterization, covariance="frame")
    posterior = bottleneck(features())
    noise = torch.randn(6, 50, 5, generator=torch.Generator().manual_seed(9)).double()
    mean, sigma = torch.from_numpy(PAPER.mean), torch.from_numpy(PAPER.covariance)
    epsilon = mean + noise @ torch.linalg.cholesky(sigma).T  # (B, S, 5)
    if reparameterization == "affine":
        a = (posterior.covariance.double().diagonal(dim1=1, dim2=2) / sigma.diagonal()).sqrt()
        b = posterior.mean - a * mean
        expected = a[:, None] * epsilon + b[:, None]
    else:
        carry = posterior.factor.double() @ torch.linalg.inv(torch.linalg.cholesky(sigma))
        expected = posterior.mean[:, None] + (epsilon - mean) @ carry.mT
    result = bottleneck.draw(posterior, torch.Generator().manual_seed(9))
    torch.testing.assert_close(result, expected.mT.float(), rtol=1e-4, atol=1e-4)


def test_draws_depend_on_the_generator_only():
    bottleneck = make()
    posterior = bottleneck(features())
    first, again, other = (
        bottleneck.draw(posterior, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_center_is_the_mean_in_every_sample():
    bottleneck = make()
    posterior = bottleneck(features())
    center = bottleneck.center(posterior)
    assert torch.equal(center, posterior.mean[..., None].expand(-1, -1, 50))


@VARIANTS
def test_kl_is_torchs_in_both_directions(options):
    bottleneck = make(**options)
    posterior = bottleneck(features())
    q, p = distributions(bottleneck, posterior)
    for direction, expected in (("posterior", reference_kl(q, p)), ("prior", reference_kl(p, q))):
        result = bottleneck.kl_divergence(posterior, direction)
        torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-4)


def test_the_default_direction_is_of_the_posterior_from_the_prior():
    bottleneck = make()
    posterior = bottleneck(features())
    expected = bottleneck.kl_divergence(posterior, "posterior")
    assert torch.equal(bottleneck.kl_divergence(posterior), expected)


@pytest.mark.parametrize("name", ["paper", "davis16"])
def test_units_do_not_matter(name):
    """Heads in units of the prior, or in those of motion: the same distances and the same draws."""
    fitted = prior.named(name)
    standardized = make(fitted=fitted, covariance="frame", standardized=True)
    raw = make(fitted=fitted, covariance="frame", standardized=False)
    posterior = standardized(features())
    motion = standardized.to_motion(posterior)
    expected = fitted.mean + fitted.standard_deviations * posterior.mean.detach().numpy()
    assert_allclose(motion.mean.detach(), expected, atol=1e-6)
    spread = np.outer(fitted.standard_deviations, fitted.standard_deviations)
    assert_allclose(
        motion.covariance.detach(), spread * posterior.covariance.detach().numpy(), rtol=1e-4
    )
    torch.testing.assert_close(motion.factor @ motion.factor.mT, motion.covariance)
    for direction in ("posterior", "prior"):
        torch.testing.assert_close(
            standardized.kl_divergence(posterior, direction),
            raw.kl_divergence(motion, direction),
            rtol=1e-3,
            atol=1e-3,
        )
    torch.testing.assert_close(
        standardized.mahalanobis(posterior), raw.mahalanobis(motion), rtol=1e-3, atol=1e-3
    )


def test_raw_units_are_those_of_motion():
    posterior = make()(features())
    motion = make().to_motion(posterior)
    for name in ("mean", "covariance", "factor"):
        torch.testing.assert_close(getattr(motion, name), getattr(posterior, name))


def test_mahalanobis_is_equation_7():
    bottleneck = make(covariance="frame")
    posterior = bottleneck(features())
    q, p = distributions(bottleneck, posterior)
    inverse = torch.linalg.inv((q.covariance_matrix + p.covariance_matrix) / 2)
    difference = q.mean - p.mean
    expected = torch.einsum("bi,bij,bj->b", difference, inverse, difference)
    torch.testing.assert_close(
        bottleneck.mahalanobis(posterior).double(), expected, rtol=1e-4, atol=0
    )


@VARIANTS
def test_under_autocast_only_the_heads_are_in_half_precision(options):
    bottleneck, x = make(**options), features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = bottleneck(x)
        kl = bottleneck.kl_divergence(posterior)
        z = bottleneck.draw(posterior)
    for tensor in (posterior.mean, posterior.covariance, posterior.factor, kl, z):
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()
    product = posterior.factor @ posterior.factor.mT
    torch.testing.assert_close(product, posterior.covariance)  # not rounded to 3 digits
    q, p = distributions(bottleneck, posterior)
    torch.testing.assert_close(kl.double(), reference_kl(q, p), rtol=1e-3, atol=1e-4)


def test_equal_rows_do_not_break_it():
    """Without any spread there is no covariance to factorise, but for a jitter."""
    bottleneck = make(covariance="frame")
    with torch.no_grad():
        bottleneck.covariance_head.weight.zero_()
        bottleneck.covariance_head.bias.zero_()
    posterior = bottleneck(features())
    assert torch.isfinite(posterior.factor).all()
    bottleneck.kl_divergence(posterior).sum().backward()
    assert torch.isfinite(bottleneck.covariance_head.bias.grad).all()


def test_the_prior_is_not_among_the_weights():
    """It is in the configuration; float16 weights would round it."""
    assert all("head" in name for name in make().state_dict())


def test_heads_stay_in_float32_under_autocast():
    bottleneck = Bottleneck(64, prior.named("davis16"), covariance="frame")
    features = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    expected = bottleneck(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = bottleneck(features)
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.covariance, expected.covariance)


@pytest.mark.parametrize("reduction", ["norm", "mean"])
def test_a_head_that_says_nothing_still_has_a_gradient(reduction):
    """The root of zero has none: the norm over the batch must do without."""
    bottleneck = make(covariance="batch", reduction=reduction)
    for parameter in bottleneck.covariance_head.parameters():
        torch.nn.init.zeros_(parameter)
    bottleneck.kl_divergence(bottleneck(features())).sum().backward()
    for parameter in bottleneck.covariance_head.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", ["covariance", "reduction", "reparameterization"])
def test_a_misspelt_variant_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be .* or .*, not 'Frames'"):
        make(**{name: "Frames"})
