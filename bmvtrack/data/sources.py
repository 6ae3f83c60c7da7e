"""Data by name, as the scripts take it: ``synthetic``, ``davis16:FOLDER``, ``stills:FOLDER``.

``cutouts:FOLDER`` makes sequences from a folder of stills: objects cut out of some move over others.

``otb:FOLDER`` and ``vot:FOLDER`` have boxes but no masks: they are for tracking, not for pretraining.
``youtube-vos:FOLDER`` is a store that ``prepare_youtube_vos.py`` made: patches instead of sequences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
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
"""Kinds whose sequences are made from a seed, in any number."""
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
            f"unknown data {source!r}: it must start with its kind, as in davis16:FOLDER; the kinds are "
            f"{', '.join(KINDS)}"
        )
    if kind == "synthetic" and source != kind:
        raise UserError(f"data {source!r}: synthetic sequences have no folder; write synthetic")
    if kind != "synthetic" and not where:
        raise UserError(f"data {source!r} needs a folder: {kind}:FOLDER")
    return kind, where


def refuse_stills(option: str, source: str) -> None:
    """Reject stills where motion is needed.

    Raises:
        UserError: if the source consists of stills.
    """
    if parse(source)[0] in STILLS:
        raise UserError(
            f"--{option} {source}: stills have no motion; give videos, or {CUTOUTS}:FOLDER"
        )


def load_sequences(source: str, *, synthetic_count: int = 64, seed: int = 0) -> list[VideoSequence]:
    """The sequences that a source names.

    Args:
        source: ``synthetic``; ``davis16:FOLDER`` or ``davis16:FOLDER:SPLIT``; ``stills:FOLDER``
            (DUTS or ECSSD layout; ``duts`` is another name for it); ``cutouts:FOLDER`` (with the
            same layout); ``otb:FOLDER``; ``vot:FOLDER``.
        synthetic_count: number of sequences, if they are made from a seed.
        seed: of these sequences.

    Raises:
        UserError: if the source is unknown or its folder is invalid.
    """
    kind, where = parse(source)
    if kind == STORE:
        raise UserError(
            f"{source} holds patches centred on their object, not sequences; "
            "use it with pretrain_vae.py --mode paper only"
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
    """Cut-out sequences to train on, and others made from stills that are held out from training.

    The stills held out are those that :meth:`~bmvtrack.data.bank.FrameBank.split` holds out of
    ``stills:FOLDER`` with the same share and seed. Those without an object serve as backgrounds.

    Args:
        source: ``cutouts:FOLDER``.
        share: of the stills to hold out; the number of held-out sequences is this share of ``count``.
        seed: of the choice of stills.
        count: number of sequences to train on.
        made_from: seed of the sequences.

    Raises:
        UserError: if the folder is invalid, or has too few images.
    """
    every = load_stills(Path(parse(source)[1]))
    held_out = set(held_out_of(len(every), share, seed).tolist())
    apart = [still for i, still in enumerate(every) if i in held_out]
    rest = [still for i, still in enumerate(every) if i not in held_out]
    if min(len(apart), len(rest)) < 2:
        raise UserError(
            f"{source}: of {len(every)} images {len(apart)} are held out, but cut-outs need at least 2 on "
            "either side; give more images, or another --validation-share"
        )
    others = max(1, round(share * count))
    return cutout_sequences(rest, count, made_from), cutout_sequences(apart, others, made_from)


def load_store(source: str) -> PatchStore | None:
    """The store of patches that a source names; None if it is a source of sequences.

    Raises:
        UserError: if the source is unknown, or its folder holds no store or an incomplete one.
    """
    kind, where = parse(source)
    return PatchStore(Path(where)) if kind == STORE else None


def fingerprints(data: Iterable[str]) -> list[str]:
    """A fingerprint of each source, from the names and lengths of its sequences in order.

    Args:
        data: sources by name.

    Raises:
        UserError: if a source is invalid.
    """
    return [_fingerprint(source) for source in data]


def check_unchanged(data: Iterable[str], before: Sequence[str] | None, now: Sequence[str]) -> None:
    """Keep a run from being resumed with other data: different sequences would be held out.

    Args:
        data: sources by name.
        before: their fingerprints when the run was last saved; None if there are none.
        now: their fingerprints.

    Raises:
        UserError: naming the source that has changed.
    """
    for source, old, new in zip(data, before or now, now, strict=True):
        if old != new:
            raise UserError(
                f"{source} no longer holds the sequences that this run began with, by names and lengths; "
                "put them back, or start over with another --out"
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
    """Number of classes, including background, that a network needs for all sources together.

    Raises:
        UserError: if the sources differ in their number of classes.
    """
    stores = {source: load_store(source) for source in data}
    counts = {source: 2 if store is None else store.classes for source, store in stores.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{source}: {count}" for source, count in counts.items())
        raise UserError(
            f"the sources in --data differ in their number of classes ({each}); "
            "prepare_youtube_vos.py --class-agnostic gives 2 classes"
        )
    return next(iter(counts.values()))


def load_bank(
    name: str,
    sequences: Sequence[VideoSequence],
    longest_side: int,
    make: Callable[[], Sequence[VideoSequence]] | None = None,
) -> FrameBank:
    """:func:`~bmvtrack.data.bank.build_bank` with a progress bar (on the first rank)."""
    steps = build_bank(sequences, longest_side, make)
    total = len(sequences) + 1
    *_, bank = track(steps, f"reading {name}", total=total, disable=rank() > 0)
    assert isinstance(bank, FrameBank)
    return bank
