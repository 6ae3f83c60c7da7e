"""What tests do with networks and what comes out of them."""

import json

import torch

from bmvtrack import prior
from bmvtrack.data.batch import Batch
from bmvtrack.models import Bottleneck, Output


def assert_same(loaded, network, tolerance):
    """Same weights and outputs (relative to the largest), and exactly the same prior."""
    for name, value in network.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype
        largest = value.abs().max().item() or 1.0
        torch.testing.assert_close(found, value, rtol=0, atol=tolerance * largest)
    for name in ("latent_mean", "latent_factor", "offset", "scale"):
        assert torch.equal(getattr(loaded.bottleneck, name), getattr(network.bottleneck, name))
    generator = torch.Generator().manual_seed(2)
    size = network.input_size
    x = torch.randn(2, network.input_channels, size, size, generator=generator)
    first, second = loaded(x), network(x)
    for found, expected in (
        (first.logits, second.logits),
        (first.posterior.mean, second.posterior.mean),
        (first.posterior.covariance, second.posterior.covariance),
    ):
        largest = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * largest)


def disturb(network):
    """Make its batch norms seem to have seen something, so that they are not the identity."""
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for values, low, high in (
            (norm.weight.data, 0.5, 1.5),
            (norm.bias.data, -0.2, 0.2),
            (norm.running_mean, -0.2, 0.2),
            (norm.running_var, 0.5, 2.0),
        ):
            values.uniform_(low, high, generator=generator)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def example(count=3, covariance="frame"):
    """An output, its batch and its bottleneck."""
    torch.manual_seed(0)
    bottleneck = Bottleneck(7, prior.named("davis16"), covariance=covariance, standardized=True)
    posterior = bottleneck(torch.randn(count, 7))
    output = Output(torch.randn(count, 2, 8, 8), posterior, torch.zeros(count, 7))
    boxes = torch.tensor([[50.0, 40, 30, 20, 0.3]]).double().expand(count, 5)
    true_motion = torch.tensor([1.05, 0.98, 0.1, 0.05, -0.1]).expand(count, 5)
    labels = torch.randint(2, (count, 8, 8))
    return output, Batch(torch.zeros(count, 4, 8, 8), labels, boxes, true_motion), bottleneck
