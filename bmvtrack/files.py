"""Reading and writing files; writes are atomic: a temporary file beside the target is renamed to it."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bmvtrack.errors import UserError

DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, OSError, EOFError),
    *(ValueError, LookupError, AttributeError, TypeError),
)
"""Exceptions that :mod:`zipfile` and ``torch.load`` raise on damaged files."""
_SUMMARY, _BEGUN = "summary.json", ".begun.json"


def check_sums(path: Path) -> None:
    """Raise one of :data:`DAMAGED` if any byte of a file that ``torch.save`` wrote has changed.

    ``torch.load`` does not check this.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(damaged)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path with the same suffix, renamed to ``path`` if the block succeeds.

    Folders are created as needed; a symbolic link is kept, and its target replaced. If the block raises,
    nothing is left behind.
    """
    path = path.resolve() if path.is_symlink() else path
    with _folder(path.parent):
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix="".join(path.suffixes[-1:])
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``path``, or the target of that link, if the block succeeds.

    Raises:
        NotADirectoryError: if ``path`` is a file.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "there is a file with this name", str(path))
    with _folder(path.parent):
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            _swap(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_no_file(folder: Path) -> None:
    """Reject a file where a folder is expected; the folder need not exist yet.

    Raises:
        UserError: naming it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, created if missing, until the block ends.

    This takes a lock on ``.lock`` in the folder, which the system releases however the process ends. Where
    the system does not support locks, none is taken.

    Raises:
        UserError: if another process holds the folder, or it is a file.
    """
    check_no_file(folder)
    with _folder(folder):
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another process is writing to {folder}; wait until it is done, or give another folder"
            ) from error
        except NotImplementedError:
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)  # while the lock is held
            lock.release()


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Create a folder as needed; if the block raises, remove the created folders that are empty."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for one in made:
            with suppress(OSError):
                one.rmdir()
        raise


def _swap(new: Path, path: Path) -> None:
    """Replace a folder by another one; if that fails, restore it."""
    if not path.exists():
        new.replace(path)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        path.replace(aside / path.name)
        try:
            new.replace(path)
        except BaseException:
            (aside / path.name).replace(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undo what a process that was killed in :func:`atomic_folder` has left; none may be in it now.

    A folder that was about to be replaced, and is not there, is restored; what was being written is removed.
    """
    for left in path.parent.glob(f".{path.name}-????????"):
        aside = left / path.name
        if aside.is_dir() and not path.exists():
            aside.replace(path)
        shutil.rmtree(left, ignore_errors=True)


def listed(folder: Path) -> list[Path]:
    """Entries of a folder, sorted by name, without hidden files (``._00000.jpg``), which are not data."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, UTF-8 with or without a byte order mark.

    Raises:
        UserError: if the file cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: it is missing or not UTF-8 text") from error


def numbered_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files of a folder with one of the suffixes, without hidden ones; 2.png comes before 10.png.

    Links to files that are not there count too: whoever reads them says so.

    Args:
        folder: an existing folder.
        suffixes: in lower case, like ``.png``.
    """

    def key(path: Path) -> list[str | int]:
        parts = re.split(r"(\d+)", path.name)
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    entries = (path for path in listed(folder) if path.suffix.lower() in suffixes)
    return sorted((path for path in entries if not path.is_dir()), key=key)


def is_plain_name(name: str) -> bool:
    """Whether a name denotes an entry of a folder, and nothing outside it."""
    return name not in ("", "..") and Path(name).name == name


def note_begun(folder: Path, kind: str, names: Iterable[str], sequences: Iterable[str]) -> None:
    """Note what an evaluation will make, so that it can be removed if the evaluation is interrupted.

    Args:
        folder: of the evaluation; :func:`write_summary` removes the note.
        kind: see :func:`previously_made`.
        names: of trackers or protocols.
        sequences: names of sequences, or of images.
    """
    made = {"per_sequence": dict.fromkeys(sequences)}
    write_json(folder / _BEGUN, {kind: dict.fromkeys(names, made)})


def write_summary(folder: Path, summary: Mapping[str, object]) -> None:
    """Write ``summary.json``, with which an evaluation is complete."""
    write_json(folder / _SUMMARY, summary)
    (folder / _BEGUN).unlink(missing_ok=True)


def previously_made(folder: Path, kind: str) -> dict[str, list[str]]:
    """What an earlier evaluation has left in a folder, according to ``summary.json`` or :func:`note_begun`.

    Args:
        folder: with ``{kind: {name: {"per_sequence": {sequence: …}}}}`` in one of these files.
        kind: ``trackers`` or ``protocols``.

    Returns:
        The sequences of each name, all of them plain names; empty if no file has this form.
    """
    return _listed_in(folder / _SUMMARY, kind) or begun(folder, kind)


def begun(folder: Path, kind: str) -> dict[str, list[str]]:
    """What an interrupted evaluation may have left in a folder; see :func:`previously_made`."""
    return _listed_in(folder / _BEGUN, kind)


def _listed_in(path: Path, kind: str) -> dict[str, list[str]]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        made = {name: list(part["per_sequence"].keys()) for name, part in summary[kind].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    names = [*made, *(sequence for sequences in made.values() for sequence in sequences)]
    return made if all(map(is_plain_name, names)) else {}


def folder_name(folder: Path) -> str:
    """The name that the user gave a folder: a link's own name, and the real name of ``.`` and ``..``."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; bytes of a file name that are not UTF-8 are written as ``\\udcXX``."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically.

    Raises:
        ValueError: if ``value`` holds NaN or an infinity, which JSON cannot represent.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV; cells with commas or quotes in them are quoted."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
