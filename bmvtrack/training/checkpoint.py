"""Checkpoints of a run: written whole, the last few kept, read without unpickling."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bmvtrack.console import check_output_folder
from bmvtrack.errors import UserError
from bmvtrack.files import DAMAGED, atomic_file, check_sums

KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``step-NNNNNNNN.pt``; of those before it the last is kept, so that there are :data:`KEPT`.

    Those after it no longer count, and are named ``.damaged``: the run has gone on from before them.

    Args:
        folder: of checkpoints; made if missing.
        step: training steps done.
        state: tensors, numbers, strings, lists and dictionaries only.
    """
    for unfinished in folder.glob(".step-*"):  # by somebody who was killed
        unfinished.unlink()
    path = folder / f"step-{step:08d}.pt"
    with atomic_file(path) as temporary:
        torch.save(state, temporary)
    there = checkpoints(folder)
    newest = there.index(path) + 1
    for ahead in there[newest:]:
        ahead.replace(ahead.with_name(f"{ahead.name}.damaged"))
    for old in there[:newest][:-KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def checkpoint_step(path: Path) -> int:
    """Training steps that were done when a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that can be read, on the host.

    A damaged one (a full disk, a pulled plug) is passed over for the one before it.

    Raises:
        UserError: if there is none that can be read.
    """
    for path in reversed(checkpoints(folder)):
        try:
            check_sums(path)
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except DAMAGED:
            continue
        return state
    raise UserError(f"{folder} holds no checkpoint that can be read; start over elsewhere")


def check_run_folder(out: Path, resume: bool, options: dict[str, Any]) -> None:
    """Keep a run from being overwritten by another, and from being resumed where there is none.

    Args:
        out: folder of the run.
        resume: whether it is to go on.
        options: what may not change then; compared with ``options.json``, before anything large is read.

    Raises:
        UserError: if ``out`` holds checkpoints and the run is not resumed, or the other way round, or
            with other options, or it is no folder.
    """
    check_output_folder(out)
    there = checkpoints(out / "checkpoints")
    if there and not resume:
        raise UserError(f"{out} already holds a run; add --resume, or give another --out")
    if resume and not there:
        raise UserError(f"nothing to resume in {out}; leave --resume out to start")
    if resume:
        before = None
        with suppress(OSError, ValueError):  # lost or damaged: the checkpoint has them as well
            before = json.loads((out / "options.json").read_text(encoding="utf-8"))
        if isinstance(before, dict):
            _refuse_others(out, before, options)


def resumed_state(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The newest readable checkpoint of a run, whose ``options`` (a JSON text) must be the same.

    Args:
        folder: of checkpoints.
        options: what may not change when a run is resumed.

    Raises:
        UserError: if none can be read, or it belongs to a run with other options.
    """
    state = load_checkpoint(folder)
    _refuse_others(folder, json.loads(state["options"]), options)
    return state


def _refuse_others(folder: Path, before: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse to go on with other options than before, naming those that differ."""
    if "split_seed" not in before and "seed" in before:
        before = before | {"split_seed": before["seed"]}  # by which runs split before there was one
    changed = [name for name, value in options.items() if before.get(name) != value]
    if changed:
        raise UserError(
            f"{folder} belongs to a run with other options ({', '.join(changed)}); "
            "repeat its command and add --resume, or give another --out"
        )
