# mypy: ignore-errors
"""Triton kernels of :mod:`bmvtrack.models.fused_norm`. They import Triton, which not every machine has.

Maps are rows (pixels of all images) of channels. A program of a reduction adds up some of the rows of some
channels; the parts are added up in a fixed order.
"""

import triton
import triton.language as tl


@triton.jit
def _row(table, row, channels, channel):
    """A row of a table ``(R, C)``, at some channels."""
    return tl.load(table + row * channels + channel, mask=channel < channels, other=0.0)


@triton.jit
def sum_kernel(
    maps,
    sums,
    rows,
    channels,
    rows_each,
    parts,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Sums of values and squares: of differences from the first pixel, lest large means cancel."""
    part = tl.program_id(0)
    channel = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)
    there = channel < channels
    first = tl.load(maps + channel, mask=there, other=0.0).to(tl.float32)
    values = tl.zeros((DOWN, ACROSS), tl.float32)
    squares = tl.zeros((DOWN, ACROSS), tl.float32)
    start = part.to(tl.int64) * rows_each
    for offset in range(0, rows_each, DOWN):
        row = start + offset + tl.arange(0, DOWN)
        inside = (row < rows)[:, None] & there[None, :]
        place = row[:, None] * channels + channel[None, :]
        value = tl.load(maps + place, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - first[None, :], 0.0)
        values += value
        squares += value * value
    place = part * channels + channel
    tl.store(sums + place, tl.sum(values, axis=0), mask=there)
    tl.store(sums + parts * channels + place, tl.sum(squares, axis=0), mask=there)


@triton.jit
def _total(sums, parts, channels, channel, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    total = tl.zeros((DOWN, ACROSS), tl.float32)
    for offset in range(0, parts, DOWN):
        part = offset + tl.arange(0, DOWN)
        inside = (part < parts)[:, None] & (channel < channels)[None, :]
        place = part[:, None] * channels + channel[None, :]
        total += tl.load(sums + place, mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def statistics_kernel(
    maps,
    sums,
    weight,
    bias,
    running_mean,
    running_variance,
    statistics,
    parts,
    rows,
    channels,
    momentum,
    epsilon,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Statistics of the batch and the affine map that they make with the weights; update the running ones."""
    channel = tl.program_id(0) * ACROSS + tl.arange(0, ACROSS)
    there = channel < channels
    count = rows * 1.0
    first = tl.load(maps + channel, mask=there, other=0.0).to(tl.float32)
    shift = _total(sums, parts, channels, channel, DOWN, ACROSS) / count
    squares = _total(sums + parts * channels, parts, channels, channel, DOWN, ACROSS) / count
    mean = first + shift
    variance = tl.maximum(squares - shift * shift, 0.0)
    inverse = 1.0 / tl.sqrt(variance + epsilon)
    factor = tl.load(weight + channel, mask=there, other=0.0) * inverse
    summand = tl.load(bias + channel, mask=there, other=0.0) - mean * factor
    tl.store(statistics + channel, mean, mask=there)
    tl.store(statistics + channels + channel, inverse, mask=there)
    tl.store(statistics + 2 * channels + channel, factor, mask=there)
    tl.store(statistics + 3 * channels + channel, summand, mask=there)
    unbiased = variance * (count / tl.maximum(count - 1.0, 1.0))
    before = tl.load(running_mean + channel, mask=there, other=0.0)
    tl.store(running_mean + channel, before + momentum * (mean - before), mask=there)
    before = tl.load(running_variance + channel, mask=there, other=0.0)
    tl.store(running_variance + channel, before + momentum * (unbiased - before), mask=there)


@triton.jit
def apply_kernel(
    maps,
    residual,
    result,
    statistics,
    rows,
    channels,
    slope,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATED: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Normalise, add the residual, activate."""
    channel = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)
    there = channel < channels
    factor = _row(statistics, 2, channels, channel)
    summand = _row(statistics, 3, channels, channel)
    row = tl.program_id(0).to(tl.int64) * DOWN + tl.arange(0, DOWN)
    inside = (row < rows)[:, None] & there[None, :]
    place = row[:, None] * channels + channel[None, :]
    value = tl.load(maps + place, mask=inside, other=0.0).to(tl.float32)
    value = value * factor[None, :] + summand[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATED:
        value = tl.where(value > 0, value, value * slope)
    tl.store(result + place, value.to(result.dtype.element_ty), mask=inside)


@triton.jit
def gradient_sum_kernel(
    gradient,
    result,
    maps,
    statistics,
    before,
    sums,
    rows,
    channels,
    rows_each,
    parts,
    pitch,
    slope,
    ACTIVATED: tl.constexpr,
    KEPT: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Sums of the gradient before the activation, and of its products with the normalised values."""
    part = tl.program_id(0)
    channel = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)
    there = channel < channels
    mean = _row(statistics, 0, channels, channel)
    inverse = _row(statistics, 1, channels, channel)
    factor = _row(statistics, 2, channels, channel)
    summand = _row(statistics, 3, channels, channel)
    gradients = tl.zeros((DOWN, ACROSS), tl.float32)
    products = tl.zeros((DOWN, ACROSS), tl.float32)
    start = part.to(tl.int64) * rows_each
    for offset in range(0, rows_each, DOWN):
        row = start + offset + tl.arange(0, DOWN)
        inside = (row < rows)[:, None] & there[None, :]
        place = row[:, None] * channels + channel[None, :]
        there_too = row[:, None] * pitch + channel[None, :]
        slopes = tl.load(gradient + there_too, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(maps + place, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATED:
            if KEPT:
                sign = tl.load(result + place, mask=inside, other=0.0).to(tl.float32)
            else:
                sign = value * factor[None, :] + summand[None, :]
            slopes = tl.where(sign > 0, slopes, slopes * slope)
        if KEPT:
            tl.store(before + place, slopes.to(before.dtype.element_ty), mask=inside)
        gradients += slopes
        products += slopes * ((value - mean[None, :]) * inverse[None, :])
    place = part * channels + channel
    tl.store(sums + place, tl.sum(gradients, axis=0), mask=there)
    tl.store(sums + parts * channels + place, tl.sum(products, axis=0), mask=there)


@triton.jit
def coefficients_kernel(
    sums,
    statistics,
    coefficients,
    parts,
    rows,
    channels,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Rows: a and b, and the gradients of weight and bias; the map's is factor · gradient + a · map + b."""
    channel = tl.program_id(0) * ACROSS + tl.arange(0, ACROSS)
    there = channel < channels
    count = rows * 1.0
    gradients = _total(sums, parts, channels, channel, DOWN, ACROSS)
    products = _total(sums + parts * channels, parts, channels, channel, DOWN, ACROSS)
    mean = _row(statistics, 0, channels, channel)
    inverse = _row(statistics, 1, channels, channel)
    factor = _row(statistics, 2, channels, channel)
    a = -factor * inverse * (products / count)
    b = -factor * (gradients / count) - a * mean
    tl.store(coefficients + channel, a, mask=there)
    tl.store(coefficients + channels + channel, b, mask=there)
    tl.store(coefficients + 2 * channels + channel, products, mask=there)
    tl.store(coefficients + 3 * channels + channel, gradients, mask=there)


@triton.jit
def gradient_kernel(
    gradient,
    maps,
    statistics,
    coefficients,
    backward,
    rows,
    channels,
    pitch,
    slope,
    ACTIVATED: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """The gradient with respect to the map."""
    channel = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)
    there = channel < channels
    factor = _row(statistics, 2, channels, channel)
    summand = _row(statistics, 3, channels, channel)
    a = _row(coefficients, 0, channels, channel)
    b = _row(coefficients, 1, channels, channel)
    row = tl.program_id(0).to(tl.int64) * DOWN + tl.arange(0, DOWN)
    inside = (row < rows)[:, None] & there[None, :]
    place = row[:, None] * channels + channel[None, :]
    there_too = row[:, None] * pitch + channel[None, :]
    slopes = tl.load(gradient + there_too, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(maps + place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATED:
        sign = value * factor[None, :] + summand[None, :]
        slopes = tl.where(sign > 0, slopes, slopes * slope)
    value = factor[None, :] * slopes + a[None, :] * value + b[None, :]
    tl.store(backward + place, value.to(backward.dtype.element_ty), mask=inside)
