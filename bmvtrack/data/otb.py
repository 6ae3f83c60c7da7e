"""OTB on disk (Wu, Lim and Yang, CVPR 2013 and TPAMI 2015): upright boxes, no masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bmvtrack.arrays import FloatArray
from bmvtrack.data.annotations import annotated_box, boxed_sequence, images, read_rows, subfolders
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.files import folder_name

ANNOTATION = "groundtruth_rect"
ANNOTATED_FRAMES = {
    "David": (300, 770),
    "Football1": (1, 74),
    "Freeman3": (1, 460),
    "Freeman4": (1, 283),
    "Diving": (1, 215),
}
"""First and last annotated frame, counted from 1, of sequences that the benchmark annotates in part."""


def load_otb(root: Path) -> list[VideoSequence]:
    """The sequences of an OTB folder, in alphabetical order.

    A sequence with several objects (``groundtruth_rect.1.txt``, ``.2.txt``) becomes several sequences,
    ``Jogging.1`` and ``Jogging.2``; empty files are ignored. Boxes are ``x, y, w, h`` of the
    pixels they cover, counted from 1.

    Args:
        root: with ``SEQUENCE/img/*.jpg`` and ``SEQUENCE/groundtruth_rect.txt``; or one SEQUENCE.

    Raises:
        UserError: if there are no sequences, or a file is invalid.
    """
    sequences = []
    for folder in subfolders(root):
        read = {path: read_rows(path) for path in sorted(folder.glob(f"{ANNOTATION}*.txt"))}
        annotations = {path: rows for path, rows in read.items() if rows}
        for path, rows in annotations.items():
            name = folder_name(folder)
            frames = _annotated(name, images(folder / "img"), len(rows))
            if len(annotations) > 1:
                name += path.stem.removeprefix(ANNOTATION)
            boxes = [_box(row, path, i) for i, row in enumerate(rows, start=1)]
            sequences.append(boxed_sequence(name, frames, boxes))
    if not sequences:
        raise UserError(
            f"{root} is not an OTB folder: neither it nor a folder in it holds {ANNOTATION}.txt"
        )
    return sequences


def _annotated(name: str, frames: list[Path], count: int) -> list[Path]:
    if len(frames) == count or name not in ANNOTATED_FRAMES:
        return frames
    first, last = ANNOTATED_FRAMES[name]
    return frames[first - 1 : last]


def _box(row: FloatArray, path: Path, number: int) -> FloatArray:
    if len(row) != 4:
        raise UserError(f"{path}, box {number}: it has {len(row)} numbers instead of x, y, w, h")
    return annotated_box(row - np.array([1, 1, 0, 0]))
