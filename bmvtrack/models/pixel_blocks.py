"""Convolutions of few channels at many pixels, as convolutions of 2×2 blocks of pixels.

In half precision a GPU computes eight channels as fast as one, and pads maps that have fewer by copying them.
``pixel_unshuffle`` makes four times the channels of a quarter of the pixels. A convolution of the pixels is
one of the blocks as well: its weights are the same ones, and zeros. Borders are the same too, because a block
of padding is pixels of padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

_ALIGNED = 8  # channels that are computed together


def opened_in_blocks(
    patches: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """A 7×7 convolution with stride 2 and padding 3.

    Args:
        patches: ``(B, C, H, W)``, with even sides.
        weight: ``(C', C, 7, 7)``.
        dtype: to compute in.

    Returns:
        ``(B, C', H/2, W/2)`` in ``dtype``.
    """
    batch, channels, height, width = patches.shape
    rows, columns = height // 2, width // 2
    # Output pixel i reads pixels 2i − 3 to 2i + 3, which lie in blocks i − 2 to i + 1.
    read = patches.new_zeros(batch, rows + 3, columns + 3, _aligned(4 * channels), dtype=dtype)
    blocks = functional.pixel_unshuffle(patches, 2).permute(0, 2, 3, 1)
    read[:, 2:-1, 2:-1, : 4 * channels] = blocks
    taps = functional.pad(weight, (1, 0, 1, 0)).unflatten(3, (4, 2)).unflatten(2, (4, 2))
    taps = taps.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # (C', 4C, 4, 4)
    return functional.conv2d(read.permute(0, 3, 1, 2), _wider(taps, across=True).to(dtype))


def closed_in_blocks(
    maps: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor | None
) -> torch.Tensor:
    """Doubling (nearest neighbour), then 3×3 convolutions with padding 1.

    Args:
        maps: ``(B, C, H, W)``.
        weights: ``(C', C, 3, 3)`` of each convolution.
        bias: of the last one.

    Returns:
        ``(B, C', 2H, 2W)``.
    """
    doubling, *rest = weights
    taps = [_of_doubled(doubling), *map(_of_blocks, rest)]
    last = len(taps) - 1
    for i, weight in enumerate(taps):
        weight = _wider(weight, across=i > 0, down=i < last).to(maps.dtype)
        maps = functional.conv2d(maps, weight, padding=1)
    if bias is not None:
        maps = maps + bias.to(maps.dtype).repeat_interleave(4)[:, None, None]
    return functional.pixel_shuffle(maps, 2)


def _of_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Weights ``(C', C, 3, 3)`` for maps of pixels → ``(4C', 4C, 3, 3)`` for maps of blocks."""
    reads = _reads(weight)
    with torch.autocast(weight.device.type, enabled=False):
        taps = torch.einsum("cnkl,ykoe,xlpf->cyxnefop", weight, reads, reads)
    return taps.flatten(3, 5).flatten(0, 2)


def _of_doubled(weight: torch.Tensor) -> torch.Tensor:
    """Weights ``(C', C, 3, 3)`` for doubled maps → ``(4C', C, 3, 3)`` from those before, to blocks."""
    reads = _reads(weight).sum(dim=3)  # the pixels of a block are equal
    with torch.autocast(weight.device.type, enabled=False):
        taps = torch.einsum("cnkl,yko,xlp->cyxnop", weight, reads, reads)
    return taps.flatten(0, 2)


def _reads(weight: torch.Tensor) -> torch.Tensor:
    """Along a side, which pixel of which block each of three weights reads: ``(2, 3, 3, 2)`` ones and zeros.

    Dimensions: pixel of a block that is computed; weight; block, from the one before to the one after; pixel
    of that block.
    """
    pixel, tap, block, other = (
        torch.arange(count, device=weight.device).reshape([-1 if i == k else 1 for k in range(4)])
        for i, count in enumerate((2, 3, 3, 2))
    )
    return (pixel + tap - 1 == 2 * (block - 1) + other).to(weight)


def _wider(weight: torch.Tensor, across: bool = False, down: bool = False) -> torch.Tensor:
    """Weights with zeros for further input (``across``) and output channels, so that these are aligned."""
    outputs, inputs = weight.shape[:2]
    more = [_aligned(count) - count for count in (inputs, outputs)]
    return functional.pad(weight, (0, 0, 0, 0, 0, more[0] * across, 0, more[1] * down))


def _aligned(channels: int) -> int:
    return -(-channels // _ALIGNED) * _ALIGNED
