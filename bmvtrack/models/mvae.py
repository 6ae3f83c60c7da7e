"""βMVAE, the first of the paper's two networks: ResNet18, bottleneck, mirrored ResNet18.

Paper §4 and its released weights, whose submodule names are used here. All that the decoder knows of the
patch passes through the bottleneck: there are no skip connections.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from bmvtrack.models.base import Encoding, MultivariationalNetwork, check_sizes
from bmvtrack.models.blocks import (
    Layers,
    closed,
    doubled,
    doubled_and_convolved,
    initialize,
    normalized,
    opened,
    residual_stage,
)
from bmvtrack.models.bottleneck import (
    VARIABLES,
    CovarianceKind,
    Reduction,
    Reparameterization,
)
from bmvtrack.models.flows import BottleneckKind, build_bottleneck
from bmvtrack.models.widening import Cells
from bmvtrack.prior import MotionPrior

_STRIDE = 16
_SMALLEST = 64
_GRID = 4  # side of the map that the latents become
_IMAGE = 3  # output channels of the decoder
_OUTPUT = (11, 33)  # channels between those and the classes


class BetaMVAE(MultivariationalNetwork):
    """The paper's β-multivariational autoencoder; the defaults are the paper's: 20,015,268 parameters.

    Args:
        prior: of the motion.
        width: channels of the first stage; the published weights have 64.
        input_size: side of the square patch in pixels, a multiple of 16, at least 64. No weight depends on
            it: the encoder pools globally, and the decoder enlarges its 4×4 grid to a 16th of it.
        input_channels: 3 (RGB) or 4 (RGB and the filled box).
        classes: output classes including background.
        samples: S; for this and the next four, see :class:`~bmvtrack.models.bottleneck.Bottleneck`.
        covariance: ``batch`` or ``frame``.
        reduction: ``norm`` or ``mean``.
        reparameterization: ``affine`` or ``full``.
        standardized: heads in units of the prior.
        bottleneck: ``multivariational``, or one of the flows of :mod:`bmvtrack.models.flows` (with
            covariance ``frame``; reduction and reparameterization are not used).

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
    ) -> None:
        super().__init__()
        if input_size % _STRIDE or input_size < _SMALLEST:
            raise ValueError(
                f"input_size must be a multiple of {_STRIDE} and at least {_SMALLEST}, "
                f"not {input_size}"
            )
        check_sizes(input_channels, classes, width, samples)
        self.input_size, self.input_channels, self.classes = input_size, input_channels, classes
        self.feature_count = 8 * width
        self.encoder = _Encoder(input_channels, width)
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
        self.decoder = _Decoder(VARIABLES * samples, width, input_size // _STRIDE)
        narrow, wide = _OUTPUT
        layers = nn.Sequential(
            nn.Conv2d(_IMAGE, narrow, 3, padding=1, bias=False),
            nn.Conv2d(narrow, wide, 3, padding=1, bias=False),
            nn.Conv2d(wide, classes, 1),
        )
        self.outc = nn.Sequential(OrderedDict(conv=layers))

    @property
    def cells(self) -> Cells:
        """See the base class."""
        latents = 0, _GRID**2
        return {"decoder.linear.weight": latents, "decoder.linear.bias": latents}

    def encode(self, patches: torch.Tensor) -> Encoding:
        """See the base class. There are no skips."""
        return Encoding(self.encoder(patches), ())

    def decode(self, latents: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """See the base class; the encoding is not used."""
        layers = self.outc.conv
        assert isinstance(layers, nn.Sequential)
        last = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        return closed(self.decoder(latents.flatten(1)), self.decoder.conv1, last)


class _Encoder(nn.Module):
    """ResNet18 with LeakyReLU and without max-pool: ``(B, C, S, S)`` → ``(B, 8·width)``."""

    def __init__(self, input_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.LeakyReLU(inplace=True)
        self.layer1 = residual_stage(width, width, 1, nn.LeakyReLU)
        self.layer2 = residual_stage(width, 2 * width, 2, nn.LeakyReLU)
        self.layer3 = residual_stage(2 * width, 4 * width, 2, nn.LeakyReLU)
        self.layer4 = residual_stage(4 * width, 8 * width, 2, nn.LeakyReLU)
        self.apply(initialize)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        x = normalized(opened(patches, self.conv1), self.bn1, self.relu)  # (B, w, S/2, S/2)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, 8w, S/16, S/16)
        return functional.adaptive_avg_pool2d(x, 1).flatten(1)


class _Decoder(nn.Module):
    """ResNet18 mirrored, up to its last convolution: ``(B, 5·S)`` latents → ``(B, w, 8·grid, 8·grid)``.

    That one, ``conv1``, reads the doubled maps; the network computes it together with those that follow.
    """

    def __init__(self, latents: int, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(latents, 8 * width * _GRID**2)
        self.layer1 = _enlarging_stage(8 * width, 4 * width)
        self.layer2 = _enlarging_stage(4 * width, 2 * width)
        self.layer3 = _enlarging_stage(2 * width, width)
        self.layer4 = nn.Sequential(_MirroredBlock(width, width), _MirroredBlock(width, width))
        self.apply(initialize)
        # After initialize: no batch norm follows it, so Kaiming's weights would be too large here.
        self.conv1 = nn.Conv2d(width, _IMAGE, 3, padding=1, bias=False)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.linear(latents).unflatten(1, (-1, _GRID, _GRID))  # (B, 8w, 4, 4)
        x = functional.interpolate(x, size=self.grid, mode="nearest")
        result: torch.Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return result


class _MirroredBlock(nn.Module):
    """A residual block in reverse: the second convolution changes size and channels."""

    def __init__(self, before: int, after: int, enlarge: bool = False) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.conv1 = nn.Conv2d(before, before, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        self.conv2 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.LeakyReLU(inplace=True)
        self.upsample = None
        if before != after:
            self.upsample = Layers(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = normalized(self.conv1(x), self.bn1, self.relu)
        if self.upsample is not None:
            # 1×1: enlarging afterwards gives the same at a quarter of the work.
            x = self.upsample(x)
        if self.enlarge:
            x, y = doubled(x), doubled_and_convolved(y, self.conv2)
        else:
            y = self.conv2(y)
        return normalized(y, self.bn2, self.relu, x)


def _enlarging_stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(_MirroredBlock(before, after, enlarge=True), _MirroredBlock(after, after))
