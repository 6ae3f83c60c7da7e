"""The project's own network: a ResNet18 U-Net with one extra stage.

That is how the paper's text and Table 2 describe βMVUnet. Blocks and stages are torchvision's
ResNet18; width and input size are options.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from bmvtrack.models.base import Encoding, MultivariationalNetwork, check_sizes
from bmvtrack.models.blocks import initialize, residual_stage
from bmvtrack.models.bottleneck import (
    VARIABLES,
    CovarianceKind,
    Reduction,
    Reparameterization,
)
from bmvtrack.models.flows import BottleneckKind, build_bottleneck
from bmvtrack.prior import MotionPrior

_POOLED = 2  # the deepest map is pooled to 2×2: the motion needs to know where things are
_STRIDE = 64


class ResNetUNet(MultivariationalNetwork):
    """ResNet18 encoder with a fifth stage, bottleneck, and a decoder with skip connections.

    Args:
        prior: of the motion.
        width: channels of the first stage; ResNet18 has 64.
        input_size: of the square patch in pixels, a multiple of 64.
        input_channels: 3 (RGB) or 4 (RGB and the filled box).
        classes: output classes with background.
        samples: S, see :class:`~bmvtrack.models.bottleneck.Bottleneck`, as are the others below.
        covariance: ``batch`` or ``frame``.
        reduction: ``norm`` or ``mean``.
        reparameterization: ``affine`` or ``full``.
        standardized: heads in units of the prior.
        bottleneck: ``multivariational``, or one of the flows of :mod:`bmvtrack.models.flows` (with
            covariance ``frame``; reduction and reparameterization play no part).

    Raises:
        ValueError: if a size, or the bottleneck, is not what it must be.
    """

    def __init__(
        self,
        prior: MotionPrior,
        width: int = 32,
        input_size: int = 128,
        input_channels: int = 4,
        classes: int = 2,
        samples: int = 50,
        covariance: CovarianceKind = "frame",
        reduction: Reduction = "norm",
        reparameterization: Reparameterization = "full",
        standardized: bool = True,
        bottleneck: BottleneckKind = "multivariational",
    ) -> None:
        super().__init__()
        if input_size % _STRIDE or input_size < _STRIDE:
            raise ValueError(f"input_size must be a multiple of {_STRIDE}, not {input_size}")
        check_sizes(input_channels, classes, width, samples)
        self.input_size, self.input_channels, self.classes = input_size, input_channels, classes
        self.feature_count = 4 * width
        stages = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.stem = nn.Sequential(
            nn.Conv2d(input_channels, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            residual_stage(before, after, stride=1 if i == 0 else 2)
            for i, (before, after) in enumerate(zip([width, *stages], stages, strict=False))
        )
        self.features = nn.Sequential(
            nn.AdaptiveAvgPool2d(_POOLED),
            nn.Flatten(),
            nn.Linear(stages[-1] * _POOLED**2, self.feature_count),
            nn.LayerNorm(self.feature_count),
            nn.SiLU(inplace=True),  # ReLU died here: three quarters of the features were constant
        )
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
        self.latents = nn.Linear(VARIABLES * samples, stages[-1])
        self.decoder = _Decoder([width, *stages], width, classes)
        self.apply(initialize)

    def encode(self, patches: torch.Tensor) -> Encoding:
        """See the base class. Skips: the six maps from stride 64 to stride 2."""
        maps = [self.stem(patches)]  # (B, w, S/2, S/2)
        deepest = self.pool(maps[0])
        for stage in self.stages:
            deepest = stage(deepest)
            maps.append(deepest)
        return Encoding(self.features(deepest), tuple(reversed(maps)))

    def decode(self, latents: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """See the base class."""
        logits = self.decoder(self.latents(latents.flatten(1)), encoding.skips)
        return functional.interpolate(
            logits, size=self.input_size, mode="bilinear", align_corners=False
        )


class _Decoder(nn.Module):
    """Latents join the deepest map; then enlarge, concatenate, convolve, up to half the input."""

    def __init__(self, encoder_channels: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        fine_to_coarse = list(encoder_channels)
        deepest = fine_to_coarse.pop()
        self.join = _convolution(2 * deepest, deepest, kernel=1)
        blocks, channels = [], deepest
        for skip in reversed(fine_to_coarse):
            narrow = max(width, skip // 2)
            blocks.append(
                nn.Sequential(_convolution(channels + skip, narrow), _convolution(narrow, narrow))
            )
            channels = narrow
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Conv2d(channels, classes, 1)

    def forward(self, latents: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        grid = latents[..., None, None].expand(-1, -1, *skips[0].shape[-2:])
        x = self.join(torch.cat([skips[0], grid], dim=1))
        for block, skip in zip(self.blocks, skips[1:], strict=True):
            x = functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        result: torch.Tensor = self.output(x)
        return result


def _convolution(before: int, after: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
