"""The patches of frames that a network sees, with the true masks on the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data import patches
from bmvtrack.models import MultivariationalNetwork


@dataclass(frozen=True)
class Views:
    """B patches.

    Attributes:
        images: ``(B, S, S, 3)`` float32, RGB in [0, 1], for display.
        inputs: ``(B, 3 or 4, S, S)`` float32, input of the network.
        true: ``(B, S, S)`` boolean, the true masks; all False if no masks were given.
        inside: ``(B, S, S)`` boolean, where the patch lies inside the frame.
        windows: ``(B, 4)`` float64, the windows of the patches in the frames.
    """

    images: torch.Tensor
    inputs: torch.Tensor
    true: torch.Tensor
    inside: torch.Tensor
    windows: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)


def view_objects(
    network: MultivariationalNetwork,
    frames: Sequence[ByteArray],
    boxes: FloatArray,
    masks: Sequence[BoolArray] | None = None,
) -> Views:
    """Patches φ around boxes, as in training, in the paper and in the segmentation protocols.

    Args:
        network: network that the patches are for; its fourth input channel, if it has one, is the box.
        frames: B frames ``(H, W, 3)`` uint8 RGB, of any sizes.
        boxes: ``(B, 5)`` rotated boxes in pixels.
        masks: B true masks ``(H, W)`` for :attr:`Views.true`; None: unknown.
    """
    windows = patches.window(boxes)
    if network.input_channels == 3:  # a network of paper mode, which does not get the box
        windows = patches.clipped(windows, _sizes(frames))
    return _view(network, frames, boxes, windows, masks)


def view_whole(
    network: MultivariationalNetwork,
    frames: Sequence[ByteArray],
    masks: Sequence[BoolArray] | None = None,
) -> Views:
    """Whole images as patches, resized without keeping their aspect ratio, with no object location given.

    A network that takes a box gets the one whose patch φ is the whole image: axis-aligned and centred,
    about half as wide and half as high. It is the only box with which the image looks like a training patch
    (with ``--whole-images``, some are made exactly so), at the cost of a hint that the object is near the
    centre.

    Args:
        network: network that the patches are for.
        frames: B images ``(H, W, 3)`` uint8 RGB, of any sizes.
        masks: see :func:`view_objects`.
    """
    sizes = _sizes(frames)
    windows = np.concatenate([np.full_like(sizes, -0.5), sizes - 0.5], axis=1)
    return _view(network, frames, patches.box_of_whole(sizes), windows, masks)


def _sizes(frames: Sequence[ByteArray]) -> FloatArray:
    return np.array([frame.shape[1::-1] for frame in frames], dtype=np.float64)


def _view(
    network: MultivariationalNetwork,
    frames: Sequence[ByteArray],
    boxes: FloatArray,
    windows: FloatArray,
    masks: Sequence[BoolArray] | None,
) -> Views:
    if masks is None:
        masks = [np.zeros(frame.shape[:2], dtype=bool) for frame in frames]
    device = next(network.parameters()).device
    size = network.input_size
    layers, sizes = _canvas(frames, masks)
    means = [[*frame.mean(axis=(0, 1)), 0.0, 0.0] for frame in frames]
    where, rbbox = (torch.as_tensor(array).to(device) for array in (windows, boxes))
    seen = patches.crop(
        layers.to(device), where, size, sizes.to(device), torch.tensor(means).float().to(device)
    )
    inputs = patches.network_input(seen[:, :3], rbbox, where, network.input_channels)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    images = (seen[:, :3] / 255).permute(0, 2, 3, 1)
    return Views(images, inputs, seen[:, 3] > 0.5, seen[:, 4] > 0.5, where)


def _canvas(
    frames: Sequence[ByteArray], masks: Sequence[BoolArray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames, masks and validity, padded, ``(B, H, W, 5)`` uint8; and the true sizes, ``(B, 2)``."""
    sizes = torch.tensor([frame.shape[1::-1] for frame in frames])
    width, height = sizes.amax(dim=0).tolist()
    layers = np.zeros((len(frames), height, width, 5), dtype=np.uint8)
    for layer, frame, mask in zip(layers, frames, masks, strict=True):
        held = layer[: frame.shape[0], : frame.shape[1]]
        held[..., :3], held[..., 3], held[..., 4] = frame, mask, 1
    return torch.from_numpy(layers), sizes
