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
from bmvtrack.models.blocks import (
    Layers,
    initialize,
    joined_and_convolved,
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
from bmvtrack.models.template import Memory, Recall, Template
from bmvtrack.models.widening import Cells
from bmvtrack.prior import MotionPrior

_POOLED = 2  # the deepest map is pooled to 2×2: the motion depends on where things are
_STRIDE = 64
_READING = (1, 2)  # the stages, of strides 8 and 16, whose maps are compared with the template's


class ResNetUNet(MultivariationalNetwork):
    """ResNet18 encoder with a fifth stage, bottleneck, and a decoder with skip connections.

    Args:
        prior: of the motion.
        width: channels of the first stage; ResNet18 has 64.
        input_size: side of the square patch in pixels, a multiple of 64.
        input_channels: 3 (RGB) or 4 (RGB and the filled box).
        classes: output classes including background.
        samples: S; for this and the next four, see :class:`~bmvtrack.models.bottleneck.Bottleneck`.
        covariance: ``batch`` or ``frame``.
        reduction: ``norm`` or ``mean``.
        reparameterization: ``affine`` or ``full``.
        standardized: heads in units of the prior.
        bottleneck: ``multivariational``, or one of the flows of :mod:`bmvtrack.models.flows` (with
            covariance ``frame``; reduction and reparameterization are not used).
        template: look for the object of a template, see :mod:`bmvtrack.models.template`.

    Raises:
        ValueError: if a size or the bottleneck is invalid.
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
        template: bool = False,
    ) -> None:
        super().__init__()
        if input_size % _STRIDE or input_size < _STRIDE:
            raise ValueError(f"input_size must be a multiple of {_STRIDE}, not {input_size}")
        check_sizes(input_channels, classes, width, samples)
        self.input_size, self.input_channels, self.classes = input_size, input_channels, classes
        self.feature_count, self.uses_template = 4 * width, template
        stages = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.stem = Layers(
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
        self.recalls = nn.ModuleList(Recall(stages[i]) for i in _READING) if template else None

    @property
    def cells(self) -> Cells:
        """See the base class."""
        return {"features.2.weight": (1, _POOLED**2)}

    def encode(self, patches: torch.Tensor) -> Encoding:
        """See the base class. Skips: the six maps from stride 64 to stride 2."""
        return self._encode(patches, None)

    def memorize(self, patches: torch.Tensor) -> Template:
        """See the base class."""
        if self.recalls is None:
            return super().memorize(patches)
        memories: list[Memory] = []
        deepest = self.pool(self._opened(patches))
        for i in range(_READING[-1] + 1):
            deepest = self.stages[i](deepest)
            recall = self._recall(i)
            if recall is not None:
                memories.append(recall.memorize(deepest))
                deepest = recall(deepest, memories[-1])
        return Template(tuple(memories))

    def encode_with_template(self, patches: torch.Tensor, template: Template) -> Encoding:
        """See the base class."""
        if self.recalls is None:
            return super().encode_with_template(patches, template)
        return self._encode(patches, template)

    def _encode(self, patches: torch.Tensor, template: Template | None) -> Encoding:
        memories = iter(template.memories if template else ())
        maps = [self._opened(patches)]  # (B, w, S/2, S/2)
        deepest = self.pool(maps[0])
        for i, stage in enumerate(self.stages):
            deepest = stage(deepest)
            recall = self._recall(i)
            if recall is not None:
                memory = next(memories) if template else recall.memorize(deepest)
                deepest = recall(deepest, memory)
            maps.append(deepest)
        return Encoding(self.features(deepest), tuple(reversed(maps)))

    def _opened(self, patches: torch.Tensor) -> torch.Tensor:
        convolution, norm, activation = self.stem
        assert isinstance(convolution, nn.Conv2d)
        return normalized(opened(patches, convolution), norm, activation)

    def _recall(self, stage: int) -> Recall | None:
        """The module that reads the template's map of this stage; None if it is not read."""
        if self.recalls is None or stage not in _READING:
            return None
        recall = self.recalls[_READING.index(stage)]
        assert isinstance(recall, Recall)
        return recall

    def decode(self, latents: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """See the base class."""
        logits = self.decoder(self.latents(latents.flatten(1)), encoding.skips)
        return functional.interpolate(  # few channels: four times as fast as channels-last here
            logits.contiguous(), size=self.input_size, mode="bilinear", align_corners=False
        )


class _Decoder(nn.Module):
    """Concatenate latents and deepest map; then enlarge, concatenate, convolve, up to half the input."""

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
            first, second = block.children()
            convolution, norm, activation = first.children()
            assert isinstance(convolution, nn.Conv2d)
            x = normalized(joined_and_convolved(x, skip, convolution), norm, activation)
            x = second(x)
        result: torch.Tensor = self.output(x)
        return result


def _convolution(before: int, after: int, kernel: int = 3) -> Layers:
    return Layers(
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
