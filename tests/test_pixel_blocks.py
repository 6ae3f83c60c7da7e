"""Convolutions of pixels as convolutions of blocks of pixels: equal, with gradients."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from bmvtrack.models.pixel_blocks import closed_in_blocks, opened_in_blocks


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(16, 12), (2, 4)])
def test_a_first_convolution(channels, size):
    torch.manual_seed(0)
    weight, patches = random(6, channels, 7, 7).requires_grad_(), random(2, channels, *size)
    expected = functional.conv2d(patches, weight, stride=2, padding=3)
    found = opened_in_blocks(patches, weight, torch.float64)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    pair = (torch.autograd.grad(result, weight, gradient)[0] for result in (found, expected))
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("channels", [(5, 3), (16, 8, 2), (5, 3, 11, 2)])
def test_last_convolutions_of_doubled_maps(channels, biased):
    torch.manual_seed(0)
    weights = [random(after, before, 3, 3).requires_grad_() for before, after in pairwise(channels)]
    bias = random(channels[-1]).requires_grad_() if biased else None
    maps = random(2, channels[0], 6, 4).requires_grad_()
    expected = functional.interpolate(maps, scale_factor=2, mode="nearest")
    for weight in weights:
        expected = functional.conv2d(expected, weight, padding=1)
    if bias is not None:
        expected = expected + bias[:, None, None]
    found = closed_in_blocks(maps, weights, bias)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    leaves = [maps, *weights, *([bias] if biased else [])]
    for one, other in zip(
        torch.autograd.grad(found, leaves, gradient),
        torch.autograd.grad(expected, leaves, gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
