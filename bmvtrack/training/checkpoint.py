"""Checkpoints of a run: written atomically, only the last few kept, read without unpickling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from bmvtrack.console import check_output_folder
from bmvtrack.errors import UserError
from bmvtrack.files import DAMAGED, atomic_file, check_sums, held, recover_folder

KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``step-NNNNNNNN.pt`` and delete older checkpoints until :data:`KEPT` are left.

    Checkpoints of later steps are renamed to ``.damaged``: the run was resumed from an earlier one, so
    they no longer belong to it.

    Args:
        folder: folder of the checkpoints; created if missing.
        step: training steps done.
        state: may hold only tensors, numbers, strings, lists and dictionaries.

    Raises:
        OSError: if the disk is full, or the folder cannot be written to.
    """
    for unfinished in folder.glob(".step-*"):  # left by a process that was killed
        unfinished.unlink()
    path = folder / f"step-{step:08d}.pt"
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own, in the course of the system's
            cause = error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from error
    there = checkpoints(folder)
    newest = there.index(path) + 1
    for ahead in there[newest:]:
        ahead.replace(ahead.with_name(f"{ahead.name}.damaged"))
    for old in there[:newest][:-KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The number of training steps done when a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Load the newest readable checkpoint, onto the CPU.

    A damaged checkpoint (full disk, power failure) is skipped in favour of the one before it.

    Raises:
        UserError: if there is no readable checkpoint.
    """
    for path in reversed(checkpoints(folder)):
        try:
            check_sums(path)
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except DAMAGED:
            continue
        return state
    raise UserError(f"{folder} holds no readable checkpoint; start over with another --out")


def check_run_folder(out: Path, resume: bool, options: dict[str, Any]) -> None:
    """Check that a new run overwrites no other run, and that a resumed run exists and has the same options.

    Args:
        out: folder of the run.
        resume: whether the run is resumed.
        options: the options that must not change on resuming; compared with ``options.json`` before
            anything large is read.

    Raises:
        UserError: if ``out`` is not a folder, holds checkpoints although the run is not resumed, or holds
            none or belongs to a run with other options although it is.
    """
    check_output_folder(out)
    there = checkpoints(out / "checkpoints")
    if there and not resume:
        raise UserError(f"{out} already holds a run; add --resume, or give another --out")
    if resume and not there:
        raise UserError(f"nothing to resume in {out}; omit --resume to start a new run")
    if resume:
        before = None
        with suppress(OSError, ValueError):  # lost or damaged: the checkpoint has them, too
            before = json.loads((out / "options.json").read_text(encoding="utf-8"))
        if isinstance(before, dict):
            _refuse_others(out, before, options)


@contextmanager
def held_run(out: Path) -> Iterator[None]:
    """Hold the folder of a run, without what a killed process left of the folders ``best`` and ``last``.

    Raises:
        UserError: if another process holds the folder.
    """
    with held(out):
        for name in ("best", "last"):
            recover_folder(out / name)
        yield


def resumed_state(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The newest readable checkpoint of a run, if its ``options`` (a JSON string) are the same.

    Args:
        folder: folder of the checkpoints.
        options: the options that must not change when a run is resumed.

    Raises:
        UserError: if no checkpoint can be read, or it belongs to a run with other options.
    """
    state = load_checkpoint(folder)
    _refuse_others(folder, json.loads(state["options"]), options)
    return state


def _refuse_others(folder: Path, before: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise a UserError that names the options that differ from those before."""
    if "split_seed" not in before and "seed" in before:
        before = before | {"split_seed": before["seed"]}  # older runs split by their seed
    changed = [name for name, value in options.items() if before.get(name) != value]
    if changed:
        raise UserError(
            f"{folder} belongs to a run with other options ({', '.join(changed)}); "
            "repeat its command with --resume, or give another --out"
        )
