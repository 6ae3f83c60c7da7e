"""Augmentation of training samples: colours, flips, other things behind the objects.

Nothing here draws random numbers: the caller draws them from one generator and passes them in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from bmvtrack.data.batch import Batch


@dataclass(frozen=True)
class Augmentation:
    """Random motion of the box, and random colours, of a training sample.

    Standard deviations of the motion are given at strength 1; each sample draws one of ``strengths``.
    """

    log_scale: float = 0.10
    """standard deviation of log Δs on each side"""
    turn: float = 0.122
    """standard deviation of θ, radians"""
    shift: float = 0.11
    """standard deviation on each axis, in units of √(w·h)"""
    strengths: tuple[float, ...] = (0.5, 1.0, 1.6)
    """factors of the three above"""
    video: float = 0.5
    """another factor, used when the box of the frame before is moved, which is wrong already"""
    colour: float = 0.25
    """change of brightness, contrast and saturation, uniform in ±this"""
    blur: float = 0.2
    """share of samples that are blurred"""
    template: float = 0.3
    """strength of the motion of the box that a template is seen through: user-drawn boxes are that inexact"""
    distractors: float = 0.0
    """share of samples with another sample's object behind their own"""
    backgrounds: float = 0.0
    """share of samples with another sample's patch, including its object, as their background"""
    whole_images: float = 0.0
    """share of stills that are shown whole, as in saliency evaluation: everything in the mask is the
    object, nothing else specifies it, and there is no motion to learn"""
    own_boxes: float = 0.0
    """share of a video's samples that are seen through the box that the network reached in the frame
    before, when that was last drawn, if the box had not lost the object: the network's errors are not
    random (DAgger, Ross et al. 2011)"""


def colour_jitter(
    images: torch.Tensor, chance: torch.Tensor, augmentation: Augmentation
) -> torch.Tensor:
    """Change brightness, contrast and saturation of images, and blur some of them.

    Args:
        images: ``(B, 3, S, S)`` in [0, 255].
        chance: ``(5, B)`` uniform in [0, 1): for brightness, contrast, saturation, whether an image is
            blurred, and how much.
        augmentation: the amount of each.
    """
    uniform = chance[..., None, None, None]
    brightness, contrast, saturation = 1 + augmentation.colour * (2 * uniform[:3] - 1)
    # Combined: s·c·b times the pixel, (1 − s)·c·b times its grey, (1 − c)·b times the mean.
    changed = contrast * brightness
    grey = images.mean(dim=1, keepdim=True)
    offset = (brightness - changed) * grey.mean(dim=(1, 2, 3), keepdim=True)
    offset = torch.addcmul(offset, grey, changed - saturation * changed)
    *others, height, width = images.shape
    padded = images.new_empty(*others, height + 2, width + 2)
    inside = padded[..., 1:-1, 1:-1]
    torch.addcmul(offset, images, saturation * changed, out=inside)
    amount = (uniform[3] < augmentation.blur) * uniform[4]
    return torch.lerp(inside, _blurred(padded), amount).clamp_(0, 255)


def _blurred(padded: torch.Tensor) -> torch.Tensor:
    """Means over 3×3 pixels of ``(..., H + 2, W + 2)``; the border is first filled by replication."""
    for here, there in ((0, 1), (-1, -2)):
        padded[..., here, :] = padded[..., there, :]
    for here, there in ((0, 1), (-1, -2)):
        padded[..., here] = padded[..., there]
    rows = torch.lerp(padded[..., :-2, :], padded[..., 1:-1, :], 0.5)  # faster than a pooling
    rows.lerp_(padded[..., 2:, :], 1 / 3)
    return torch.lerp(rows[..., :-2], rows[..., 1:-1], 0.5).lerp_(rows[..., 2:], 1 / 3)


def with_others(
    images: torch.Tensor,
    masks: torch.Tensor,
    chosen: torch.Tensor,
    chance: torch.Tensor,
    augmentation: Augmentation,
) -> torch.Tensor:
    """Put content of the preceding sample behind the objects of some images.

    This is either its object alone, a distractor, or its whole patch, so that the object appears before
    another background, which contains an object that is not the target.

    Args:
        images: ``(B, 3, S, S)``.
        masks: ``(B, 1, S, S)``, the share of each pixel that is object.
        chosen: ``(B,)`` uniform in [0, 1): decides which samples, and which of the two.
        chance: ``(4, B)`` uniform in [0, 1): whether it is flipped, its size, and its position.
        augmentation: the shares.
    """
    whole = chosen >= augmentation.distractors
    # A distractor is 1/factor times as large as in its own patch. A background is enlarged to cover
    # everything: between the centres of its outermost pixels, beyond which sampling fades to black.
    factor = torch.where(whole, 0.5 + 0.5 * chance[1], 0.8 + 1.2 * chance[1])
    reach = torch.where(whole, (1 - factor) * (1 - 1 / images.shape[-1]), 0.8 * factor)
    flip = torch.where(chance[0] < 0.5, -1.0, 1.0)
    colours = images.shape[1]
    layers = images.new_empty(len(images), colours + 1, *images.shape[2:])
    for part, those in ((layers[:, :colours], images), (layers[:, colours:], masks)):
        part[1:], part[:1] = those[:-1], those[-1:]  # of the preceding sample
    other = _placed(layers, factor, flip, reach[:, None] * (2 * chance[2:].T - 1))
    used = chosen < augmentation.distractors + augmentation.backgrounds
    whole, used = whole[:, None, None, None], used[:, None, None, None]
    share = torch.where(whole, 1.0, other[:, colours:]) * (1 - masks) * used
    return torch.lerp(images, other[:, :colours], share)


def _placed(
    layers: torch.Tensor, factor: torch.Tensor, flip: torch.Tensor, centre: torch.Tensor
) -> torch.Tensor:
    """Resample images at ``factor`` times the spacing around ``centre``, given in halves of their side."""
    count, _, height, width = layers.shape
    # Torch's affine_grid uses a matrix product for this, which GPUs round to TF32.
    grid = layers.new_empty(count, height, width, 2)
    for axis, (side, step) in enumerate(((width, flip * factor), (height, factor))):
        middles = (2 * torch.arange(side, device=layers.device) + 1) / side - 1
        places = torch.addcmul(centre[:, axis, None], step[:, None], middles)
        grid[..., axis] = places[:, None] if axis == 0 else places[:, :, None]
    return functional.grid_sample(layers, grid, align_corners=False)


def flipped(batch: Batch, flip: torch.Tensor) -> Batch:
    """Flip the samples where ``flip``, ``(B,)`` boolean, is true left to right, with their motion."""

    def turned(images: torch.Tensor) -> torch.Tensor:
        return torch.where(flip[:, None, None, None], images.flip(-1), images)

    return Batch(
        turned(batch.patches),
        torch.where(flip[:, None, None], batch.labels.flip(-1), batch.labels),
        batch.boxes,
        motion_of_mirrored(batch.motion, flip),
        None if batch.template is None else turned(batch.template),
    )


def motion_of_mirrored(motion: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Motion ``(B, 5)`` in ``object`` coordinates of samples flipped left to right; its own inverse."""
    signs = torch.ones_like(motion[0])
    signs[2:4] = -1.0  # a tensor from a list would wait for the device
    return torch.where(flip[:, None], motion * signs, motion)
