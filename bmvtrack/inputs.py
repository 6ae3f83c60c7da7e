"""Checks frames and initial boxes from users, and converts them to the project's own form."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.errors import UserError

Colour = Literal["rgb", "bgr"]
COLOURS: tuple[Colour, ...] = get_args(Colour)


def rgb_frame(frame: Any, colour: Colour) -> ByteArray:
    """A frame as contiguous RGB; the frame itself if it already is.

    Args:
        frame: ``(H, W, 3)`` uint8.
        colour: the order of its channels.

    Raises:
        UserError: if it is anything else.
    """
    if not isinstance(frame, np.ndarray):
        raise UserError(f"a frame must be a NumPy array, not {type(frame).__name__}")
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise UserError(
            f"a frame must have the shape (H, W, 3), not {frame.shape}; convert grey or four-channel "
            "frames with cv2.cvtColor"
        )
    if frame.dtype != np.uint8:
        raise UserError(f"a frame must be uint8, 0 to 255, not {frame.dtype}")
    # Writable, because torch does not support read-only arrays.
    return np.require(frame if colour == "rgb" else frame[..., ::-1], requirements=["C", "W"])


def boolean_mask(mask: Any) -> BoolArray:
    """A mask as boolean, nonzero is object; the mask itself if it already is.

    Args:
        mask: ``(H, W)``, boolean or integer.

    Raises:
        UserError: if it is anything else.
    """
    if not isinstance(mask, np.ndarray):
        raise UserError(f"a mask must be a NumPy array, not {type(mask).__name__}")
    if mask.ndim != 2:
        raise UserError(f"a mask must have the shape (H, W), not {mask.shape}")
    if mask.dtype.kind not in "biu":
        raise UserError(f"a mask must be boolean or integer, not {mask.dtype}")
    return mask if mask.dtype == np.bool_ else mask != 0


def rotated_box(box: Any, width: int, height: int) -> FloatArray:
    """Convert the box of an object in a frame to a rotated box.

    Args:
        box: ``x, y, w, h``: upper left corner and size, in pixels, as OpenCV's ``selectROI`` returns
            them (the box covers the pixels x … x + w − 1); or a rotated box ``x, y, w, h, α``:
            centre, size and angle, pixels and radians; or OpenCV's rotated rectangle
            ``(x, y), (w, h), angle``, as ``cv2.minAreaRect`` returns it, in degrees; or a mask
            ``(H, W)``, boolean or integer, nonzero is object.
        width: frame width in pixels.
        height: frame height in pixels.

    Returns:
        ``(5,)`` float64.

    Raises:
        UserError: if it is none of these, several boxes, not finite, rotated by more than a full turn, less
            than a pixel wide or high, more than four times as large as the frame, or outside it; if the
            mask is empty or its size is not the frame's.
    """
    try:
        values = np.asarray(_of_opencv(box))
        if values.shape in ((1, 4), (1, 5)) and (height, width) != values.shape:
            values = values[0]  # the one box of cv2.selectROIs
        if values.ndim == 2 and values.shape[1] in (4, 5) and (height, width) != values.shape:
            raise UserError(
                f"pass one box at a time, not {len(values)}: start each object separately, with its own id"
            )
        if values.ndim == 2:
            return _box_of_mask(values, width, height)
        if np.iscomplexobj(values):
            raise TypeError("complex numbers")
        numbers = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"a box must be x, y, w, h, a rotated box x, y, w, h, angle, or a mask (H, W), not {box!r}"
        ) from error
    if numbers.shape not in ((4,), (5,)):
        raise UserError(
            "a box must be x, y, w, h, a rotated box x, y, w, h, angle, or a mask (H, W), not an array "
            f"of shape {numbers.shape}"
        )
    text = ", ".join(f"{number:g}" for number in numbers)
    if not np.isfinite(numbers).all():
        raise UserError(f"the numbers of a box must be finite: {text}")
    if len(numbers) == 5 and abs(numbers[4]) > 2 * np.pi:
        raise UserError(f"the angle of a box must be in radians, within one turn: {text}")
    rbbox = numbers if len(numbers) == 5 else upright_box(numbers)
    if reason := refusal(rbbox, width, height):
        raise UserError(f"the box {text} {reason}")
    return rbbox


def can_start(rbbox: FloatArray, width: int, height: int) -> bool:
    """Whether a tracker can start from a box ``(5,)``; see :func:`refusal`."""
    return refusal(rbbox, width, height) is None


def refusal(rbbox: FloatArray, width: int, height: int) -> str | None:
    """Why a tracker cannot start from a box ``(5,)``, to follow the box in a sentence; None if it can."""
    most = geometry.MAXIMUM_SIDE * max(width, height)
    if not rbbox[2:4].min() >= geometry.MINIMUM_SIDE:
        return "is less than a pixel wide or high"
    if rbbox[2:4].max() > most:
        return (
            f"is too large to be followed in a frame of {width}×{height}: its sides may be at most "
            f"{most:g} pixels"
        )
    left, top, right, bottom = geometry.bounds(rbbox)
    if not (right >= 0 and bottom >= 0 and left <= width - 1 and top <= height - 1):
        return f"lies outside the frame, which is {width}×{height}"
    return None


def _of_opencv(box: Any) -> Any:
    """Convert ``(x, y), (w, h), degrees`` to five numbers in radians; return anything else unchanged."""
    if not isinstance(box, (tuple, list)) or [np.size(part) for part in box] != [2, 2, 1]:
        return box
    centre, size, degrees = box
    return [*centre, *size, np.deg2rad(degrees)]


def upright_box(numbers: FloatArray) -> FloatArray:
    """The rotated box of ``x, y, w, h``, the reverse of :func:`corner_and_size`.

    A box that covers the pixels i to j extends from i − ½ to j + ½.

    Args:
        numbers: ``(..., 4)``: x, y of the upper left pixel, w, h.

    Returns:
        ``(..., 5)``, with exactly these sides.
    """
    sides = numbers[..., 2:]
    middle = numbers[..., :2] - 0.5 + sides / 2
    return np.concatenate([middle, sides, np.zeros_like(sides[..., :1])], axis=-1)


def corner_and_size(limits: FloatArray) -> FloatArray:
    """Bounds as ``x, y, w, h``, in the form that :func:`rotated_box` takes.

    Args:
        limits: ``(..., 4)``: left, top, right, bottom in pixels (pixel centres are whole numbers).

    Returns:
        ``(..., 4)``: x, y of the upper left corner (of pixels, not of their centres), w, h.
    """
    return np.concatenate([limits[..., :2] + 0.5, limits[..., 2:] - limits[..., :2]], axis=-1)


def _box_of_mask(mask: NDArray[Any], width: int, height: int) -> FloatArray:
    mask = boolean_mask(mask)
    if mask.shape != (height, width):
        raise UserError(
            f"the mask is {mask.shape[1]}×{mask.shape[0]} but the frame is {width}×{height}; both "
            "must have the same size"
        )
    rbbox = geometry.from_mask(mask)
    if rbbox is None:
        raise UserError("the mask is empty: there is no object to start from")
    return rbbox
