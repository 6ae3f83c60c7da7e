"""Drawing boxes, masks and text on frames, and writing frames as a video."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.files import whole_file

Colour = tuple[int, int, int]

TRUE_COLOUR: Colour = (60, 220, 90)
PREDICTED_COLOUR: Colour = (255, 140, 20)
MASK_COLOUR: Colour = (70, 150, 255)
_MASK_OPACITY = 0.45
_SUBPIXEL_BITS = 4  # cv2 takes fixed-point coordinates


def draw_overlay(
    frame: ByteArray,
    true_box: FloatArray | None = None,
    predicted_box: FloatArray | None = None,
    mask: BoolArray | None = None,
    text: str | None = None,
) -> ByteArray:
    """A copy of a frame with boxes, mask and a line of text; lines scale with its size.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB.
        true_box: ``(5,)``, drawn green; nothing if NaN.
        predicted_box: ``(5,)``, drawn orange; nothing if NaN.
        mask: ``(H, W)``, tinted blue.
        text: in the upper left corner.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    image = np.array(frame)
    if mask is not None:
        tinted = (1 - _MASK_OPACITY) * image[mask] + _MASK_OPACITY * np.array(MASK_COLOUR)
        image[mask] = tinted.astype(np.uint8)
    thickness = max(1, round(min(image.shape[:2]) / 200))
    for box, colour in ((true_box, TRUE_COLOUR), (predicted_box, PREDICTED_COLOUR)):
        if box is not None and np.isfinite(box).all():
            _draw_box(image, box, colour, thickness)
    return image if text is None else _with_text(image, text)


def write_video(path: Path, frames: Iterable[ByteArray], fps: float) -> None:
    """Write an H.264 MP4 that browsers play, whole or not at all.

    Args:
        path: ending in ``.mp4``.
        frames: ``(H, W, 3)`` uint8 RGB, all of one size, at least one; an odd side is extended by
            one pixel, as the format demands.
        fps: frames per second.
    """
    import imageio.v2 as imageio  # brought by moviepy; only videos need it

    with whole_file(path) as temporary:
        writer = imageio.get_writer(
            temporary, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2
        )
        with closing(writer):  # imageio's own context leaves ffmpeg running on errors
            for frame in frames:
                height, width = frame.shape[:2]
                even = ((0, height % 2), (0, width % 2), (0, 0))
                writer.append_data(np.pad(frame, even, mode="edge"))


def _draw_box(image: ByteArray, box: FloatArray, colour: Colour, thickness: int) -> None:
    # A dark line underneath keeps the colour legible on any background.
    points = np.round(geometry.corners(box) * 2**_SUBPIXEL_BITS).astype(np.int32)
    for line_colour, width in (((0, 0, 0), thickness + 2), (colour, thickness)):
        cv2.polylines(image, [points], True, line_colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)


def _with_text(image: ByteArray, text: str) -> ByteArray:
    # Not cv2.putText: between OpenCV 4 and 5 its letters changed width with their thickness, so
    # that a dark outline no longer lies under the text.
    size = max(11, round(min(image.shape[:2]) / 22))
    canvas = Image.fromarray(image)
    ImageDraw.Draw(canvas).text(
        (size / 2, size / 3),
        text,
        fill=(255, 255, 255),
        font=_font(size),
        stroke_width=max(1, size // 10),
        stroke_fill=(0, 0, 0),
    )
    return np.array(canvas)


@lru_cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
