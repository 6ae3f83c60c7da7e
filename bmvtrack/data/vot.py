"""VOT on disk (2013 to 2019): upright boxes or polygons of four corners, often tilted, no masks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from bmvtrack import geometry
from bmvtrack.arrays import FloatArray
from bmvtrack.data.annotations import (
    NO_BOX,
    annotated_box,
    boxed_sequence,
    images,
    read_rows,
    subfolders,
)
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.files import folder_name, read_lines

ANNOTATION = "groundtruth.txt"


def load_vot(root: Path) -> list[VideoSequence]:
    """The sequences of a VOT folder, in alphabetical order.

    Four numbers are ``x, y, w, h`` of the pixels that a box covers, counted from 0; eight are the
    corners of a polygon, see :func:`polygon_box`. One number (VOT's code for a region that does not
    exist), NaN and regions without area mean that there is no object.

    Args:
        root: with ``SEQUENCE/groundtruth.txt`` and frames in ``SEQUENCE/color`` or, in older years,
            in ``SEQUENCE``; or one SEQUENCE. If there is a ``list.txt``, only the sequences that it names,
            one per line, are read.

    Raises:
        UserError: if there are no sequences, a listed one is missing, a file is invalid, or objects are
            annotated by masks, as from 2020 on.
    """
    folders = [path for path in _folders(root) if (path / ANNOTATION).is_file()]
    if not folders:
        raise UserError(
            f"{root} is not a VOT folder: neither it nor a folder in it holds {ANNOTATION}"
        )
    return [_sequence(folder) for folder in folders]


def polygon_box(numbers: FloatArray) -> FloatArray:
    """The smallest rotated rectangle ``(5,)`` around a polygon (``cv2.minAreaRect``).

    If the polygon is a rectangle, as most of VOT's are, the result is the polygon itself, to a hundredth of
    a pixel. NaN if the numbers are not finite or the polygon has no area.

    Args:
        numbers: ``(8,)``, x and y of four corners in order, pixels; pixel centres are whole numbers.
    """
    corners = numbers.reshape(4, 2)
    there = np.isfinite(numbers).all() and cv2.contourArea(corners.astype(np.float32)) > 0
    return geometry.from_points(corners) if there else NO_BOX


def _folders(root: Path) -> list[Path]:
    found = subfolders(root)
    listing = root / "list.txt"
    if not listing.is_file():
        return found
    names = {line.strip() for line in read_lines(listing)} - {""}
    missing = sorted(name for name in names if not (root / name / ANNOTATION).is_file())
    if missing:
        raise UserError(f"{root} lacks sequences that {listing} names: {', '.join(missing)}")
    return [path for path in found if path.name in names]


def _sequence(folder: Path) -> VideoSequence:
    path = folder / ANNOTATION
    with path.open("rb") as file:
        if file.read(1) == b"m":
            raise UserError(
                f"{path} holds masks (VOT 2020 and later); only boxes and polygons can be read"
            )
    boxes = [_box(row, path, i) for i, row in enumerate(read_rows(path), start=1)]
    frames = images(folder / "color") or images(folder)
    return boxed_sequence(folder_name(folder), frames, boxes)


def _box(row: FloatArray, path: Path, number: int) -> FloatArray:
    if len(row) == 1:
        return NO_BOX
    if len(row) == 4:
        return annotated_box(row)
    if len(row) != 8:
        raise UserError(f"{path}, box {number}: it has {len(row)} numbers instead of 4 or 8")
    return polygon_box(row)
