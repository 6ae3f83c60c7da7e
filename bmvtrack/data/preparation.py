"""Turn YouTube-VOS into a store of patches, in parallel; after a kill it continues where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bmvtrack.arrays import BoolArray, FloatArray
from bmvtrack.data import patches
from bmvtrack.data.bank import share_of
from bmvtrack.data.patch_store import (
    FORMAT,
    PatchTable,
    Shard,
    read_shard,
    record_type,
    shard_path,
    write_shard,
    write_store,
)
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.workers import worker_pool
from bmvtrack.data.youtube_vos import AnnotatedVideo, YouTubeVOS, single_object_sequences
from bmvtrack.errors import UserError
from bmvtrack.files import check_no_file, listed, write_text

SplitBy = Literal["video", "sequence"]
CLIPS_PER_SHARD = 16
"""About 80 MB of patches: 217 files for the published training set, and little work lost to a kill."""
_BEGUN = "preparation.json"


@dataclass(frozen=True)
class _Job:
    """One shard to make, as it is sent to a worker."""

    path: Path
    number: int
    clips: tuple[AnnotatedVideo, ...]
    size: int
    classes: dict[str, int]  # by category

    @property
    def made_of(self) -> str:
        """Fingerprint of the annotations, by their names and sizes."""
        files = [(path.name, path.stat().st_size) for c in self.clips for path in c.annotations]
        return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def prepare(
    data: YouTubeVOS,
    out: Path,
    size: int,
    workers: int,
    done: Callable[[int], None] = lambda clips: None,
) -> list[Shard]:
    """Cut out the patches of all objects that are kept, and write them to shards.

    Shards that exist and are complete are kept, so a call after a kill continues where it stopped. A
    shard is made anew if one of its annotations has another size than then: a damaged file may be replaced.

    Args:
        data: to read.
        out: folder of the store.
        size: side of the patches in pixels, a multiple of 64.
        workers: number of processes; with 1, the calling process does the work.
        done: called with the number of clips whenever a shard is done.

    Returns:
        The shards in order.

    Raises:
        UserError: if the options or the data are invalid, ``out`` contains something else, or the disk is
            full.
    """
    if size < 64 or size % 64:
        raise UserError(f"--size must be a multiple of 64, not {size}")
    if workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    _begin(out, _fingerprint(data, size))
    classes = {name: number for number, name in enumerate(data.categories, start=1)}
    groups = [
        data.clips[i : i + CLIPS_PER_SHARD] for i in range(0, len(data.clips), CLIPS_PER_SHARD)
    ]
    jobs = [
        _Job(shard_path(out, number), number, clips, size, classes)
        for number, clips in enumerate(groups)
    ]
    shards: dict[int, Shard] = {}
    try:
        for number, shard in _worked_off(jobs, min(workers, len(jobs))):
            shards[number] = shard
            done(len(jobs[number].clips))
    except OSError as error:
        raise UserError(
            f"stopped: {error}; the finished shards in {out} are kept; run again to continue"
        ) from error
    except BrokenProcessPool as error:
        raise UserError(
            "a worker was killed, perhaps for lack of memory; give fewer --workers and run again: "
            "the finished shards are kept"
        ) from error
    return [shards[number] for number in range(len(jobs))]


def finish(
    out: Path,
    shards: Sequence[Shard],
    size: int,
    categories: Sequence[str],
    split_by: SplitBy,
    validation_share: float,
    seed: int,
) -> None:
    """Combine the shards into a store, split into training and validation.

    Args:
        out: folder of the store.
        shards: of :func:`prepare`.
        size: side of the patches in pixels.
        categories: names of the classes 1, 2, …; if empty, every object has class 1.
        split_by: ``video``, so that no video is in both parts, or ``sequence``, as in the paper.
        validation_share: share of the videos or sequences for validation, in (0, 1).
        seed: of the split.

    Raises:
        UserError: if no object was kept, or there is only one group to split.
    """
    if not categories:
        shards = [
            replace(s, table=replace(s.table, category=np.ones_like(s.table.category)))
            for s in shards
        ]
    table = PatchTable.concatenated([shard.table for shard in shards])
    if not len(table):
        raise UserError(
            "no object is left: each is absent in a frame or large; nothing to train on"
        )
    groups = table.video if split_by == "video" else table.sequence
    validation = held_out(groups, validation_share, seed)
    about = {
        "videos": len(np.unique(table.video)),
        "sequences": len(np.unique(table.sequence)),
        "split": {"by": split_by, "validation_share": validation_share, "seed": seed},
    }
    write_store(out, size, categories, shards, validation, about)


def held_out(groups: NDArray[np.str_], share: float, seed: int) -> BoolArray:
    """Select the patches for validation: all of some groups, none of the others.

    Args:
        groups: ``(N,)`` name of the group of each patch.
        share: share of the groups for validation, in (0, 1); each part gets at least one group.
        seed: of the choice.

    Raises:
        UserError: if there is only one group.
    """
    names = np.unique(groups)
    if len(names) < 2:
        raise UserError(
            f"only {names[0]} is kept, which cannot be split into training and validation"
        )
    count = share_of(len(names), share)
    chosen = np.random.default_rng(seed).permutation(names)[:count]
    return np.isin(groups, chosen)


def _fingerprint(data: YouTubeVOS, size: int) -> str:
    """What all shards depend on, as text: format, options, names of the annotations."""
    digest = hashlib.sha256(repr(data.categories).encode())
    for clip in data.clips:
        frames = [path.stem for path in clip.annotations]
        digest.update(repr((clip.name, frames, sorted((clip.categories or {}).items()))).encode())
    content = {
        "format": FORMAT,
        "size": size,
        "clips": len(data.clips),
        "of": digest.hexdigest(),
    }
    return json.dumps(content, indent=2) + "\n"


def _begin(out: Path, fingerprint: str) -> None:
    """Claim the folder for this preparation, and remove the incomplete files of a killed one."""
    begun = out / _BEGUN
    check_no_file(out)
    if begun.is_file():
        if begun.read_text(encoding="utf-8", errors="replace") != fingerprint:
            raise UserError(
                f"{out} was begun with another --size, other data or another version of bmvtrack; "
                "give another folder, or delete it"
            )
    elif out.is_dir() and listed(out):
        raise UserError(f"{out} contains something else; give an empty or a new folder")
    else:
        write_text(begun, fingerprint)
    for left in shard_path(out, 0).parent.glob(".*"):
        left.unlink()


def _worked_off(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[int, Shard]]:
    """Shards in the order in which they are finished, with their numbers."""
    if workers == 1:
        for job in jobs:
            yield job.number, _shard(job)
        return
    with worker_pool(workers) as pool:
        numbers = {pool.submit(_shard, job): job.number for job in jobs}
        for future in as_completed(numbers):
            yield numbers[future], future.result()


def _shard(job: _Job) -> Shard:
    shard = read_shard(job.path)
    return _make_shard(job) if shard is None or shard.made_of != job.made_of else shard


def _make_shard(job: _Job) -> Shard:
    records: list[NDArray[Any]] = []
    rows: list[tuple[str, int, str, int]] = []  # video, object, frame, class
    rbboxes: list[FloatArray] = [np.empty((0, 5))]
    windows: list[FloatArray] = [np.empty((0, 4))]
    dropped: Counter[str] = Counter()
    for clip in job.clips:
        kept, reasons = single_object_sequences(clip)
        dropped.update(reasons.values())
        if kept:
            of_clip = _windows(list(kept.values()))
            windows.append(of_clip.reshape(-1, 4))
            records.append(_cut_out(list(kept.values()), of_clip, job.size))
        for number, sequence in kept.items():
            category = 1 if clip.categories is None else job.classes[clip.categories[number]]
            rows += [(clip.name, number, path.stem, category) for path in clip.frames]
            rbboxes.append(sequence.boxes)
    video, object_id, frame, category_column = zip(*rows, strict=True) if rows else ((),) * 4
    rbbox = np.concatenate(rbboxes)
    table = PatchTable(
        video=np.array(video, np.str_),
        object_id=np.array(object_id, np.uint8),
        frame=np.array(frame, np.str_),
        category=np.array(category_column, np.uint8),
        rbbox=rbbox,
        window=np.concatenate(windows),
        shard=np.full(len(rbbox), job.number, np.int32),
        row=np.arange(len(rbbox), dtype=np.int32),
    )
    return write_shard(job.path, job.size, records, table, dict(dropped), job.made_of)


def _windows(sequences: Sequence[VideoSequence]) -> FloatArray:
    """The paper's windows around the K objects of one clip, ``(K, T, 4)``."""
    boxes = np.stack([sequence.boxes for sequence in sequences])
    return patches.clipped(patches.window(boxes), np.array(sequences[0].size))


def _cut_out(sequences: Sequence[VideoSequence], windows: FloatArray, size: int) -> NDArray[Any]:
    """Records of all frames of the objects of one clip, ``(K·T,)``, object by object."""
    count, length = len(sequences), len(sequences[0])
    records = np.empty((count, length), record_type(size))
    where = torch.from_numpy(windows)  # (K, T, 4)
    sizes = torch.tensor([sequences[0].size] * count)
    for t in range(length):
        image = sequences[0].frame(t)
        layers = np.stack([np.dstack([image, s.mask(t)]) for s in sequences])  # (K, H, W, 4)
        fill = torch.tensor([[*image.mean(axis=(0, 1)), 0.0]] * count, dtype=torch.float32)
        seen = patches.crop(torch.from_numpy(layers), where[:, t], size, sizes, fill)
        records["patch"][:, t] = seen[:, :3].round().byte().permute(0, 2, 3, 1).numpy()
        records["mask"][:, t] = np.packbits((seen[:, 3] > 0.5).numpy(), axis=-1)
    return records.reshape(-1)
