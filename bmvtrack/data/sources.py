"""Data by name, as the scripts take it: ``synthetic``, ``davis16:FOLDER``, ``stills:FOLDER``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from bmvtrack.data.bank import FrameBank, build_bank
from bmvtrack.data.davis import load_davis16
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.stills import load_stills
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.errors import UserError

STILLS = ("stills", "duts")
KINDS = ("synthetic", "davis16", *STILLS)


def parse(source: str) -> tuple[str, str]:
    """``kind[:where]`` → kind and where.

    Raises:
        UserError: if the kind is unknown, or needs a folder and has none.
    """
    kind, _, where = source.partition(":")
    if kind not in KINDS:
        raise UserError(f"unknown data {source!r}: it starts with one of {', '.join(KINDS)}")
    if kind != "synthetic" and not where:
        raise UserError(f"data {source!r} needs a folder: {kind}:FOLDER")
    return kind, where


def load_sequences(source: str, *, synthetic_count: int = 64, seed: int = 0) -> list[VideoSequence]:
    """The sequences that a source names.

    Args:
        source: ``synthetic``; ``davis16:FOLDER`` or ``davis16:FOLDER:SPLIT``; ``stills:FOLDER``
            (DUTS or ECSSD layout; ``duts`` is another name for it).
        synthetic_count: number of synthetic sequences.
        seed: of the synthetic sequences.

    Raises:
        UserError: if the source is unknown or its folder is not as it should be.
    """
    kind, where = parse(source)
    if kind == "synthetic":
        return synthetic_sequences(synthetic_count, seed)
    if kind in STILLS:
        return load_stills(Path(where))
    folder, colon, split = where.rpartition(":")
    return load_davis16(Path(folder), split) if colon else load_davis16(Path(where))


def load_bank(name: str, sequences: Sequence[VideoSequence], longest_side: int) -> FrameBank:
    """Read sequences into a bank, with a progress bar."""
    steps = build_bank(sequences, longest_side)
    *_, bank = track(steps, f"reading {name}", total=len(sequences) + 1)
    assert isinstance(bank, FrameBank)
    return bank
