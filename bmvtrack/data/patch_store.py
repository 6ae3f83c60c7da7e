"""Patches on disk, ready for training: memory-mapped shards and one index.

A store is a folder::

    store.json          description: patch size, categories, split, shards; written last
    index.npz           one row per patch: :class:`PatchTable`, and the split
    shards/00000.npy    one record per patch: :func:`record_type`
    shards/00000.npz    the shard's rows of the table, and its checksum

A record holds a patch and its mask side by side, 200 KiB at 256×256 (the mask is packed to bits), so
that a sample takes one read. There are many shards rather than one large file because each shard is
written atomically by the process that makes it: nothing is copied at the end, a kill costs only the shards
in progress, and a damaged shard is remade alone. A shard holds several videos, so that the 3,471 of
YouTube-VOS stay well below the number of files that a process may hold open.

The store holds patches centred on their own object, as paper mode needs them. It does not hold what
is further away, so it cannot serve tracking mode, which looks through a box that has moved.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.errors import UserError
from bmvtrack.files import atomic_file, write_json

Split = Literal["train", "validation"]
IntArray = NDArray[np.int64]

FORMAT = 2
"""Format version of a store; in version 1, windows were not clipped at the frame's edge."""
_STORE, _INDEX, _SHARDS = "store.json", "index.npz", "shards"
_REMEDY = (
    "run prepare_youtube_vos.py again: it remakes only what is missing or damaged (use a new folder if "
    "another version of bmvtrack made this one)"
)


def record_type(size: int) -> np.dtype[Any]:
    """One patch on disk: ``patch`` ``(S, S, 3)`` uint8 RGB and ``mask`` ``(S, S/8)``, bits packed."""
    return np.dtype([("patch", np.uint8, (size, size, 3)), ("mask", np.uint8, (size, size // 8))])


@dataclass(frozen=True, eq=False)
class PatchTable:
    """Metadata of N patches.

    Attributes:
        video: ``(N,)`` names.
        object_id: ``(N,)`` uint8, number in the video's annotations.
        frame: ``(N,)`` names of the files.
        category: ``(N,)`` uint8, class of the object, 1 … the number of categories; 1 without categories.
        rbbox: ``(N, 5)`` float64 rotated boxes in the frame, continuous along the sequence.
        window: ``(N, 4)`` float64: left, top, right, bottom of the patch in the frame.
        shard: ``(N,)`` int32.
        row: ``(N,)`` int32, in the shard.
    """

    video: NDArray[np.str_]
    object_id: ByteArray
    frame: NDArray[np.str_]
    category: ByteArray
    rbbox: FloatArray
    window: FloatArray
    shard: NDArray[np.int32]
    row: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.video)

    @property
    def sequence(self) -> NDArray[np.str_]:
        """``(N,)`` video and object, which the paper calls a sequence."""
        return np.char.add(np.char.add(self.video, "/"), self.object_id.astype(np.str_))

    def columns(self) -> dict[str, Any]:
        """The columns by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]]) -> PatchTable:
        """The inverse of :meth:`columns`; other columns are ignored."""
        return cls(**{f.name: columns[f.name] for f in fields(cls)})

    @classmethod
    def concatenated(cls, tables: Sequence[PatchTable]) -> PatchTable:
        """All rows of several tables, in order."""
        columns = [table.columns() for table in tables]
        return cls(**{name: np.concatenate([c[name] for c in columns]) for name in columns[0]})


@dataclass(frozen=True, eq=False)
class Shard:
    """A complete shard on disk.

    Attributes:
        table: of its patches.
        dropped: number of objects that were left out, by reason.
        made_of: fingerprint of the data that it was made of.
        nbytes: size of the file of records.
        checksum: CRC-32 of that file.
    """

    table: PatchTable
    dropped: dict[str, int]
    made_of: str
    nbytes: int
    checksum: int


def shard_path(folder: Path, number: int) -> Path:
    """The file that holds the records of a store's shard."""
    return folder / _SHARDS / f"{number:05}.npy"


def write_shard(
    path: Path,
    size: int,
    records: Sequence[NDArray[Any]],
    table: PatchTable,
    dropped: dict[str, int],
    made_of: str,
) -> Shard:
    """Write a shard: its records, then beside them the table and what proves that they are complete.

    Args:
        path: of the records.
        size: of the patches, pixels.
        records: arrays of :func:`record_type`; they are concatenated.
        table: one row per record.
        dropped: see :class:`Shard`.
        made_of: see :class:`Shard`.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(record_type(size)),
        "fortran_order": False,
        "shape": (len(table),),
    }
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in records:
                file.write(part.tobytes())
        shard = Shard(table, dropped, made_of, temporary.stat().st_size, _checksum(temporary))
    note = {name: value for name, value in vars(shard).items() if name != "table"}
    with atomic_file(path.with_suffix(".npz")) as temporary:
        np.savez(temporary, note=np.array(json.dumps(note)), **table.columns())
    return shard


def read_shard(path: Path) -> Shard | None:
    """Read a shard; None if it is missing or damaged.

    Every byte of its records is read and compared with the checksum.
    """
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            note = json.loads(str(stored["note"]))
            shard = Shard(PatchTable.from_columns(stored), **note)
        whole = path.stat().st_size == shard.nbytes and _checksum(path) == shard.checksum
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # missing or damaged, in any of the ways a zip archive can be
    return shard if whole else None


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def write_store(
    folder: Path,
    size: int,
    categories: Sequence[str],
    shards: Sequence[Shard],
    validation: BoolArray,
    about: dict[str, Any],
) -> None:
    """Turn a folder of shards into a store: write its index, then ``store.json``.

    Args:
        folder: of the store, with its shards.
        size: of the patches, pixels.
        categories: names of the classes 1, 2, …; empty for class-agnostic data.
        shards: all of them, in order.
        validation: ``(N,)`` whether each patch, in order, is for validation rather than training.
        about: further entries of ``store.json``, for its readers.
    """
    table = PatchTable.concatenated([shard.table for shard in shards])
    with atomic_file(folder / _INDEX) as temporary:
        np.savez(temporary, validation=validation, **table.columns())
    description = {
        "format": FORMAT,
        "size": size,
        "patches": len(table),
        **about,
        "categories": list(categories),
        "index_checksum": _checksum(folder / _INDEX),
        "shard_bytes": [shard.nbytes for shard in shards],
    }
    write_json(folder / _STORE, description)


class PatchStore:
    """A finished store, read through memory maps.

    Args:
        folder: that ``prepare_youtube_vos.py`` wrote.

    Attributes:
        folder: as given.
        size: of the patches, pixels.
        categories: names of the classes 1, 2, …; empty for class-agnostic data.
        table: one row per patch.
        validation: ``(N,)`` boolean; the other patches are for training.
        index_checksum: of table and split; it differs between preparations.

    Raises:
        UserError: if the folder is not a store, or is incomplete. The sizes of all files are checked, and
            the checksum of the index; the checksums of the records are checked by the preparation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        description = _read_description(folder)
        self.size, self.categories = description.size, description.categories
        self.index_checksum = description.index_checksum
        for number, nbytes in enumerate(description.shard_bytes):
            path = shard_path(folder, number)
            if not path.is_file() or path.stat().st_size != nbytes:
                raise UserError(f"{path} is missing or damaged; {_REMEDY}")
        path = folder / _INDEX
        if not path.is_file() or _checksum(path) != description.index_checksum:
            raise UserError(f"{path} is missing, damaged or from another preparation; {_REMEDY}")
        with np.load(path, allow_pickle=False) as stored:
            self.table = PatchTable.from_columns(stored)
            self.validation: BoolArray = stored["validation"]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def classes(self) -> int:
        """Number of classes including background."""
        return 1 + max(1, len(self.categories))

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return len(self) * self.record_bytes

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return record_type(self.size).itemsize

    def indices(self, split: Split) -> IntArray:
        """Indices of the patches of one side of the split, ``(K,)``."""
        return np.flatnonzero(self.validation == (split == "validation"))

    def read(self, indices: IntArray, out: ByteArray) -> None:
        """Copy records, as bytes, into ``out``, ``(K, record_bytes)``."""
        shards, rows = self.table.shard[indices], self.table.row[indices]
        for place, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            out[place] = self._maps[shard][row]

    def patch(self, index: int) -> tuple[ByteArray, BoolArray]:
        """One patch ``(S, S, 3)`` uint8 and its mask ``(S, S)`` boolean."""
        raw = np.empty((1, self.record_bytes), np.uint8)
        self.read(np.array([index]), raw)
        record = raw.view(record_type(self.size))[0, 0]
        return record["patch"], np.unpackbits(record["mask"], axis=-1).view(np.bool_)

    @cached_property
    def _maps(self) -> dict[int, ByteArray]:
        """The records of each shard that has any, as ``(N, record_bytes)`` bytes."""
        maps = {}
        for number in np.unique(self.table.shard).tolist():
            path = shard_path(self.folder, number)
            try:
                records = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                raise UserError(f"{path} is damaged; {_REMEDY}") from error
            maps[number] = records.view(np.uint8).reshape(len(records), self.record_bytes)
        return maps


@dataclass(frozen=True)
class _Description:
    size: int
    categories: tuple[str, ...]
    index_checksum: int
    shard_bytes: tuple[int, ...]


def _read_description(folder: Path) -> _Description:
    path = folder / _STORE
    if not path.is_file():
        raise UserError(
            f"{folder} is not a finished store of patches: it has no {_STORE}; "
            "make one with prepare_youtube_vos.py"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UserError(
                f"{folder} is a store of format {found['format']}, made by another version of bmvtrack; "
                f"this version reads format {FORMAT}: run prepare_youtube_vos.py again, to a new folder"
            )
        return _Description(
            int(found["size"]),
            tuple(found["categories"]),
            found["index_checksum"],
            tuple(found["shard_bytes"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a store: {error}; {_REMEDY}") from error
