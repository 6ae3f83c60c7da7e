"""Batch norm, residual sum and nonlinearity in one pass over a GPU's memory, as Triton kernels.

In half precision a GPU takes longer to read feature maps than to compute with them, and torch reads them
anew for each of the three. Here a map is read once for its statistics and once to be normalised; backward,
map and gradient are read twice. This needs Triton, which torch's CUDA builds for Linux bring along.

All sums are in float32 and in a fixed order: equal inputs give equal bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import nn

# Tile and warps: of a few, those with which the sums of gradients were fastest on an H200.
_TILE = 4096  # numbers of a map that a program works on at once
_MOST_CHANNELS = 128  # of a tile
_PROGRAMS = 1056  # of a reduction: eight for each multiprocessor of a large GPU
_FINAL_CHANNELS, _FINAL_PARTS = 8, 256  # tile of the kernels that add up the parts of a sum
_WARPS = 4  # of a program
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_allowed = ContextVar("_allowed", default=True)


@contextmanager
def not_fused() -> Iterator[None]:
    """Nothing is fusible within this context, for comparison."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed() -> bool:
    """Whether batch norms may be fused here."""
    return _allowed.get()


def is_fusible(maps: torch.Tensor, norm: nn.Module) -> bool:
    """Whether :func:`fused_norm` can replace a module: a plain batch norm in training, on a GPU.

    Args:
        maps: its input; plain tensors in channels-last layout only.
        norm: the module.
    """
    return (
        maps.is_cuda
        and allowed()
        and type(maps) is torch.Tensor
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.running_mean is not None
        and norm.momentum is not None
        and norm.weight is not None
        and norm.weight.dtype == torch.float32
        and maps.dtype in _DTYPES
        and maps.numel() > norm.num_features
        and maps.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
        and _kernels() is not None
    )


def fused_norm(
    maps: torch.Tensor,
    norm: nn.BatchNorm2d,
    slope: float | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``activation(norm(maps) + residual)``, with the batch's statistics; updates the running ones.

    Args:
        maps: ``(B, C, H, W)`` in channels-last layout.
        norm: with weights and running statistics in float32.
        slope: of the activation for negative values: 0 for ReLU; None for no activation.
        residual: like ``maps``.
    """
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    result: torch.Tensor = _FusedNorm.apply(maps, norm.weight, norm.bias, residual, norm, slope)
    return result


@cache
def _kernels() -> Any:
    """The module with the kernels; None without Triton, which takes a while to import."""
    try:
        from bmvtrack.models import norm_kernels
    except ImportError:
        return None
    return norm_kernels


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        maps: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor | None,
        norm: nn.BatchNorm2d,
        slope: float | None,
    ) -> torch.Tensor:
        kernels, grid = _kernels(), _Grid(maps)
        if residual is not None:
            residual = residual.to(maps.dtype).contiguous(memory_format=torch.channels_last)
        # Rows: mean, 1 / standard deviation, and the factor and summand that they make with the weights.
        statistics = weight.new_empty(4, grid.channels, dtype=torch.float32)
        sums = statistics.new_empty(2, grid.parts, grid.channels)
        with torch.cuda.device_of(maps):
            kernels.sum_kernel[grid.reduction](maps, sums, *grid.numbers, **grid.blocks)
            kernels.statistics_kernel[grid.final](
                *(maps, sums, weight, bias, norm.running_mean, norm.running_var, statistics),
                *(grid.parts, grid.rows, grid.channels, norm.momentum, norm.eps),
                **grid.final_blocks,
            )
            result = torch.empty_like(maps)
            kernels.apply_kernel[grid.whole](
                *(maps, maps if residual is None else residual, result, statistics),
                *(grid.rows, grid.channels, 0.0 if slope is None else slope),
                HAS_RESIDUAL=residual is not None,
                ACTIVATED=slope is not None,
                **grid.blocks,
            )
        # The sign of what is activated follows from the map, unless something was added to it.
        kept = result if slope is not None and residual is not None else None
        ctx.save_for_backward(maps, statistics, kept)
        ctx.slope, ctx.has_residual = slope, residual is not None
        return result

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, None, None]:
        maps, statistics, result = ctx.saved_tensors
        kernels, grid = _kernels(), _Grid(maps)
        pitch = _pitch(gradient)
        if pitch is None:
            gradient = gradient.contiguous(memory_format=torch.channels_last)
            pitch = grid.channels
        slope = 0.0 if ctx.slope is None else ctx.slope
        sums = statistics.new_empty(2, grid.parts, grid.channels)
        coefficients = torch.empty_like(statistics)
        # With a sum, what comes back through the activation is the residual's gradient, and kept.
        before = torch.empty_like(maps) if ctx.has_residual and ctx.slope is not None else None
        kinds = {"ACTIVATED": ctx.slope is not None, "KEPT": before is not None}
        with torch.cuda.device_of(maps):
            kernels.gradient_sum_kernel[grid.reduction](
                gradient,
                *(maps if result is None else result, maps, statistics),
                *(maps if before is None else before, sums),
                *(*grid.numbers, pitch, slope),
                **kinds,
                **grid.blocks,
            )
            kernels.coefficients_kernel[grid.final](
                *(sums, statistics, coefficients, grid.parts, grid.rows, grid.channels),
                **grid.final_blocks,
            )
            backward = torch.empty_like(maps)
            read, read_pitch = (gradient, pitch) if before is None else (before, grid.channels)
            kernels.gradient_kernel[grid.whole](
                *(read, maps, statistics, coefficients, backward),
                *(grid.rows, grid.channels, read_pitch, slope),
                ACTIVATED=ctx.slope is not None and before is None,
                **grid.blocks,
            )
        for_residual = before if before is not None else gradient if ctx.has_residual else None
        return backward, coefficients[2], coefficients[3], for_residual, None, None


class _Grid:
    """How the rows (pixels of all images) and channels of a map are divided among programs."""

    def __init__(self, maps: torch.Tensor) -> None:
        self.channels = maps.shape[1]
        self.rows = maps.numel() // self.channels
        across = min(_MOST_CHANNELS, 1 << (self.channels - 1).bit_length())
        down = _TILE // across
        columns = _ceiling(self.channels, across)
        tiles = _ceiling(self.rows, down)
        tiles_each = _ceiling(tiles, max(1, min(tiles, _PROGRAMS // columns)))
        self.parts = _ceiling(tiles, tiles_each)
        self.numbers = (self.rows, self.channels, tiles_each * down, self.parts)
        self.reduction, self.whole = (self.parts, columns), (tiles, columns)
        self.final = (_ceiling(self.channels, _FINAL_CHANNELS),)
        self.blocks = {"DOWN": down, "ACROSS": across, "num_warps": _WARPS}
        self.final_blocks = {"DOWN": _FINAL_PARTS, "ACROSS": _FINAL_CHANNELS, "num_warps": _WARPS}


def _ceiling(count: int, each: int) -> int:
    """How many parts of at most ``each`` make ``count``."""
    return -(-count // each)


def _pitch(maps: torch.Tensor) -> int | None:
    """Numbers from one pixel to the next if channels are adjacent, as in a part of joined maps."""
    _, channels, height, width = maps.shape
    pitch = maps.stride(3)
    adjacent = maps.stride() == (height * width * pitch, 1, width * pitch, pitch)
    return pitch if adjacent and pitch >= channels else None
