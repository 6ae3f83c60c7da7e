"""YouTube-VOS on disk, and the single-object sequences in it (paper, appendix §2.1).

A clip's annotations are palette images whose pixels hold object numbers, 0 for background. Each
object becomes one binary sequence, or is dropped because it is absent in an annotated frame or large
(w ≥ 0.7 W or h ≥ 0.7 H) in one. The paper writes [w, h] and does not say of which box. Here w and h are
those of the mask's axis-aligned bounds, because the sides of a rotated box swap with its label and lie
along neither W nor H.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from bmvtrack.arrays import BoolArray, ByteArray
from bmvtrack.data.sequence import NO_IMAGE, VideoSequence, read_image, upright_image
from bmvtrack.errors import UserError
from bmvtrack.files import listed, numbered_files

LARGEST = 0.7
"""Share of the frame's width and height that a kept object must stay below."""

Reason = Literal["absent", "large", "no category"]
REASONS: dict[Reason, str] = {
    "no category": "not in meta.json",
    "absent": "absent in an annotated frame",
    "large": f"w ≥ {LARGEST} W or h ≥ {LARGEST} H in a frame",
}
"""Reasons for dropping an object, in the order of checking."""


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video: its annotated frames, and what ``meta.json`` says about its objects.

    Attributes:
        name: of the clip.
        frames: ``.jpg`` files of the annotated frames, in order.
        annotations: ``.png`` files, one for each of them.
        categories: by object number; None if there is no ``meta.json``.
    """

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]
    categories: Mapping[int, str] | None = None

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class YouTubeVOS:
    """A YouTube-VOS folder.

    Attributes:
        clips: in alphabetical order.
        categories: all that ``meta.json`` names, sorted: class c is the c-th of them, counted from 1. The
            published training set has 65. Empty without ``meta.json``.
    """

    clips: tuple[AnnotatedVideo, ...]
    categories: tuple[str, ...]


def load_youtube_vos(root: Path) -> YouTubeVOS:
    """The clips of a YouTube-VOS folder; no image is read yet.

    Args:
        root: with ``JPEGImages/<clip>/00000.jpg``, ``Annotations/<clip>/00000.png`` and optionally
            ``meta.json`` in it, or the folder above, which holds them in ``train``.

    Raises:
        UserError: if the layout or an annotated frame is missing, or ``meta.json`` is invalid.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; give the folder of YouTube-VOS that holds `train`")
    folder = root / "train" if (root / "train").is_dir() else root
    images, annotations = folder / "JPEGImages", folder / "Annotations"
    for needed in (images, annotations):
        if not needed.is_dir():
            raise UserError(f"{folder} is not a YouTube-VOS folder: it has no {needed.name}")
    meta = _read_meta(folder / "meta.json")
    clips = []
    for path in (folder for folder in listed(annotations) if folder.is_dir()):
        masks = tuple(numbered_files(path, (".png",)))
        frames = tuple(images / path.name / f"{mask.stem}.jpg" for mask in masks)
        missing = [frame for frame in frames if not frame.is_file()]
        if missing:
            raise UserError(
                f"clip {path.name!r} lacks {len(missing)} of {len(frames)} annotated frames, the "
                f"first is {missing[0]}"
            )
        if masks:
            categories = None if meta is None else meta.get(path.name, {})
            clips.append(AnnotatedVideo(path.name, frames, masks, categories))
    if not clips:
        raise UserError(f"no clip in {annotations} has annotations (.png files)")
    names = {name for objects in (meta or {}).values() for name in objects.values()}
    return YouTubeVOS(tuple(clips), tuple(sorted(names)))


def _read_meta(path: Path) -> dict[str, dict[int, str]] | None:
    """Category by object number by clip; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        videos = json.loads(path.read_text(encoding="utf-8-sig"))["videos"]
        return {
            name: {int(k): str(v["category"]) for k, v in video["objects"].items()}
            for name, video in videos.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the meta.json of YouTube-VOS ({type(error).__name__}: {error}); "
            "it must hold videos, their objects, and a category for each"
        ) from error


def read_annotation(path: Path) -> ByteArray:
    """An annotation as ``(H, W)`` uint8 object numbers, 0 for background.

    Raises:
        UserError: if the file is missing, damaged, or neither a palette nor a grey image.
    """
    try:
        with Image.open(path) as image:
            numbers, mode = np.asarray(upright_image(image)), image.mode
    except NO_IMAGE as error:
        raise UserError(f"cannot read the annotation {path}: it is missing or damaged") from error
    if mode not in ("P", "L"):
        raise UserError(
            f"the annotation {path} has mode {mode}; object numbers must be in a palette image"
        )
    return np.asarray(numbers, dtype=np.uint8)


def single_object_sequences(
    clip: AnnotatedVideo,
) -> tuple[dict[int, VideoSequence], dict[int, Reason]]:
    """One binary sequence for each kept object of a clip, and the reasons why the others are dropped.

    The clip's annotations are read immediately and kept in memory; its frames are read on demand, and the
    last frame read is cached.

    Returns:
        Sequences by object number, named ``clip/number``, and reasons by object number.

    Raises:
        UserError: if an annotation cannot be read, or differs in size from the others or the frame.
    """
    annotations = [read_annotation(path) for path in clip.annotations]
    sizes = {numbers.shape for numbers in annotations}
    if len(sizes) > 1:
        raise UserError(f"the annotations of clip {clip.name!r} differ in size: {sorted(sizes)}")
    seen = set(np.unique(np.concatenate([np.unique(a) for a in annotations])).tolist()) - {0}
    read_frame = lru_cache(maxsize=1)(partial(_frame, clip, sizes.pop()))
    kept: dict[int, VideoSequence] = {}
    dropped: dict[int, Reason] = {}
    for number in sorted(seen | set(clip.categories or ())):
        sequence = VideoSequence(
            f"{clip.name}/{number}", len(clip), read_frame, partial(_mask, annotations, number)
        )
        reason = _why_drop(sequence, clip, number)
        if reason is None:
            kept[number] = sequence
        else:
            dropped[number] = reason
    return kept, dropped


def _why_drop(sequence: VideoSequence, clip: AnnotatedVideo, number: int) -> Reason | None:
    if clip.categories is not None and number not in clip.categories:
        return "no category"
    bounds = sequence.mask_bounds  # (T, 4)
    if not np.isfinite(bounds).all():
        return "absent"
    shares = (bounds[:, 2:] - bounds[:, :2]) / sequence.size
    return "large" if (shares >= LARGEST).any() else None


def _frame(clip: AnnotatedVideo, shape: tuple[int, ...], t: int) -> ByteArray:
    image = read_image(clip.frames[t])
    if image.shape[:2] != shape:
        height, width = image.shape[:2]
        raise UserError(
            f"{clip.frames[t]} is {width}×{height} but the annotations of its clip are "
            f"{shape[1]}×{shape[0]}; both must have the same size"
        )
    return image


def _mask(annotations: list[ByteArray], number: int, t: int) -> BoolArray:
    return np.asarray(annotations[t] == number)
