"""βMVUnet, the second of the paper's two networks: a U-Net whose deepest map is the bottleneck.

Paper §4 and its released weights, whose submodule names are used here. The skip connections bypass the
bottleneck; the latents make the map that the decoder starts from.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from bmvtrack.models.base import Encoding, MultivariationalNetwork, check_sizes
from bmvtrack.models.blocks import Layers, initialize
from bmvtrack.models.bottleneck import (
    VARIABLES,
    CovarianceKind,
    Reduction,
    Reparameterization,
)
from bmvtrack.models.flows import BottleneckKind, build_bottleneck
from bmvtrack.models.widening import Cells
from bmvtrack.prior import MotionPrior

Alignment = Literal["resize", "padded"]
_STRIDE = 16
_GRID = 8  # side of the map that the latents become
_SMALLEST: dict[Alignment, int] = {"resize": 64, "padded": _STRIDE * _GRID}


class BetaMVUNet(MultivariationalNetwork):
    """The paper's β-multivariational U-Net; the defaults are the paper's: 316,440,374 parameters.

    Args:
        prior: of the motion.
        width: channels of the first stage; the published weights have 64.
        input_size: side of the square patch in pixels, a multiple of 16, at least 64 (128 if
            ``alignment`` is ``padded``). The layer ``flat`` grows with its square.
        input_channels: 3 (RGB) or 4 (RGB and the filled box).
        classes: output classes including background.
        samples: S; for this and the next four, see :class:`~bmvtrack.models.bottleneck.Bottleneck`.
        covariance: ``batch`` or ``frame``.
        reduction: ``norm`` or ``mean``.
        reparameterization: ``affine`` or ``full``.
        standardized: heads in units of the prior.
        bottleneck: ``multivariational``, or one of the flows of :mod:`bmvtrack.models.flows` (with
            covariance ``frame``; reduction and reparameterization are not used).
        alignment: how the 8×8 map of the latents is matched to the deepest skip connection, whose side is
            an 8th of the input's. ``resize``: the map is resized to half of that, which ``up1``
            doubles. ``padded``, as the published weights were trained: ``up1`` makes it 16×16, and it is
            padded with zeros, so that the latents reach only the middle of the patch.

    Raises:
        ValueError: if a size or the bottleneck is invalid.
    """

    def __init__(
        self,
        prior: MotionPrior,
        width: int = 64,
        input_size: int = 256,
        input_channels: int = 3,
        classes: int = 66,
        samples: int = 50,
        covariance: CovarianceKind = "batch",
        reduction: Reduction = "norm",
        reparameterization: Reparameterization = "affine",
        standardized: bool = False,
        bottleneck: BottleneckKind = "multivariational",
        alignment: Alignment = "resize",
    ) -> None:
        super().__init__()
        if alignment not in _SMALLEST:
            raise ValueError(f"alignment must be resize or padded, not {alignment!r}")
        if input_size % _STRIDE or input_size < _SMALLEST[alignment]:
            raise ValueError(
                f"input_size must be a multiple of {_STRIDE} and at least {_SMALLEST[alignment]} "
                f"(alignment {alignment}), not {input_size}"
            )
        check_sizes(input_channels, classes, width, samples)
        self.input_size, self.input_channels, self.classes = input_size, input_channels, classes
        self.alignment = alignment
        self.feature_count = 16 * width
        self.inc = _double_convolution(input_channels, width)
        self.down1 = _down(width, 2 * width)
        self.down2 = _down(2 * width, 4 * width)
        self.down3 = _down(4 * width, 8 * width)
        self.down4 = _down(8 * width, 16 * width)
        self.flat = nn.Linear(16 * width * (input_size // _STRIDE) ** 2, self.feature_count)
        self.bottleneck = build_bottleneck(
            bottleneck,
            self.feature_count,
            prior,
            samples,
            covariance,
            reduction,
            reparameterization,
            standardized,
        )
        self.z_dim = nn.Linear(VARIABLES * samples, 16 * width * _GRID**2)
        self.up1 = _Up(16 * width, 8 * width)
        self.up2 = _Up(8 * width, 4 * width)
        self.up3 = _Up(4 * width, 2 * width)
        self.up4 = _Up(2 * width, width)
        self.outc = nn.Sequential(OrderedDict(conv=nn.Conv2d(width, classes, 1)))
        self.apply(initialize)

    @property
    def cells(self) -> Cells:
        """See the base class."""
        latents = 0, _GRID**2
        return {
            "flat.weight": (1, (self.input_size // _STRIDE) ** 2),
            "z_dim.weight": latents,
            "z_dim.bias": latents,
        }

    def resized_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See the base class. The weights of ``flat`` are resized with the deepest map: each is shared among
        the cells that one cell became. For a map whose cells are merely repeated the output is the same.
        """
        name = "flat.weight"
        features, inputs = state[name].shape
        cells = inputs // features  # of its own width, which may be another one
        before, after = math.isqrt(cells), self.input_size // _STRIDE
        if before == after or before**2 != cells:  # no such network: loading rejects it
            return state
        grid = state[name].unflatten(1, (-1, before, before))
        resized = functional.interpolate(grid, size=after, mode="area") * (before / after) ** 2
        return state | {name: resized.flatten(1)}

    def encode(self, patches: torch.Tensor) -> Encoding:
        """See the base class. Skips: the four maps from stride 8 to stride 1."""
        maps = [self.inc(patches)]  # (B, w, S, S)
        for down in (self.down1, self.down2, self.down3):
            maps.append(down(maps[-1]))
        deepest = self.down4(maps[-1])  # (B, 16w, S/16, S/16)
        return Encoding(self.flat(deepest.flatten(1)), tuple(reversed(maps)))

    def decode(self, latents: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """See the base class."""
        x = self.z_dim(latents.flatten(1)).unflatten(1, (-1, _GRID, _GRID))  # (B, 16w, 8, 8)
        if self.alignment == "resize":
            size = self.input_size // _STRIDE
            x = x.contiguous(memory_format=torch.channels_last)  # much faster than channels first
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        ups = (self.up1, self.up2, self.up3, self.up4)
        for up, skip in zip(ups, encoding.skips, strict=True):
            x = up(x, skip)
        logits: torch.Tensor = self.outc(x)
        return logits


class _Up(nn.Module):
    """Double the map, concatenate it to the skip connection, convolve twice."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, after, 2, stride=2)
        self.conv = _double_convolution(2 * after, after)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        border = (skip.shape[-1] - x.shape[-1]) // 2  # only in up1, and only if padded
        if border:
            x = functional.pad(x, [border] * 4)
        result: torch.Tensor = self.conv(torch.cat([skip, x], dim=1))
        return result


def _down(before: int, after: int) -> nn.Sequential:
    layers = nn.Sequential(nn.MaxPool2d(2), _double_convolution(before, after))
    return nn.Sequential(OrderedDict(maxpool_conv=layers))


def _double_convolution(before: int, after: int) -> nn.Sequential:
    layers = Layers(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
    return nn.Sequential(OrderedDict(double_conv=layers))
