"""Shared readers for benchmarks with boxes but no masks: text files of numbers, image folders."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from bmvtrack import geometry
from bmvtrack.arrays import FloatArray
from bmvtrack.data.sequence import VideoSequence, read_image, read_nth
from bmvtrack.errors import UserError
from bmvtrack.files import listed, numbered_files, read_lines
from bmvtrack.inputs import upright_box

NO_BOX = np.full(5, np.nan)
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
_SEPARATORS = re.compile(r"[\s,;]+")


def read_rows(path: Path) -> list[FloatArray]:
    """The numbers of each non-blank line, separated by commas, semicolons, tabs or spaces.

    Args:
        path: text file, UTF-8 or ASCII. ``nan`` in any spelling is a number.

    Raises:
        UserError: if the file cannot be read or holds anything but numbers.
    """
    numbered = [(i, line.strip(" \t,;")) for i, line in enumerate(read_lines(path), start=1)]
    return [_numbers(line, path, i) for i, line in numbered if line]


def annotated_box(numbers: FloatArray) -> FloatArray:
    """The rotated box ``(5,)`` of an annotation ``x, y, w, h``, whose upper left pixel is (x, y).

    NaN where the numbers are not finite or the box has no area, which is how annotations mark frames
    without an object.

    Args:
        numbers: ``(4,)`` in pixels; the first pixel of the image is (0, 0).
    """
    if not np.isfinite(numbers).all() or numbers[2:].min() <= 0:
        return NO_BOX
    size = np.maximum(numbers[2:], geometry.MINIMUM_SIDE)
    return upright_box(np.concatenate([numbers[:2], size]))


def images(folder: Path) -> list[Path]:
    """The images in a folder, sorted by number; none if the folder does not exist."""
    return numbered_files(folder, _IMAGES) if folder.is_dir() else []


def subfolders(root: Path) -> list[Path]:
    """Possible folders of sequences: those in the root, by name, then the root itself.

    Raises:
        UserError: if the root does not exist.
    """
    if not root.is_dir():
        raise UserError(
            f"no folder {root}; give the folder that holds the sequences, or one of them"
        )
    return [*(path for path in listed(root) if path.is_dir()), root]


def boxed_sequence(name: str, frames: list[Path], boxes: list[FloatArray]) -> VideoSequence:
    """A sequence without masks.

    Args:
        name: of the sequence.
        frames: image files.
        boxes: a rotated box ``(5,)`` for each frame, NaN where there is no object.

    Raises:
        UserError: if there is not exactly one box for each frame.
    """
    if len(frames) != len(boxes):
        raise UserError(
            f"sequence {name!r} has {len(frames)} frames but {len(boxes)} lines of ground truth; "
            "there must be one line for each frame"
        )
    read = partial(read_nth, read_image, frames)
    return VideoSequence(name, len(frames), read, given_boxes=np.reshape(boxes, (-1, 5)))


def _numbers(line: str, path: Path, number: int) -> FloatArray:
    try:
        return np.array([float(part) for part in _SEPARATORS.split(line)])
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {line[:40]!r} must hold numbers only") from error
