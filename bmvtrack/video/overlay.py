"""Drawing on the frames of a tracked video and on its patches."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch

from bmvtrack import geometry
from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.data import patches
from bmvtrack.tracker import Result
from bmvtrack.visualization import (
    PREDICTED_COLOUR,
    TRUE_COLOUR,
    Colour,
    draw_box,
    draw_ellipse,
    draw_mask,
    draw_text,
    text_size,
)

_COLOURS: tuple[Colour, ...] = (
    PREDICTED_COLOUR,
    (86, 180, 233),
    (240, 228, 66),
    (204, 121, 167),
    (0, 158, 115),
    (0, 114, 178),
)
"""Okabe and Ito's palette for colour-blind readers; the first colour is that of all predictions."""
_PATCH_SIDE = 256


def colour_of(index: int) -> Colour:
    """The colour of the object with this index."""
    return _COLOURS[index % len(_COLOURS)]


def draw_first(frame: ByteArray, boxes: Mapping[int, FloatArray], text: str) -> ByteArray:
    """A copy of the first frame with the given boxes ``(5,)``."""
    image = np.array(frame)
    for i, box in enumerate(boxes.values()):
        draw_box(image, box, colour_of(i))
    draw_text(image, text)
    return image


def draw_results(
    frame: ByteArray, results: Mapping[int, Result], true_box: FloatArray | None, text: str
) -> ByteArray:
    """A copy of a frame with each object's mask, box, and 2σ ellipse of its predicted centre.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB.
        results: results by object id; if there are several, the ids are written beside the boxes.
        true_box: ``(5,)``, drawn in green; None: not drawn.
        text: text in the upper left corner.
    """
    image = np.array(frame)
    colours = [colour_of(i) for i in range(len(results))]
    for result, colour in zip(results.values(), colours, strict=True):
        draw_mask(image, result.mask, colour)
    if true_box is not None:
        draw_box(image, true_box, TRUE_COLOUR)
    for result, colour in zip(results.values(), colours, strict=True):
        draw_box(image, result.rbbox, colour)
        draw_ellipse(image, result.centre, result.centre_covariance, colour)
    if len(results) > 1:
        for object_id, result in results.items():
            draw_text(image, str(object_id), label_corner(result.rbbox, image))
    draw_text(image, text)
    return image


def label_corner(rbbox: FloatArray, image: ByteArray) -> tuple[float, float]:
    """A position beside the topmost corner of a box, below the line of text at the top, inside the image."""
    height, width = image.shape[:2]
    corners = geometry.corners(rbbox)
    x, y = corners[corners[:, 1].argmin()]
    line = 2 * text_size(image)
    return float(np.clip(x, 0, width - line)), float(np.clip(y, line, height - line))


def patch_picture(
    frame: ByteArray, rbbox: FloatArray, probabilities: FloatArray | None, colour: Colour
) -> ByteArray:
    """The patch that the network saw through a box, and beside it the same patch with mask and box.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB.
        rbbox: ``(5,)`` box that the frame was seen through.
        probabilities: ``(S, S)`` probabilities of the object; None: there is no mask.
        colour: colour of the mask.

    Returns:
        ``(256, 512, 3)`` uint8 RGB.
    """
    window = patches.window(torch.from_numpy(np.stack([rbbox])))
    height, width = frame.shape[:2]
    fill = torch.tensor([cv2.mean(frame)[:3]])
    sizes = torch.tensor([[width, height]])
    patch = patches.crop(torch.from_numpy(frame)[None], window, _PATCH_SIDE, sizes, fill)
    seen = patch[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    marked = np.array(seen)
    if probabilities is not None:
        enlarged = cv2.resize(probabilities, (_PATCH_SIDE, _PATCH_SIDE))
        draw_mask(marked, enlarged > 0.5, colour)
    corners = patches.to_patch(geometry.corners(rbbox), window[0].numpy(), _PATCH_SIDE)
    outline = np.round(corners).astype(np.int32)
    cv2.polylines(marked, [outline], True, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([seen, marked], axis=1)
