"""What networks are built of: the ways of GPUs are those of the CPU, to rounding."""

from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional

from bmvtrack import prior
from bmvtrack.models import BetaMVAE, ResNetUNet, blocks

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def random(*shape, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.contiguous(memory_format=layout)


def gradients(result, *of):
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape)
    return torch.autograd.grad((result * weights).sum(), of)


@LAYOUTS
def test_maps_are_doubled_by_copying(layout):
    maps = random(2, 5, 3, 4, layout=layout).requires_grad_()
    expected = functional.interpolate(maps, scale_factor=2, mode="nearest")
    result = blocks._repeated(maps)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradients(result, maps), gradients(expected, maps))


@LAYOUTS
@pytest.mark.parametrize("bias", [False, True])
def test_doubling_and_convolving_is_one_transposed_convolution(layout, bias):
    maps = random(2, 5, 3, 4, layout=layout).requires_grad_()
    layer = nn.Conv2d(5, 6, 3, padding=1, bias=bias).double()
    expected = layer(functional.interpolate(maps, scale_factor=2, mode="nearest"))
    result = blocks._convolved_at_once(maps, layer)
    torch.testing.assert_close(result, expected)
    inputs = (maps, *layer.parameters())
    torch.testing.assert_close(gradients(result, *inputs), gradients(expected, *inputs))


@LAYOUTS
@pytest.mark.parametrize("bias", [False, True])
def test_joined_maps_are_convolved_apart_as_together(layout, bias):
    maps = random(2, 3, 8, 7, layout=layout).float().requires_grad_()
    skip = random(2, 4, 16, 14, layout=layout).float()
    layer = nn.Conv2d(7, 5, 3, padding=1, bias=bias)
    together = blocks.joined_and_convolved(maps, skip, layer)
    assert together.requires_grad
    with torch.inference_mode():
        assert blocks._pays_apart(maps)
        apart = blocks.joined_and_convolved(maps, skip, layer)
        small = maps[:, :, :4, :4]
        assert not blocks._pays_apart(small)
        beside = blocks.joined_and_convolved(small, skip[:, :, :8, :8], layer)
    torch.testing.assert_close(apart, together.detach())
    torch.testing.assert_close(beside[:, :, :7, :7], apart[:, :, :7, :7])


def test_the_last_convolutions_of_the_autoencoder_are_its_modules():
    torch.manual_seed(0)
    network = BetaMVAE(prior.named("davis16"), width=4, input_size=64, classes=5).double()
    latents = random(2, 5, 50)
    result = network.decode(latents, None)
    maps = network.decoder(latents.flatten(1))
    expected = network.outc(blocks.doubled_and_convolved(maps, network.decoder.conv1))
    torch.testing.assert_close(result, expected)
    of = list(network.outc.parameters())
    torch.testing.assert_close(gradients(result, *of), gradients(expected, *of))


@pytest.mark.parametrize("kind", [ResNetUNet, BetaMVAE])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_networks_in_half_precision_say_what_they_say_otherwise(kind, device):
    """The ways of GPUs are no further from float32 than those of the CPU."""
    torch.manual_seed(0)
    network = kind(prior.named("davis16"), width=8, input_size=64, input_channels=3).to(
        device, memory_format=torch.channels_last
    )
    patches = random(4, 3, 64, 64, layout=torch.channels_last).float().to(device)
    results = []
    for half, reduced in ((False, False), (True, False), (True, True)):
        network.zero_grad()
        with (
            patch.object(blocks, "_is_reduced", lambda maps, reduced=reduced: reduced),
            torch.autocast(device, torch.bfloat16, half),
        ):
            logits = network(patches, stochastic=False).logits.float()
        logits.square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        results.append((logits.detach(), gradient))
    for exact, interpolated, copied in zip(*results, strict=True):
        error = (copied - exact).norm() / exact.norm()
        assert error < 1.3 * (interpolated - exact).norm() / exact.norm()
        assert error < 0.5
