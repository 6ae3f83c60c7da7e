"""What tests do with saved networks."""

import json

import torch


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


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
