"""Building blocks shared by several networks, and their weight initialization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from bmvtrack.models.fused_norm import fused_norm, is_fusible
from bmvtrack.models.pixel_blocks import closed_in_blocks, opened_in_blocks

_BLOCKS = 2  # per stage, as in ResNet18
_PIXELS_A_CHANNEL = 16  # from which on a map is convolved apart from the one it is joined with


def normalized(
    maps: torch.Tensor,
    norm: nn.Module,
    activation: nn.Module | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``activation(norm(maps) + residual)``; on a GPU, in training, in one pass over memory.

    Args:
        maps: ``(B, C, H, W)``; may be overwritten.
        norm: a batch norm, or what replaced it.
        activation: ReLU or LeakyReLU, if any.
        residual: like ``maps``, if any.
    """
    if is_fusible(maps, norm):
        assert isinstance(norm, nn.BatchNorm2d)
        return fused_norm(maps, norm, _slope(activation), residual)
    result: torch.Tensor = norm(maps)
    if residual is not None:
        result += residual
    return result if activation is None else activation(result)


def _slope(activation: nn.Module | None) -> float | None:
    """The factor of negative values; None without an activation."""
    if activation is None:
        return None
    if isinstance(activation, nn.LeakyReLU):
        return float(activation.negative_slope)
    assert isinstance(activation, nn.ReLU)
    return 0.0


class Layers(nn.Sequential):
    """A sequence of layers in which batch norms and the activations after them are :func:`normalized`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers one after the other."""
        rest = list(self)
        while rest:
            layer = rest.pop(0)
            if isinstance(layer, nn.BatchNorm2d):
                activated = bool(rest) and isinstance(rest[0], nn.ReLU | nn.LeakyReLU)
                x = normalized(x, layer, rest.pop(0) if activated else None)
            else:
                x = layer(x)
        return x


class ResidualBlock(BasicBlock):  # type: ignore[misc]
    """torchvision's block of ResNet18, with :func:`normalized` maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` → ``(B, C', H/s, W/s)``."""
        y = normalized(self.conv1(x), self.bn1, self.relu)
        if self.downsample is not None:
            x = self.downsample(x)
        return normalized(self.conv2(y), self.bn2, self.relu, x)


def residual_stage(
    before: int, after: int, stride: int, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """A stage of torchvision's ResNet18: ``(B, before, H, W)`` → ``(B, after, H/s, W/s)``.

    Args:
        before: input channels.
        after: output channels.
        stride: s, of the first block.
        activation: class of the nonlinearity; ResNet18 has ReLU.
    """
    downsample = None
    if stride != 1 or before != after:
        downsample = Layers(
            nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
        )
    first = ResidualBlock(before, after, stride, downsample)
    blocks = [first, *(ResidualBlock(after, after) for _ in range(_BLOCKS - 1))]
    for block in blocks:
        block.relu = activation(inplace=True)
    return nn.Sequential(*blocks)


def initialize(module: nn.Module) -> None:
    """Kaiming initialization of convolutions without bias: those that a batch norm follows."""
    if isinstance(module, nn.Conv2d) and module.bias is None:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def doubled(maps: torch.Tensor) -> torch.Tensor:
    """``(B, C, H, W)`` → ``(B, C, 2H, 2W)``: nearest-neighbour upsampling in the same precision."""
    if _is_reduced(maps):
        return _repeated(maps)
    return functional.interpolate(maps, scale_factor=2, mode="nearest")


def doubled_and_convolved(maps: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """:func:`doubled`, then a 3×3 convolution with padding 1, to ``(B, C', 2H, 2W)``."""
    if _is_reduced(maps):
        return _convolved_at_once(maps, layer)
    result: torch.Tensor = layer(doubled(maps))
    return result


def joined_and_convolved(maps: torch.Tensor, skip: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """:func:`doubled`, concatenation with a finer map, then a 3×3 convolution with padding 1.

    Args:
        maps: ``(B, C, H, W)``.
        skip: ``(B, D, 2H, 2W)``.
        layer: with C + D input channels.
    """
    if _pays_apart(maps):
        coarse, fine = layer.weight.split((maps.shape[1], skip.shape[1]), dim=1)
        result = functional.conv_transpose2d(maps, _doubling(coarse), stride=2, padding=1)
        return result.add_(functional.conv2d(skip, fine, layer.bias, padding=1))
    joined: torch.Tensor = layer(torch.cat([doubled(maps), skip], dim=1))
    return joined


def opened(patches: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """A first convolution, 7×7 with stride 2 and padding 3: ``(B, C, H, W)`` → ``(B, C', H/2, W/2)``."""
    kind = patches.device.type
    if kind != "cpu" and torch.is_autocast_enabled(kind) and layer.bias is None:
        return opened_in_blocks(patches, layer.weight, torch.get_autocast_dtype(kind))
    result: torch.Tensor = layer(patches)
    return result


def closed(maps: torch.Tensor, first: nn.Conv2d, last: Sequence[nn.Conv2d]) -> torch.Tensor:
    """Last convolutions, of few channels: :func:`doubled_and_convolved`, then two 3×3 and a 1×1 one.

    The 1×1 one is merged into the one before, which avoids maps with more channels and all pixels.

    Args:
        maps: ``(B, C, H, W)``.
        first: without bias, like those that follow except the last one.
        last: the three other convolutions.
    """
    second, third, fourth = last
    with torch.autocast(maps.device.type, enabled=False):
        merged = torch.einsum("cw,wnij->cnij", fourth.weight[..., 0, 0], third.weight)
    if _is_reduced(maps):
        return closed_in_blocks(maps, [first.weight, second.weight, merged], fourth.bias)
    return functional.conv2d(
        second(doubled_and_convolved(maps, first)), merged, fourth.bias, padding=1
    )


def _pays_apart(maps: torch.Tensor) -> bool:
    """Whether it is faster on a CPU to convolve the two parts of a joined map separately.

    There is less to compute and no joined map to write, but weights must be computed each time.
    """
    plain = maps.device.type == "cpu" and maps.dtype == torch.float32
    large = maps.shape[-2] * maps.shape[-1] >= _PIXELS_A_CHANNEL * maps.shape[1]
    return plain and large and not torch.is_grad_enabled()


def _is_reduced(maps: torch.Tensor) -> bool:
    """Whether maps are in half precision on a GPU.

    There autocast makes torch interpolate in float32, which turns much of what follows into float32.
    """
    return maps.device.type != "cpu" and maps.dtype in (torch.bfloat16, torch.float16)


def _repeated(maps: torch.Tensor) -> torch.Tensor:
    """:func:`doubled` by copying, with channels last."""
    batch, channels, height, width = maps.shape
    pixels = maps.permute(0, 2, 3, 1)[:, :, None, :, None]
    pixels = pixels.expand(-1, -1, 2, -1, 2, -1)
    return pixels.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _convolved_at_once(maps: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """:func:`doubled_and_convolved` as one transposed convolution, without the large intermediate map."""
    weight = _doubling(layer.weight)
    return functional.conv_transpose2d(maps, weight, layer.bias, stride=2, padding=1)


def _doubling(weight: torch.Tensor) -> torch.Tensor:
    """Weights ``(C', C, 3, 3)`` of a convolution of doubled maps, as ``(C, C', 4, 4)`` of a transposed one.

    Along a side, the three weights for output pixel 2i apply to pixels i − 1, i, i, and those for 2i + 1 to
    i, i, i + 1: weights of the same pixel are added.
    """
    weight = weight.flip(2, 3).transpose(0, 1)
    weight = functional.pad(weight, (0, 1)) + functional.pad(weight, (1, 0))
    return functional.pad(weight, (0, 0, 0, 1)) + functional.pad(weight, (0, 0, 1, 0))
