"""Drawing boxes, masks, ellipses and text on frames, and writing frames as a video."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.errors import UserError
from bmvtrack.files import atomic_file

Colour = tuple[int, int, int]

TRUE_COLOUR: Colour = (60, 220, 90)
PREDICTED_COLOUR: Colour = (255, 140, 20)
MASK_COLOUR: Colour = (70, 150, 255)
_MASK_OPACITY = 0.45
_LARGEST_FRAME = 16384  # pixels on a side, H.264's limit
_FRAMES_PER_KEYFRAME = 24  # few enough to jump to any frame of a video instantly
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
        draw_mask(image, mask)
    for box, colour in ((true_box, TRUE_COLOUR), (predicted_box, PREDICTED_COLOUR)):
        if box is not None and np.isfinite(box).all():
            draw_box(image, box, colour)
    if text is not None:
        draw_text(image, text)
    return image


def draw_mask(image: ByteArray, mask: BoolArray, colour: Colour = MASK_COLOUR) -> None:
    """Tint the pixels of a mask ``(H, W)``, in place."""
    tinted = (1 - _MASK_OPACITY) * image[mask] + _MASK_OPACITY * np.array(colour)
    image[mask] = tinted.astype(np.uint8)


def draw_box(image: ByteArray, box: FloatArray, colour: Colour) -> None:
    """Draw the outline of a rotated box ``(5,)``, in place."""
    _draw_outline(image, geometry.corners(box), colour)


def draw_ellipse(
    image: ByteArray, centre: FloatArray, covariance: FloatArray, colour: Colour
) -> None:
    """Draw the 2σ ellipse of a Gaussian, where a point lies with 86 % probability, in place.

    Args:
        image: ``(H, W, 3)`` uint8.
        centre: ``(2,)`` mean, pixels.
        covariance: ``(2, 2)`` square pixels, symmetric positive semidefinite.
        colour: of the line.
    """
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    variances, axes = np.linalg.eigh(covariance)
    radii = 2 * np.sqrt(np.maximum(variances, 0))
    _draw_outline(image, centre + (radii * circle) @ axes.T, colour)


def draw_text(image: ByteArray, text: str, corner: tuple[float, float] | None = None) -> None:
    """Draw a line of white text with a dark outline, in place.

    Args:
        image: ``(H, W, 3)`` uint8.
        text: a single line.
        corner: x, y of the text's upper left corner in pixels; None: in that of the image.
    """
    # Not cv2.putText: between OpenCV 4 and 5 its letters changed width with their thickness, so
    # that a dark outline no longer lies under the text.
    size = text_size(image)
    canvas = Image.fromarray(image)
    ImageDraw.Draw(canvas).text(
        (size / 2, size / 3) if corner is None else corner,
        text,
        fill=(255, 255, 255),
        font=_font(size),
        stroke_width=max(1, size // 10),
        stroke_fill=(0, 0, 0),
    )
    image[:] = np.asarray(canvas)


def text_size(image: ByteArray) -> int:
    """Height in pixels of a line of :func:`draw_text` on an image."""
    shorter: int = min(image.shape[:2])
    return max(11, round(shorter / 22))


@contextmanager
def video_writer(path: Path, fps: float) -> Iterator[Callable[[ByteArray], None]]:
    """An H.264 MP4 that browsers play, written completely if the block succeeds, or not at all.

    Args:
        path: ending in ``.mp4``.
        fps: frames per second.

    Yields:
        A function that appends a frame ``(H, W, 3)``, uint8 RGB. All frames must have the same size, and
        there must be at least one. An odd side is extended by one pixel, as the format requires.

    Raises:
        UserError: if frames are too large, or ffmpeg could not write the whole video.
    """
    import imageio.v2 as imageio  # only videos need it

    with atomic_file(path) as temporary:
        writer = imageio.get_writer(
            temporary,
            format=cast(Any, "FFMPEG"),  # typed Format until imageio 2.38.0, str since
            fps=fps,
            codec="libx264",
            macro_block_size=2,
            output_params=["-g", str(_FRAMES_PER_KEYFRAME)],
        )
        with closing(writer):  # imageio's own context leaves ffmpeg running on errors

            def append(frame: ByteArray) -> None:
                height, width = frame.shape[:2]
                if max(height, width) > _LARGEST_FRAME:
                    raise UserError(
                        f"frames of {width}×{height} are too large for a video: H.264 takes sides of at "
                        f"most {_LARGEST_FRAME} pixels; reduce them first"
                    )
                even = ((0, height % 2), (0, width % 2), (0, 0))
                try:
                    writer.append_data(np.pad(frame, even, mode="edge"))
                except OSError as error:  # ffmpeg has ended; what it said is on stderr
                    raise _not_written(path) from error

            yield append
        if not _is_whole(temporary):  # ffmpeg's exit status is not checked anywhere
            raise _not_written(path)


def write_video(path: Path, frames: Iterable[ByteArray], fps: float) -> None:
    """Write frames with :func:`video_writer`.

    Args:
        path: ending in ``.mp4``.
        frames: ``(H, W, 3)`` uint8 RGB, at least one, all of the same size.
        fps: frames per second.
    """
    with video_writer(path, fps) as append:
        for frame in frames:
            append(frame)


def _not_written(path: Path) -> UserError:
    return UserError(f"ffmpeg could not write all of {path}; is the disk full?")


def _is_whole(path: Path) -> bool:
    """Whether the boxes of an MP4 fill the file, and include its table of frames (ISO/IEC 14496-12)."""
    kinds, place, end = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while place + 8 <= end:
            file.seek(place)
            size, kind = struct.unpack(">I4s", file.read(8))
            if size == 1:  # of more than 4 GiB
                (size,) = struct.unpack(">Q", file.read(8).ljust(8, b"\0"))
            if size < 8:
                return False
            kinds.append(kind)
            place += size
    return place == end and b"moov" in kinds


def _draw_outline(image: ByteArray, points: FloatArray, colour: Colour) -> None:
    # A dark line underneath keeps the colour legible on any background.
    thickness = max(1, round(min(image.shape[:2]) / 200))
    fixed = np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)
    for line_colour, width in (((0, 0, 0), thickness + 2), (colour, thickness)):
        cv2.polylines(image, [fixed], True, line_colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)


@lru_cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
