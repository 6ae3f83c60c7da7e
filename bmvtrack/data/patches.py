"""The patch φ: an axis-aligned window around a box, resampled to the network's input.

The window is the box's axis-aligned bounds, padded on each side by (w + h)/4 of those bounds,
resized without keeping aspect. It is not clipped at the frame's edge; what lies outside is the
frame's mean colour. So patch coordinates are an affine map of frame coordinates, known exactly.

Resampling is separable: one small matrix a side, of triangle filters as wide as the scale demands,
so that shrinking windows do not alias. A batch of patches is two batched matrix products on any
device.
"""

from __future__ import annotations

import torch

from bmvtrack import geometry
from bmvtrack.arrays import Array, namespace


def window(rbbox: Array) -> Array:
    """The window of φ around each box.

    Args:
        rbbox: ``(..., 5)``.

    Returns:
        ``(..., 4)``: left, top, right, bottom in pixels of the frame.
    """
    xp = namespace(rbbox)
    left, top, right, bottom = (geometry.bounds(rbbox)[..., i] for i in range(4))
    pad = (right - left + bottom - top) / 4
    result: Array = xp.stack([left - pad, top - pad, right + pad, bottom + pad], axis=-1)
    return result


def box_of_whole(sizes: Array) -> Array:
    """The box whose window is the whole frame: upright, in the middle, about half as wide and high.

    Args:
        sizes: ``(..., 2)`` width and height of frames in pixels. No box has the window of a frame that
            is over three times as long as it is high: there one side is the least that a box may have.

    Returns:
        ``(..., 5)`` boxes.
    """
    xp = namespace(sizes)
    # φ pads each side of a box w×h by (w + h)/4: it is as large as W×H if w = W − (W + H)/4.
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
        fill: ``(B, C)`` value of what lies outside the frame.

    Returns:
        ``(B, C, size, size)`` float32. Patch pixel j lies at left + (j + ½)(right − left)/size.
    """
    everything = slice(0, frames.shape[1]), slice(0, frames.shape[2])
    if frames.device.type != "cpu":
        return _resample(frames, windows, size, sizes, fill, *everything)
    # On the CPU each window reads only the pixels it needs; on a device this would wait for it.
    reach = (windows[:, 2:] - windows[:, :2]).amax(dim=1, keepdim=True) / size + 1
    first = (windows[:, :2] - reach).floor().clamp_min(0).long().tolist()
    limits = (windows[:, 2:] + reach).ceil().long() + 1
    last = torch.minimum(limits, sizes.long()).tolist()
    parts = []
    for i, ((left, top), (right, bottom)) in enumerate(zip(first, last, strict=True)):
        item = slice(i, i + 1)
        ranges = slice(top, max(bottom, top)), slice(left, max(right, left))
        parts.append(_resample(frames[item], windows[item], size, sizes[item], fill[item], *ranges))
    return torch.cat(parts)


def _resample(
    frames: torch.Tensor,
    windows: torch.Tensor,
    size: int,
    sizes: torch.Tensor,
    fill: torch.Tensor,
    rows: slice,
    columns: slice,
) -> torch.Tensor:
    """:func:`crop`, reading only the given rows and columns of the frames."""
    across = _filters(windows[:, 0], windows[:, 2], size, columns, sizes[:, 0])  # (B, S, w)
    down = _filters(windows[:, 1], windows[:, 3], size, rows, sizes[:, 1])  # (B, S, h)
    seen = frames[:, rows, columns].float()
    batch, height, width, channels = seen.shape
    middle = down @ seen.reshape(batch, height, width * channels)  # (B, S, w·C)
    middle = middle.reshape(batch, size, width, channels).permute(0, 3, 1, 2)  # (B, C, S, w)
    result = middle @ across.transpose(1, 2)[:, None]  # (B, C, S, S)
    inside = down.sum(dim=2)[:, :, None] * across.sum(dim=2)[:, None, :]  # share of each pixel
    return result + fill[:, :, None, None] * (1 - inside)[:, None]


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
    """The box itself as a picture in its patch: the network's fourth input channel.

    Args:
        rbbox: ``(B, 5)``.
        windows: ``(B, 4)``.
        size: of the patch.

    Returns:
        ``(B, 1, size, size)`` float32 in [0, 1]: the share of each pixel that the box covers, with
        a linear ramp of one pixel at the border.
    """
    extent = windows[:, 2:] - windows[:, :2]
    pixel = extent.prod(dim=-1, keepdim=True).sqrt() / size  # of the patch, in frame pixels
    # Relative to the box and in patch pixels, float32 is as good as float64, and twice as fast.
    x, y = (v / pixel for v in grid_lines(rbbox, windows, size))
    cos, sin = rbbox[:, 4:].cos(), rbbox[:, 4:].sin()
    along = ((x * cos).float()[:, None, :] + (y * sin).float()[:, :, None]).abs()  # (B, S, S)
    beside = ((y * cos).float()[:, :, None] - (x * sin).float()[:, None, :]).abs()
    half_width, half_height = (rbbox[:, 2:4] / (2 * pixel) + 0.5).float()[..., None, None].unbind(1)
    return torch.minimum(half_width - along, half_height - beside).clamp(0, 1)[:, None]


def _filters(
    start: torch.Tensor, stop: torch.Tensor, size: int, extent: slice, limits: torch.Tensor
) -> torch.Tensor:
    """Triangle filters of one side, ``(B, size, pixels)``; a row sums to less than 1 at an edge."""
    step = ((stop - start) / size)[:, None]  # (B, 1) frame pixels per patch pixel
    centres = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step  # (B, S)
    radius = step.clamp_min(1)
    fraction = centres - centres.floor()
    total = _side_sum(fraction, radius) + _side_sum(1 - fraction, radius)
    pixels = torch.arange(extent.start, extent.stop, device=start.device)
    distance = (pixels - centres[..., None]).abs()
    weights = (1 - distance / radius[..., None]).clamp_min(0) / total[..., None]
    return (weights * (pixels < limits[:, None])[:, None, :]).float()


def _side_sum(nearest: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Σ of max(0, 1 − d/radius) over d = nearest, nearest + 1, …, in closed form."""
    count = (radius - nearest).ceil().clamp_min(0)
    return count - (count * nearest + count * (count - 1) / 2) / radius
