"""Data by name, as the scripts take it: ``synthetic``, ``davis16:FOLDER``, ``stills:FOLDER``.

``cutouts:FOLDER`` makes sequences of a folder of stills: objects cut out of some move over others.

``otb:FOLDER`` and ``vot:FOLDER`` have boxes and no masks: to track in, not to pretrain on.
``youtube-vos:FOLDER`` is a store that ``prepare_youtube_vos.py`` made: patches and not sequences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.progress import track

from bmvtrack.data.bank import FrameBank, build_bank, held_out_of
from bmvtrack.data.cutouts import cutout_sequences
from bmvtrack.data.davis import load_davis16
from bmvtrack.data.otb import load_otb
from bmvtrack.data.patch_store import PatchStore
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.stills import load_stills
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.data.vot import load_vot
from bmvtrack.distributed import rank
from bmvtrack.errors import UserError

STILLS = ("stills", "duts")
STORE = "youtube-vos"
CUTOUTS = "cutouts"
MADE = ("synthetic", CUTOUTS)
"""Kinds whose sequences are made from a seed, as many as one asks for."""
KINDS = ("synthetic", CUTOUTS, "davis16", *STILLS, "otb", "vot", STORE)
_READERS = {**dict.fromkeys(STILLS, load_stills), "otb": load_otb, "vot": load_vot}


def parse(source: str) -> tuple[str, str]:
    """``kind[:where]`` → kind and where.

    Raises:
        UserError: if the kind is unknown, or needs a folder and has none.
    """
    kind, _, where = source.partition(":")
    if kind not in KINDS:
        raise UserError(
            f"unknown data {source!r}: it starts with its kind, like davis16:FOLDER; the kinds are "
            f"{', '.join(KINDS)}"
        )
    if kind == "synthetic" and source != kind:
        raise UserError(f"data {source!r}: synthetic sequences are of no folder; write synthetic")
    if kind != "synthetic" and not where:
        raise UserError(f"data {source!r} needs a folder: {kind}:FOLDER")
    return kind, where


def refuse_stills(option: str, source: str) -> None:
    """For who needs motion.

    Raises:
        UserError: if a source is of stills.
    """
    if parse(source)[0] in STILLS:
        raise UserError(
            f"--{option} {source}: stills have no motion; give videos, or {CUTOUTS}:FOLDER"
        )


def load_sequences(source: str, *, synthetic_count: int = 64, seed: int = 0) -> list[VideoSequence]:
    """The sequences that a source names.

    Args:
        source: ``synthetic``; ``davis16:FOLDER`` or ``davis16:FOLDER:SPLIT``; ``stills:FOLDER``
            (DUTS or ECSSD layout; ``duts`` is another name for it); ``cutouts:FOLDER`` (of the
            same layout); ``otb:FOLDER``; ``vot:FOLDER``.
        synthetic_count: number of sequences, where they are made.
        seed: of these.

    Raises:
        UserError: if the source is unknown or its folder is not as it should be.
    """
    kind, where = parse(source)
    if kind == STORE:
        raise UserError(
            f"{source} holds patches centred on their object and no sequences; "
            "it serves pretrain_vae.py --mode paper only"
        )
    if kind == "synthetic":
        return synthetic_sequences(synthetic_count, seed)
    if kind == CUTOUTS:
        return cutout_sequences(load_stills(Path(where)), synthetic_count, seed)
    if kind in _READERS:
        return _READERS[kind](Path(where))
    folder, colon, split = where.rpartition(":")
    if colon and not Path(where).is_dir():
        return load_davis16(Path(folder), split)
    return load_davis16(Path(where))


def split_cutouts(
    source: str, share: float, seed: int, *, count: int, made_from: int
) -> tuple[list[VideoSequence], list[VideoSequence]]:
    """Cut-out sequences to train on, and others, of stills that are held out from these.

    The stills held out are those that :meth:`~bmvtrack.data.bank.FrameBank.split` holds out of
    ``stills:FOLDER`` with the same share and seed. Both leave those out whose mask is empty.

    Args:
        source: ``cutouts:FOLDER``.
        share: of the stills, and of as many sequences as ``count``, that are held out.
        seed: of the choice.
        count: of sequences to train on.
        made_from: seed of the sequences.

    Raises:
        UserError: if the folder is not as it should be, or has too few images.
    """
    every = load_stills(Path(parse(source)[1]))
    # Not by mask(), which decodes the image as well, to compare their sizes.
    stills = [still for still in every if still.read_mask is not None and still.read_mask(0).any()]
    held_out = set(held_out_of(len(stills), share, seed).tolist())
    apart = [still for i, still in enumerate(stills) if i in held_out]
    rest = [still for i, still in enumerate(stills) if i not in held_out]
    few = min(len(apart), len(rest))
    if few < 2:
        raise UserError(
            f"{source}: of {len(stills)} images with an object {len(apart)} are held out, and cut-outs "
            "need at least 2 on either side; give more images, or another --validation-share"
        )
    others = max(1, round(share * count))
    return cutout_sequences(rest, count, made_from), cutout_sequences(apart, others, made_from)


def load_store(source: str) -> PatchStore | None:
    """The store of patches that a source names; None if it is a source of sequences.

    Raises:
        UserError: if the source is unknown, or its folder holds no store, or not a whole one.
    """
    kind, where = parse(source)
    return PatchStore(Path(where)) if kind == STORE else None


def fingerprints(data: Iterable[str]) -> list[str]:
    """Of each source: tells whether it still holds the same sequences, by names and lengths in their order.

    Args:
        data: sources by name.

    Raises:
        UserError: if one is not as it should be.
    """
    return [_fingerprint(source) for source in data]


def check_unchanged(data: Iterable[str], before: Sequence[str] | None, now: Sequence[str]) -> None:
    """Keep a run from going on with other data than it began with: other sequences would be held out.

    Args:
        data: sources by name.
        before: their fingerprints when the run was last saved; None if nobody took them.
        now: their fingerprints.

    Raises:
        UserError: naming the source that has changed.
    """
    for source, old, new in zip(data, before or now, now, strict=True):
        if old != new:
            raise UserError(
                f"{source} does not hold the sequences any more that this run began with, by names and "
                "lengths; put them back, or start over with another --out"
            )


def _fingerprint(source: str) -> str:
    kind, where = parse(source)
    if kind == "synthetic":
        return kind
    if kind == STORE:
        described = str(PatchStore(Path(where)).index_checksum)
    else:
        held = load_stills(Path(where)) if kind == CUTOUTS else load_sequences(source)
        described = json.dumps([(sequence.name, len(sequence)) for sequence in held])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def class_count(data: Iterable[str]) -> int:
    """Number of classes with background that a network needs for the sources together.

    Raises:
        UserError: if some tell categories apart and others do not.
    """
    stores = {source: load_store(source) for source in data}
    counts = {source: 2 if store is None else store.classes for source, store in stores.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{source}: {count}" for source, count in counts.items())
        raise UserError(
            f"--data differ in their number of classes ({each}); "
            "prepare_youtube_vos.py --class-agnostic makes it 2"
        )
    return next(iter(counts.values()))


def load_bank(name: str, sequences: Sequence[VideoSequence], longest_side: int) -> FrameBank:
    """Read sequences into a bank, with a progress bar (on the first rank)."""
    steps = build_bank(sequences, longest_side)
    total = len(sequences) + 1
    *_, bank = track(steps, f"reading {name}", total=total, disable=rank() > 0)
    assert isinstance(bank, FrameBank)
    return bank
