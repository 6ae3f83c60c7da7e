"""The patch φ: an axis-aligned window around a box, resampled to the network's input.

The window is the box's axis-aligned bounds, padded on each side by (w + h)/4 of those bounds and
resized without preserving the aspect ratio. The paper clips it at the frame's edge. For tracking it is not
clipped, and everything outside has the frame's mean colour. In both cases patch coordinates are an affine
map of frame coordinates, known exactly; without clipping it depends on the box alone.

Resampling is separable: one small matrix per side, of triangle filters as wide as the scale requires,
so that downscaling does not alias. A batch of patches is two batched matrix products on any
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from bmvtrack import geometry
from bmvtrack.arrays import Array, namespace

_BAND = 16  # patch pixels whose filters are applied together
_FAR = 3  # times a frame's sides: larger windows lie nearly all outside
_READ_TOGETHER = 32  # frames whose filters are computed together
_TOGETHER = 2**28  # numbers of frames that are in float32 at once
_NOWHERE = 1e30  # position of pixels that no filter should reach


def window(rbbox: Array) -> Array:
    """The window of φ around each box.

    Args:
        rbbox: ``(..., 5)``.

    Returns:
        ``(..., 4)``: left, top, right, bottom in pixels of the frame.
    """
    xp = namespace(rbbox)
    bounds = geometry.bounds(rbbox)
    left, top, right, bottom = (bounds[..., i] for i in range(4))
    pad = (right - left + bottom - top) / 4
    result: Array = xp.stack([left - pad, top - pad, right + pad, bottom + pad], axis=-1)
    return result


def clipped(windows: Array, sizes: Array) -> Array:
    """Windows clipped at the edges of their frames, as in the paper.

    Args:
        windows: ``(..., 4)``.
        sizes: ``(..., 2)``, width and height of the frames in pixels.

    Returns:
        ``(..., 4)``.
    """
    xp = namespace(windows, sizes)
    low = -0.5 + xp.zeros_like(sizes)
    first = xp.maximum(windows[..., :2], low)
    last = xp.minimum(windows[..., 2:], sizes - 0.5)
    result: Array = xp.concatenate([first, last], axis=-1)
    return result


def box_of_whole(sizes: Array) -> Array:
    """The box whose window is the whole frame: upright, in the middle, about half as wide and high.

    Args:
        sizes: ``(..., 2)`` width and height of frames in pixels. For a frame more than three times as long
            as it is high, no box has this window: one side is then the shortest that a box may have.

    Returns:
        ``(..., 5)`` boxes.
    """
    xp = namespace(sizes)
    # φ pads each side of a box w×h by (w + h)/4: the window is W×H if w = W − (W + H)/4.
    sides = sizes - xp.sum(sizes, axis=-1, keepdims=True) / 4
    sides = xp.clip(sides, geometry.MINIMUM_SIDE)
    middle = (sizes - 1) / 2
    result: Array = geometry.upright(xp.concat([middle - sides / 2, middle + sides / 2], axis=-1))
    return result


def crop(
    frames: torch.Tensor, windows: torch.Tensor, size: int, sizes: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    """Resample the window of each frame to ``size``×``size``, without aliasing.

    Args:
        frames: ``(B, H, W, C)`` uint8 or float, padded to a common canvas.
        windows: ``(B, 4)`` left, top, right, bottom in pixels (pixel centres are whole numbers).
        size: of the patch in pixels.
        sizes: ``(B, 2)`` true width and height of each frame on the canvas.
        fill: ``(B, C)`` value used outside the frame.

    Returns:
        ``(B, C, size, size)`` float32. Patch pixel j lies at left + (j + ½)(right − left)/size.
    """
    if frames.device.type != "cpu":
        return _resample(frames, windows, size, sizes, fill)
    far = (windows[:, 2:] - windows[:, :2] > _FAR * sizes).any(dim=1)
    if not far.any():
        return _read_in_parts(frames, windows, size, sizes, fill)
    result = fill.new_empty(len(frames), frames.shape[3], size, size)
    for rows, resample in ((far, _resample), (~far, _read_in_parts)):
        if rows.any():
            result[rows] = resample(frames[rows], windows[rows], size, sizes[rows], fill[rows])
    return result


def _read_in_parts(
    frames: torch.Tensor, windows: torch.Tensor, size: int, sizes: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    if len(frames) <= _READ_TOGETHER:
        return _read(frames, windows, size, sizes, fill)
    return _in_parts(_read, _READ_TOGETHER, frames, windows, size, sizes, fill)


def _in_parts(
    resample: Callable[..., torch.Tensor],
    together: int,
    frames: torch.Tensor,
    windows: torch.Tensor,
    size: int,
    sizes: torch.Tensor,
    fill: torch.Tensor,
) -> torch.Tensor:
    """:func:`crop` by a function that takes ``together`` frames at once."""
    parts = zip(*(t.split(together) for t in (frames, windows, sizes, fill)), strict=True)
    return torch.cat([resample(f, w, size, s, c) for f, w, s, c in parts])


def _resample(
    frames: torch.Tensor, windows: torch.Tensor, size: int, sizes: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    """:func:`crop` as two matrix products with all pixels of the frames."""
    batch, height, width, channels = frames.shape
    together = max(1, _TOGETHER // (height * width * channels))
    if batch > together:  # as float32, many large frames fill a GPU
        return _in_parts(_resample, together, frames, windows, size, sizes, fill)
    across, down = _filters(windows, size, (width, height), sizes)  # (B, S, W), (B, S, H)
    middle = down @ frames.float().reshape(batch, height, width * channels)  # (B, S, W·C)
    middle = middle.reshape(batch, size, width, channels).permute(0, 3, 1, 2)  # (B, C, S, W)
    product = middle @ across.transpose(1, 2)[:, None]  # (B, C, S, S)
    inside = down.sum(dim=2)[:, :, None] * across.sum(dim=2)[:, None, :]  # share of each pixel
    return torch.addcmul(product, fill[:, :, None, None], (1 - inside)[:, None])


def _read(
    frames: torch.Tensor, windows: torch.Tensor, size: int, sizes: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    """:func:`crop` as products of bands of each patch with the pixels that they read.

    A filter is a few pixels wide, so a product with all pixels of a window would be mostly zeros. Finding
    out which pixels are read requires waiting for the device, so this is for the CPU.
    """
    sides = (
        windows.unflatten(1, (2, 2)).transpose(0, 1).flatten(1).double()
    )  # x, y of each: (2, 2B)
    pixels, weights, counts = _bands(sides[0], sides[1], size, sizes.flatten())
    bands = [
        (there[:, :count], filters[..., :count])
        for there, filters, count in zip(pixels, weights, counts, strict=True)
    ]
    result = torch.stack(
        [
            _read_one(frame, size, *across, *down)
            for frame, across, down in zip(frames, bands[::2], bands[1::2], strict=True)
        ]
    )
    inside = weights.sum(dim=3).flatten(1)[:, :size].unflatten(0, (-1, 2))  # (B, 2, S)
    share = inside[:, 1, :, None] * inside[:, 0, None, :]  # of each pixel
    return result.addcmul_(fill[:, :, None, None], (1 - share)[:, None])


def _read_one(
    frame: torch.Tensor,
    size: int,
    columns: torch.Tensor,
    across: torch.Tensor,
    rows: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """Apply the bands of both sides to one frame ``(H, W, C)``: ``(C, size, size)``, 0 outside the frame."""
    left, right = int(columns[0, 0]), int(columns[-1, -1]) + 1
    seen = frame[:, left:right].index_select(0, rows.flatten())  # (G·K, w, C)
    width, channels = seen.shape[1:]
    middle = down @ seen.reshape(*rows.shape, width * channels).float()  # (G, R, w·C)
    middle = middle.reshape(-1, width, channels)[:size].transpose(0, 1).contiguous()  # (w, S, C)
    read = middle.index_select(0, (columns - left).flatten())
    result = across @ read.reshape(*columns.shape, size * channels)  # (G, R, S·C)
    return result.reshape(-1, size, channels)[:size].permute(2, 1, 0)


def _bands(
    starts: torch.Tensor, stops: torch.Tensor, size: int, limits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Triangle filters of A sides, each in G bands of R patch pixels.

    Args:
        starts: ``(A,)`` float64, of the windows.
        stops: ``(A,)`` float64.
        size: of the patch; the bands have G·R ≥ size patch pixels, of which the last ones are unused.
        limits: ``(A,)`` int64, of the frames.

    Returns:
        The frame pixels that each band reads, ``(A, G, K)`` int64, ascending, inside the frame; their weights
        ``(A, G, R, K)`` float32; and, for each side, how many of the K are used: the others have weight 0.
    """
    step = ((stops - starts) / size)[:, None, None]
    radius = step.clamp_min(1)
    bands = math.ceil(size / _BAND)
    order = (torch.arange(bands * _BAND, dtype=torch.float64) + 0.5).reshape(bands, _BAND)
    centres = starts[:, None, None] + step * order  # (A, G, R)
    first = (centres[..., :1] - radius).floor()
    counts = (((_BAND - 1) * step + 2 * radius).ceil() + 1).flatten().int().tolist()
    offsets = torch.arange(max(counts))
    distance = ((centres - first).float()[..., None] - offsets).abs_()
    weights = distance.div_(-radius.float()[..., None]).add_(1).clamp_min_(0)
    weights /= weights.sum(dim=3, keepdim=True)  # over all pixels, in the frame or not
    pixels = first.long() + offsets
    there = torch.minimum(pixels.clamp_min(0), limits[:, None, None] - 1)
    return there, weights.mul_((pixels == there)[:, :, None]), counts


def to_patch(points: Array, windows: Array, size: int) -> Array:
    """Frame coordinates → patch coordinates (pixel centres are whole numbers in both).

    Args:
        points: ``(..., N, 2)`` x, y.
        windows: ``(..., 4)``.
        size: of the patch.

    Returns:
        ``(..., N, 2)``.
    """
    origin, extent = windows[..., None, :2], windows[..., None, 2:] - windows[..., None, :2]
    return (points - origin) * size / extent - 0.5


def to_frame(points: Array, windows: Array, size: int) -> Array:
    """Patch coordinates → frame coordinates: the inverse of :func:`to_patch`."""
    origin, extent = windows[..., None, :2], windows[..., None, 2:] - windows[..., None, :2]
    return (points + 0.5) * extent / size + origin


def grid_lines(
    rbbox: torch.Tensor, windows: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the columns and rows of patch pixels lie in the frame, from the middle of each box.

    Args:
        rbbox: ``(B, 5)``.
        windows: ``(B, 4)``.
        size: of the patch.

    Returns:
        x of the columns and y of the rows, ``(B, size)`` each, in pixels of the frame.
    """
    steps = torch.arange(size, device=rbbox.device, dtype=rbbox.dtype)[:, None].expand(size, 2)
    lines = to_frame(steps, windows, size) - rbbox[:, None, :2]
    return lines[..., 0], lines[..., 1]


def fill_box(rbbox: torch.Tensor, windows: torch.Tensor, size: int) -> torch.Tensor:
    """The box drawn as an image in its patch: the network's fourth input channel.

    Args:
        rbbox: ``(B, 5)``.
        windows: ``(B, 4)``.
        size: of the patch.

    Returns:
        ``(B, 1, size, size)`` float32 in [0, 1]: the share of each pixel that the box covers, with
        a linear ramp one pixel wide at the border.
    """
    extent = windows[:, 2:] - windows[:, :2]
    pixel = extent.prod(dim=-1, keepdim=True).sqrt() / size  # of the patch, in frame pixels
    # Relative to the box and in patch pixels, float32 is as accurate as float64, and twice as fast.
    x, y = (v / pixel for v in grid_lines(rbbox, windows, size))
    cos, sin = rbbox[:, 4:].cos(), rbbox[:, 4:].sin()
    along = ((x * cos).float()[:, None, :] + (y * sin).float()[:, :, None]).abs_()  # (B, S, S)
    beside = ((y * cos).float()[:, :, None] - (x * sin).float()[:, None, :]).abs_()
    half_width, half_height = (rbbox[:, 2:4] / (2 * pixel) + 0.5).float()[..., None, None].unbind(1)
    return torch.minimum(half_width - along, half_height - beside).clamp_(0, 1)[:, None]


def normalize(images: torch.Tensor) -> torch.Tensor:
    """RGB in [0, 255] → the network's units, about ±2."""
    return (images / 63.75).sub_(2)


def network_input(
    images: torch.Tensor, rbbox: torch.Tensor, windows: torch.Tensor, channels: int
) -> torch.Tensor:
    """A network's input: the normalised patch and, as a fourth channel, the box from −1 to 1.

    Args:
        images: ``(B, 3, S, S)`` RGB in [0, 255].
        rbbox: ``(B, 5)`` boxes through which the frames are seen.
        windows: ``(B, 4)`` of the patches.
        channels: of the network's input, 3 or 4; with 3 the network does not get the box.

    Returns:
        ``(B, channels, S, S)`` float32.
    """
    normalized = normalize(images)
    if channels == 3:
        return normalized
    box = fill_box(rbbox, windows, images.shape[-1]).mul_(2).sub_(1)
    return torch.cat([normalized, box], dim=1)


def _filters(
    windows: torch.Tensor, size: int, extents: tuple[int, int], limits: torch.Tensor
) -> list[torch.Tensor]:
    """Triangle filters of both sides, ``(B, size, extent)``; a row sums to less than 1 at an edge."""
    corners = windows.T.unflatten(0, (2, 2))  # first and last, of x and y: (2, 2, B)
    step = ((corners[1] - corners[0]) / size)[..., None]  # (2, B, 1) frame pixels per patch pixel
    order = torch.arange(size, device=windows.device) + 0.5
    centres = corners[0][..., None] + order * step  # (2, B, S)
    radius, floor = step.clamp_min(1), centres.floor()
    fraction = centres - floor
    total = _side_sum(fraction, radius) + _side_sum(1 - fraction, radius)
    slope, share = (-1 / (radius * total)).float()[..., None], (1 / total).float()[..., None]
    nearest, fraction = floor.float()[..., None], fraction.float()[..., None]
    result = []
    for axis, extent in enumerate(extents):
        pixels = torch.arange(extent, device=windows.device, dtype=torch.float32)
        there = pixels < limits[:, axis, None]
        pixels = torch.where(there, pixels, _NOWHERE)[:, None]  # (B, 1, extent)
        # Differences of whole numbers are exact in float32, which takes half the memory and time.
        distance = (pixels - nearest[axis]).sub_(fraction[axis]).abs_()
        weights = torch.addcmul(share[axis], distance, slope[axis], out=distance)
        result.append(weights.clamp_min_(0))
    return result


def _side_sum(nearest: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Σ of max(0, 1 − d/radius) over d = nearest, nearest + 1, …, in closed form."""
    count = (radius - nearest).ceil().clamp_min(0)
    return count - (count * nearest + count * (count - 1) / 2) / radius
