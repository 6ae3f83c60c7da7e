"""DAVIS16 on disk: 480p, 360p or any other resolution, masks as 0/255, palette or LA images."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from bmvtrack.arrays import BoolArray
from bmvtrack.data.sequence import NO_IMAGE, VideoSequence, read_image, read_nth, upright_image
from bmvtrack.errors import UserError
from bmvtrack.files import listed, numbered_files, read_lines

DavisSplit = Literal["train", "val", "trainval"]
_FEWEST_GREYS = 64  # if the brightest value is below this, values are object numbers


def read_mask(path: Path) -> BoolArray:
    """An annotation as ``(H, W)`` boolean, whatever the image mode.

    In a palette image (object numbers) everything but 0 is object. In grey, grey with alpha (some
    DAVIS16 files) and colour images, pixels brighter than half the brightest value in any channel but
    alpha are object: 0/1, 0/255 and smoothed borders all work. If the brightest value is below 64, the
    values are taken as object numbers, too. A file's own orientation (EXIF) is applied, as for frames.

    Raises:
        UserError: if the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            values, bands, mode = np.asarray(upright_image(image)), image.getbands(), image.mode
    except NO_IMAGE as error:
        raise UserError(
            f"cannot read the mask {path}: it is missing, damaged or not an image"
        ) from error
    if mode == "P":
        return np.asarray(values != 0)
    colours = [i for i, band in enumerate(bands) if band != "A"]
    values = np.atleast_3d(values)[..., colours]
    brightest = values.max()
    numbers = np.issubdtype(values.dtype, np.integer) and brightest < _FEWEST_GREYS
    return np.asarray((values > (0 if numbers else brightest / 2)).any(axis=-1))


def load_davis16(
    root: Path, split: str | None = None, sequences: list[str] | None = None
) -> list[VideoSequence]:
    """The sequences of a DAVIS16 folder, in alphabetical order.

    Args:
        root: with ``JPEGImages/<res>/<seq>`` and ``Annotations/<res>/<seq>``.
        split: ``train``, ``val`` or ``trainval``: the sequences listed in
            ``ImageSets/<res>/<split>.txt`` (or ``ImageSets/2016/<split>.txt``, one name per line).
            None: all sequences.
        sequences: keep only these names.

    Raises:
        UserError: if the root, a split, a sequence or its masks are missing.
    """
    images = _resolution_folder(root, "JPEGImages")
    annotations = root / "Annotations" / images.name
    names = [path.name for path in listed(images) if path.is_dir()]
    if split is not None:
        wanted = _split_names(root, images.name, split, names)
        missing = sorted(wanted - set(names))
        if missing:
            raise UserError(f"{images} lacks sequences of split {split!r}: {', '.join(missing)}")
        names = sorted(wanted)
    if sequences is not None:
        unknown = sorted(set(sequences) - set(names))
        if unknown:
            raise UserError(f"no sequence {', '.join(unknown)} in {images}; it holds {names}")
        names = [name for name in names if name in sequences]
    if not names:
        raise UserError(f"no sequences in {images}")
    return [_sequence(name, images / name, annotations / name) for name in names]


def _resolution_folder(root: Path, kind: str) -> Path:
    if not root.is_dir():
        raise UserError(f"no folder {root}; give the folder that holds JPEGImages and Annotations")
    folder = root / kind
    resolutions = [path for path in listed(folder) if path.is_dir()]
    if not resolutions:
        raise UserError(f"{root} is not a DAVIS folder: it has no {kind}/480p (or 360p, 1080p)")
    preferred = [p for p in resolutions if p.name == "480p"]
    return (preferred or resolutions)[0]


def _split_names(root: Path, resolution: str, split: str, names: Collection[str]) -> set[str]:
    candidates = [root / "ImageSets" / folder / f"{split}.txt" for folder in (resolution, "2016")]
    for path in candidates:
        if path.is_file():
            lines = [line.strip() for line in read_lines(path)]
            found = {_sequence_of(line, names) for line in lines if line}
            if not found:
                raise UserError(f"{path} names no sequence")
            return found
    raise UserError(
        f"no split {split!r} in {root}: neither {candidates[0]} nor {candidates[1]} exists"
    )


def _sequence_of(line: str, names: Collection[str]) -> str:
    """The sequence that a line of a split names, either directly or by the path of one of its frames.

    Args:
        line: of the split file.
        names: of the existing sequences; they may contain spaces.
    """
    if line in names:
        return line
    path = re.search(r"([^/]+)/[^/]+\.(jpg|jpeg|png)", line, re.IGNORECASE)
    if path:
        return path[1]
    first = line.split()[0]
    return Path(first).parent.name if "/" in first else first


def _sequence(name: str, images: Path, annotations: Path) -> VideoSequence:
    frames = numbered_files(images, (".jpg",))
    if not frames:
        raise UserError(f"sequence {name!r} has no frames: {images} holds no .jpg files")
    masks = [annotations / f"{frame.stem}.png" for frame in frames]
    missing = [mask for mask in masks if not mask.is_file()]
    if missing:
        raise UserError(
            f"sequence {name!r} lacks {len(missing)} of {len(masks)} masks, "
            f"the first is {missing[0]}; there must be an annotation with the number of each frame"
        )
    read = partial(read_nth, read_image, frames), partial(read_nth, read_mask, masks)
    return VideoSequence(name, len(frames), *read)
