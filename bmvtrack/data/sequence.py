"""One video with one object: the type that every reader returns and everything else takes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.errors import UserError
from bmvtrack.inputs import boolean_mask, rgb_frame

Pixel = TypeVar("Pixel", bound=np.generic)


@dataclass(eq=False)
class VideoSequence:
    """Frames, masks and rotated boxes of one object in one video.

    Frames and masks are read on demand. Boxes come from the masks (continuous labels) unless
    they are given.

    Args:
        name: of the sequence, unique within its data set.
        length: number of frames.
        read_frame: t → ``(H, W, 3)`` uint8 RGB; for a list of frames, its ``__getitem__``.
        read_mask: t → ``(H, W)`` boolean or integer, nonzero is object; None for data with boxes only.
        given_boxes: ``(T, 5)`` rotated boxes: centre, width and height in pixels, angle in radians; NaN
            where there is no object. Required without masks.

    Raises:
        UserError: if there are no frames, neither masks nor boxes, or the boxes are invalid.
    """

    name: str
    length: int
    read_frame: Callable[[int], ByteArray]
    read_mask: Callable[[int], BoolArray] | None = None
    given_boxes: FloatArray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"sequence {self.name!r} has no frames")
        if self.read_mask is None and self.given_boxes is None:
            raise UserError(f"sequence {self.name!r} has neither masks nor boxes")
        if self.given_boxes is not None:
            self.given_boxes = self._checked(self.given_boxes)

    def __len__(self) -> int:
        return self.length

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames in pixels."""
        height, width = self._any_frame(0).shape[:2]
        return width, height

    def frame(self, t: int) -> ByteArray:
        """Frame t, ``(H, W, 3)`` uint8 RGB.

        Raises:
            UserError: if it is anything else, cannot be read, or differs in size from the first.
        """
        frame = self._any_frame(t)
        height, width = frame.shape[:2]
        if t == 0:
            self.size = width, height  # need not be read again
        if (width, height) != self.size:
            raise UserError(
                f"sequence {self.name!r}, frame {t}: it is {width}×{height} but the first "
                f"frame is {self.size[0]}×{self.size[1]}; all frames must have the same size"
            )
        return frame

    def mask(self, t: int) -> BoolArray:
        """Mask of frame t, ``(H, W)`` boolean.

        Raises:
            UserError: if the data has no masks, the mask is invalid, or frame and mask differ in size.
        """
        if self.read_mask is None:
            raise UserError(f"sequence {self.name!r} has boxes but no masks")
        read = self.read_mask(t)
        try:
            mask = boolean_mask(read)
        except UserError as error:
            raise UserError(f"sequence {self.name!r}, frame {t}: {error}") from None
        width, height = self.size
        if mask.shape != (height, width):
            raise UserError(
                f"sequence {self.name!r}, frame {t}: the mask is {mask.shape[1]}×{mask.shape[0]} "
                f"but the frame is {width}×{height}; both must have the same size"
            )
        return mask

    @cached_property
    def opencv_boxes(self) -> FloatArray:
        """``(T, 5)`` boxes as OpenCV labels them, NaN where there is no object."""
        if self.read_mask is None:
            assert self.given_boxes is not None
            return self.given_boxes
        boxes = [geometry.from_mask(self.mask(t)) for t in range(len(self))]
        return np.stack([np.full(5, np.nan) if box is None else box for box in boxes])

    @cached_property
    def boxes(self) -> FloatArray:
        """``(T, 5)`` boxes with labels continuous along the sequence, NaN without object."""
        given = self.given_boxes
        return geometry.continuous_labels(self.opencv_boxes if given is None else given)

    @cached_property
    def mask_bounds(self) -> FloatArray:
        """``(T, 4)`` axis-aligned bounds of the masks, NaN where there is no object.

        Left, top, right, bottom of the pixels' areas: a mask of one pixel at (3, 5) has the bounds
        (2.5, 4.5, 3.5, 5.5). If the data has no masks, the bounds of the rotated boxes.
        """
        if self.read_mask is None:
            return geometry.bounds(self.boxes)
        return np.stack([geometry.mask_bounds(self.mask(t)) for t in range(len(self))])

    @property
    def present(self) -> BoolArray:
        """``(T,)``: where there is an object, and so a box to score."""
        return np.asarray(np.isfinite(self.boxes).all(axis=-1))

    def _any_frame(self, t: int) -> ByteArray:
        """Frame t, of any size."""
        try:
            frame = self.read_frame(t)
        except IndexError as error:
            if t >= self.length:
                raise
            raise UserError(
                f"sequence {self.name!r} of length {self.length} has no frame {t}: {error}"
            ) from error
        try:
            return rgb_frame(frame, "rgb")
        except UserError as error:
            raise UserError(f"sequence {self.name!r}, frame {t}: {error}") from None

    def _checked(self, boxes: FloatArray) -> FloatArray:
        """Boxes as float64.

        Raises:
            UserError: if there are not five numbers for each frame, or a box is invalid.
        """
        expected = (
            f"sequence {self.name!r}: boxes must be five numbers for each of {self.length} frames (centre, "
            "width, height, angle in radians; NaN where there is no object)"
        )
        try:
            boxes = np.asarray(boxes, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{expected}: {error}") from error
        if boxes.shape != (self.length, 5):
            raise UserError(f"{expected}, not of shape {boxes.shape}")
        absent = np.isnan(boxes).all(axis=1)
        sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:4] > 0).all(axis=1)
        if not (absent | sound).all():
            t = int(np.flatnonzero(~(absent | sound))[0])
            raise UserError(
                f"sequence {self.name!r}: box {boxes[t].tolist()} of frame {t} is invalid: sides must be "
                "positive, and where there is no object all five numbers must be NaN"
            )
        return boxes

    def check_frame_sizes(self) -> None:
        """Read every frame once.

        Raises:
            UserError: if a frame is unreadable, or differs in size from the first.
        """
        for t in range(len(self)):
            self.frame(t)

    def in_memory(self) -> VideoSequence:
        """The same sequence with all frames and masks read once and kept."""
        frames = [self.frame(t) for t in range(len(self))]
        masks = None if self.read_mask is None else [self.mask(t) for t in range(len(self))]
        return VideoSequence(
            self.name,
            self.length,
            frames.__getitem__,
            None if masks is None else masks.__getitem__,
            self.boxes,
        )


def read_nth(
    read: Callable[[Path], NDArray[Pixel]], paths: Sequence[Path], t: int
) -> NDArray[Pixel]:
    """Read the t-th of the files of a sequence; with the first two arguments bound, its ``read_frame``."""
    return read(paths[t])


def read_image(path: Path) -> ByteArray:
    """An image file as ``(H, W, 3)`` uint8 RGB.

    Of 16 bits the upper 8 are kept: images of 10 or 12 bits in 16-bit files come out dark unless they are
    rescaled first.

    Raises:
        UserError: if the file is missing or not an image.
    """
    try:  # not cv2.imread, which crashes on names that are not UTF-8
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):  # cv2.error: empty file, or absurd size in its header
        image = None
    if image is None:
        raise UserError(
            f"cannot read the image {path}: it is missing, damaged or not an image of 8 or 16 bits"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


NO_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""Exceptions that Pillow raises on reading a file that is missing, damaged or not an image."""


def upright_image(image: Image.Image) -> Image.Image:
    """Apply an image's EXIF orientation, as OpenCV does by itself; ignore damaged EXIF data."""
    image.load()  # raises errors in the pixel data here
    try:
        return ImageOps.exif_transpose(image)
    except (*NO_IMAGE, struct.error, LookupError, TypeError):
        return image
