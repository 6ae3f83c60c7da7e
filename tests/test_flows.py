"""Flows at the bottleneck, and the measure of their collapse."""

import json
import sys

import numpy as np
import pytest
import torch
from rectangles import write_rectangles
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from bmvtrack import prior
from bmvtrack.errors import UserError
from bmvtrack.models import BetaMVAE, FlowBottleneck, ResNetUNet, load_network
from bmvtrack.models.flows import build_bottleneck
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.objective import active_units

PAPER = prior.named("paper")
KINDS = pytest.mark.parametrize("kind", ["planar", "radial", "realnvp", "iaf"])
FEATURES = 12


def make(kind, seed=0, stirred=True, **options):
    """A flow bottleneck; stirred, its layers are not near the identity that some start from."""
    torch.manual_seed(seed)
    bottleneck = FlowBottleneck(kind, FEATURES, PAPER, **options)
    if stirred:
        with torch.no_grad():
            for parameter in bottleneck.steps.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return bottleneck


def features(batch=6, seed=1):
    return torch.randn(batch, FEATURES, generator=torch.Generator().manual_seed(seed))


@KINDS
def test_shapes(kind):
    bottleneck = make(kind, samples=10)
    posterior = bottleneck(features(4))
    assert posterior.mean.shape == posterior.base_mean.shape == (4, 5)
    assert posterior.covariance.shape == posterior.factor.shape == (4, 5, 5)
    assert bottleneck.draw(posterior).shape == bottleneck.center(posterior).shape == (4, 5, 10)
    assert bottleneck.kl_divergence(posterior).shape == (4,)
    assert bottleneck.mahalanobis(posterior).shape == (4,)


@KINDS
def test_the_log_density_is_that_of_the_jacobian(kind):
    """log q(z) = log N(u; 0, I) − log|∂z/∂u|, with the Jacobian by autograd through everything."""
    bottleneck = make(kind).double()
    generator = torch.Generator().manual_seed(2)
    mean, log_deviation, noise = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    deviation = log_deviation.exp()
    _, log_density = bottleneck.carry(mean, deviation, noise[:, None])
    for i in range(2):

        def one(u, i=i):
            return bottleneck.carry(mean[i : i + 1], deviation[i : i + 1], u[None, None])[0][0, 0]

        jacobian = torch.autograd.functional.jacobian(one, noise[i])
        expected = Normal(0, 1).log_prob(noise[i]).sum() - jacobian.slogdet().logabsdet
        torch.testing.assert_close(log_density[i, 0], expected)


def test_without_a_flow_kl_is_that_of_the_gaussians():
    """RealNVP starts as the identity; the fixed draws have a normal's moments (but for 1/256)."""
    bottleneck = make("realnvp", stirred=False)
    posterior = bottleneck(features())
    q = MultivariateNormal(
        posterior.base_mean.double(), posterior.base_deviation.double().square().diag_embed()
    )
    sigma = torch.from_numpy(np.diag(np.diag(PAPER.covariance)))
    expected = kl_divergence(q, MultivariateNormal(torch.from_numpy(PAPER.mean), sigma))
    torch.testing.assert_close(
        bottleneck.kl_divergence(posterior).double(), expected, rtol=5e-3, atol=1e-3
    )
    torch.testing.assert_close(posterior.mean, posterior.base_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        posterior.covariance.double(), q.covariance_matrix, rtol=1e-3, atol=1e-5
    )


@KINDS
def test_moments_are_those_of_many_draws(kind):
    bottleneck = make(kind, samples=50_000)
    with torch.no_grad():
        posterior = bottleneck(features(2))
        draws = bottleneck.draw(posterior, torch.Generator().manual_seed(3))
    deviation = draws.std(dim=-1)
    assert ((draws.mean(dim=-1) - posterior.mean).abs() < 0.2 * deviation).all()
    ratio = posterior.covariance.diagonal(dim1=1, dim2=2).sqrt() / deviation
    assert ((ratio > 0.7) & (ratio < 1.4)).all()


@KINDS
def test_gradients_reach_every_parameter(kind):
    bottleneck = make(kind)
    posterior = bottleneck(features(), torch.Generator().manual_seed(0))
    z = bottleneck.draw(posterior, torch.Generator().manual_seed(1))
    (bottleneck.kl_divergence(posterior).sum() + z.square().sum()).backward()
    for name, parameter in bottleneck.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


@KINDS
def test_kl_drives_it_to_the_factorised_prior(kind):
    bottleneck, generator = make(kind, stirred=False), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(bottleneck.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        bottleneck.kl_divergence(bottleneck(features(8), generator)).mean().backward()
        optimizer.step()
    posterior = bottleneck(features(8))
    assert bottleneck.kl_divergence(posterior).mean() < 0.1
    assert bottleneck.mahalanobis(posterior).max() < 0.1


@KINDS
def test_draws_depend_on_the_generator_and_moments_without_one_on_nothing(kind):
    bottleneck = make(kind)
    seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    means = [bottleneck(features(), generator).mean for generator in (*seeds, None, None)]
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])
    assert torch.equal(means[3], means[4])


def test_only_the_divergence_from_the_prior_is_known():
    bottleneck = make("planar")
    with pytest.raises(ValueError, match=r"D\(q‖p\) only: direction must be posterior"):
        bottleneck.kl_divergence(bottleneck(features()), "prior")


@KINDS
@pytest.mark.parametrize("architecture", [ResNetUNet, BetaMVAE])
def test_saved_networks_are_loaded(tmp_path, kind, architecture):
    torch.manual_seed(0)
    options = {"width": 4, "input_size": 64, "input_channels": 3, "samples": 10}
    network = architecture(PAPER, **options, covariance="frame", bottleneck=kind).eval()
    network.save_weights(tmp_path / "weights", half=False)
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["bottleneck"] == kind
    again = load_network(tmp_path / "weights")
    x = torch.randn(2, 3, 64, 64)
    expected, result = network(x), again(x)
    assert torch.equal(result.logits, expected.logits)
    assert torch.equal(result.posterior.divergence, expected.posterior.divergence)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("data"))


def options(data, out, **changes):
    small = {"width": 4, "input_size": 64, "samples": 10, "steps": 2, "batch_size": 2}
    small |= {"mode": "paper", "validation_share": 0.3, "device": "cpu"}
    return PretrainOptions(out=out, data=data, **small | changes)


@KINDS
def test_it_is_trained_and_its_collapse_measured(data, tmp_path, kind):
    metrics = pretrain(options(data, tmp_path / "run", bottleneck=kind))
    assert all(np.isfinite(value) for value in metrics.values())
    assert {"kl", "mahalanobis", "active_units"} <= metrics.keys()
    assert isinstance(load_network(tmp_path / "run" / "last").bottleneck, FlowBottleneck)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "tracking"}, "--bottleneck iaf is for --mode paper, not tracking"),
        (
            {"covariance": "batch"},
            "--bottleneck iaf has one posterior per frame: omit --covariance",
        ),
        (
            {"kl_direction": "prior"},
            r"--bottleneck iaf supports only D\(q‖p\): omit --kl-direction",
        ),
    ],
)
def test_options_that_mean_nothing_for_a_flow_are_refused(data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        pretrain(options(data, tmp_path / "run", bottleneck="iaf", **changes))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "normflows", None)
    with pytest.raises(
        UserError, match=r"needs the library normflows: pip install 'bmvtrack\[flows\]'"
    ):
        make("planar")


def test_a_name_or_a_covariance_that_cannot_be_is_refused():
    rest = {"reduction": "norm", "reparameterization": "affine", "standardized": False}
    with pytest.raises(
        ValueError, match=r"bottleneck must be one of multivariational, .* not 'glow'"
    ):
        build_bottleneck("glow", FEATURES, PAPER, 10, "frame", **rest)
    with pytest.raises(ValueError, match="covariance must be frame for the flow planar"):
        build_bottleneck("planar", FEATURES, PAPER, 10, "batch", **rest)


@pytest.mark.parametrize("active", range(6))
def test_units_are_active_whose_mean_varies_by_a_tenth_of_the_priors_deviation(active):
    bottleneck = make("planar")
    deviation = bottleneck.latent_covariance.diagonal().sqrt()
    signs = torch.tensor([-1.0, 1.0]).repeat(50)[:, None]  # of variance 100/99
    share = torch.where(torch.arange(5) < active, 0.101, 0.099)
    means = bottleneck.latent_mean + signs * share * deviation
    assert active_units(means, bottleneck) == active


@KINDS
def test_latents_depend_on_the_generator_only(kind):
    bottleneck = make(kind)
    posterior = bottleneck(features())
    first, again, other = (
        bottleneck.draw(posterior, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@KINDS
def test_a_flow_moves_every_variable(kind):
    posterior = make(kind)(features())
    assert ((posterior.mean - posterior.base_mean).abs() > 1e-3).any(dim=0).all()


def test_a_flow_may_speak_in_units_of_the_prior():
    bottleneck = FlowBottleneck("planar", FEATURES, PAPER, standardized=True)
    torch.testing.assert_close(bottleneck.latent_mean, torch.zeros(5))
    torch.testing.assert_close(bottleneck.latent_covariance, torch.eye(5))
    torch.testing.assert_close(bottleneck.offset.double(), torch.from_numpy(PAPER.mean))
