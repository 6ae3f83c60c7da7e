"""Sequences flipped left to right, top to bottom, and in time: eight views of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bmvtrack.arrays import FloatArray
from bmvtrack.data.sequence import Pixel, VideoSequence

Mirroring = Literal["all", "upside-down", "none"]
"""Which mirrored views to make."""


def mirrored_views(sequence: VideoSequence, views: Mirroring = "all") -> list[VideoSequence]:
    """The sequence mirrored left to right, top to bottom and in time, in all combinations.

    Frames, and masks if there are any, are still read on demand; boxes are mirrored now, for which all
    masks are read once.

    Args:
        sequence: of any kind.
        views: ``all`` eight, or the four that are ``upside-down``; in either case the least mirrored one
            comes first. ``none``: only the sequence as it is.
    """
    choices = {"all": (False, True), "upside-down": (True,), "none": (False,)}[views]
    others = (False,) if views == "none" else (False, True)
    return [
        _view(sequence, *mirrors) if any(mirrors) else sequence
        for mirrors in product(others, choices, others)
    ]


def upside_down(sequence: VideoSequence) -> VideoSequence:
    """The sequence mirrored top to bottom only.

    On its own training sequences, shown this way, an encoder makes errors as it does on new ones: what is
    chosen on them is not chosen on test data, and does not depend on what was memorized.
    """
    return mirrored_views(sequence, "upside-down")[0]


def mirrored_boxes(
    boxes: FloatArray, size: tuple[int, int], across: bool, upside_down: bool
) -> FloatArray:
    """Boxes of mirrored frames.

    Args:
        boxes: ``(T, 5)``, NaN where there is no object.
        size: width and height of the frames.
        across: mirrored left to right.
        upside_down: mirrored top to bottom.

    Returns:
        ``(T, 5)``.
    """
    x, y, w, h, angle = boxes.T
    width, height = size
    x = width - 1 - x if across else x
    y = height - 1 - y if upside_down else y
    return np.stack([x, y, w, h, -angle if across != upside_down else angle], axis=1)


def _view(
    sequence: VideoSequence, across: bool, upside_down: bool, backwards: bool
) -> VideoSequence:
    last = len(sequence) - 1
    rows, columns = (
        slice(None, None, -1 if upside_down else 1),
        slice(None, None, -1 if across else 1),
    )
    boxes = mirrored_boxes(sequence.boxes, sequence.size, across, upside_down)
    marks = "".join(
        mark for mark, on in zip("xyt", (across, upside_down, backwards), strict=True) if on
    )

    def seen(read: Callable[[int], NDArray[Pixel]], t: int) -> NDArray[Pixel]:
        return np.ascontiguousarray(read(last - t if backwards else t)[rows, columns])

    return VideoSequence(
        f"{sequence.name}~{marks}",
        len(sequence),
        partial(seen, sequence.frame),
        None if sequence.read_mask is None else partial(seen, sequence.mask),
        boxes[::-1] if backwards else boxes,
    )
