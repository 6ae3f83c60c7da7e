"""Stages that several networks are built of, and how their weights start."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock

_BLOCKS = 2  # per stage, as in ResNet18


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
        downsample = nn.Sequential(
            nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
        )
    first = BasicBlock(before, after, stride, downsample)
    blocks = [first, *(BasicBlock(after, after) for _ in range(_BLOCKS - 1))]
    for block in blocks:
        block.relu = activation(inplace=True)
    return nn.Sequential(*blocks)


def initialize(module: nn.Module) -> None:
    """Kaiming's weights for convolutions without bias: those that a batch norm follows."""
    if isinstance(module, nn.Conv2d) and module.bias is None:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
