"""What a network is shown of frames: patches, with the truth on the same pixels."""

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
        images: ``(B, S, S, 3)`` float32, RGB in [0, 1], for people.
        inputs: ``(B, 3 or 4, S, S)`` float32, what the network takes.
        true: ``(B, S, S)`` boolean, the object; False everywhere where no masks were given.
        inside: ``(B, S, S)`` boolean, where the patch shows the frame and not what is beyond it.
        windows: ``(B, 4)`` float64, where the patch lies in the frame.
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
    """Patches φ around boxes, as in training: the paper's, and the segmentation protocols'.

    Args:
        network: that the patches are for; its fourth input channel, where it has one, is the box.
        frames: B frames ``(H, W, 3)`` uint8 RGB, of any sizes.
        boxes: ``(B, 5)`` rotated boxes in pixels.
        masks: B true masks ``(H, W)``, for who wants to compare; None: nobody knows.
    """
    windows = patches.window(boxes)
    if network.input_channels == 3:  # the paper's, which are not told the box
        windows = patches.clipped(windows, _sizes(frames))
    return _view(network, frames, boxes, windows, masks)


def view_whole(
    network: MultivariationalNetwork,
    frames: Sequence[ByteArray],
    masks: Sequence[BoolArray] | None = None,
) -> Views:
    """Whole images as patches, resized without keeping aspect: nobody says where the object is.

    A network that wants to be told a box is told the one whose patch φ is the whole image: upright
    and in the middle, about half as wide and half as high. It is the only box with which the image
    looks as patches do in training (as some do exactly with ``--whole-images``), at the cost of a
    hint that the object is near the middle.

    Args:
        network: that the patches are for.
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
    """Frames, masks and what is frame at all, ``(B, H, W, 5)`` uint8; and true sizes, ``(B, 2)``."""
    sizes = torch.tensor([frame.shape[1::-1] for frame in frames])
    width, height = sizes.amax(dim=0).tolist()
    layers = np.zeros((len(frames), height, width, 5), dtype=np.uint8)
    for layer, frame, mask in zip(layers, frames, masks, strict=True):
        held = layer[: frame.shape[0], : frame.shape[1]]
        held[..., :3], held[..., 3], held[..., 4] = frame, mask, 1
    return torch.from_numpy(layers), sizes
