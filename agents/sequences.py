"""The sequences that an agent is trained on, and the clips by which the best one is selected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.progress import track

from agents.options import TrainOptions
from bmvtrack.data import sources
from bmvtrack.data.bank import share_of
from bmvtrack.data.mirrored import mirrored_views
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import SEED_STRIDE
from bmvtrack.errors import UserError
from envs.clips import Clip, ClipSource, usable_starts

# Offsets from the encoders' seeds, which are multiples of 1000: encoders err less on their own sequences.
TRAINING_SEED, _VALIDATION_SEED = 400, 500


def training_and_validation(options: TrainOptions) -> tuple[list[VideoSequence], list[Clip]]:
    """Training sequences, and validation clips of other sequences, equally many of each data set."""
    training: list[VideoSequence] = []
    held_out: list[list[VideoSequence]] = []
    for source in options.data:
        if options.validation_data:
            usable = _training(source, options)
        else:
            usable, apart = _split(source, options)
            held_out.append(with_mirrors(options, source, apart, first=True))
        training += with_mirrors(options, source, usable)
    held_out += [_for_validation(source, options) for source in options.validation_data]
    clips: list[Clip] = []
    for i, apart in enumerate(held_out, start=1):
        count = options.validation_clips * i // len(held_out) - len(clips)
        clips += ClipSource(apart, options.clip_length).spread(count)
    return training, clips


def _training(source: str, options: TrainOptions) -> list[VideoSequence]:
    seed = SEED_STRIDE * options.seed + TRAINING_SEED
    loaded = sources.load_sequences(source, synthetic_count=options.synthetic_count, seed=seed)
    return _usable(source, loaded)


def _for_validation(source: str, options: TrainOptions) -> list[VideoSequence]:
    seed = SEED_STRIDE * options.seed + _VALIDATION_SEED
    loaded = sources.load_sequences(source, synthetic_count=options.validation_clips, seed=seed)
    return _usable(source, loaded)


def _split(source: str, options: TrainOptions) -> tuple[list[VideoSequence], list[VideoSequence]]:
    """Training and held-out sequences; for generated data, the held-out ones are generated in addition,
    from stills of their own if they are made of stills."""
    kind = sources.parse(source)[0]
    if kind == sources.CUTOUTS:
        halves = sources.split_cutouts(
            source,
            options.validation_share,
            options.seed,
            count=options.synthetic_count,
            made_from=SEED_STRIDE * options.seed + TRAINING_SEED,
        )
        training, apart = (_usable(source, half) for half in halves)
        return training, apart
    usable = _training(source, options)
    if kind in sources.MADE:
        return usable, _for_validation(source, options)
    if len(usable) < 2:
        raise UserError(f"{source} has {len(usable)} usable sequences; at least 2 are needed")
    order = np.random.default_rng(options.seed).permutation(len(usable))
    chosen = set(order[: share_of(len(usable), options.validation_share)].tolist())
    parts: tuple[list[VideoSequence], list[VideoSequence]] = ([], [])
    for i, sequence in enumerate(usable):
        parts[i in chosen].append(sequence)
    return parts


def with_mirrors(
    options: TrainOptions, source: str, training: Sequence[VideoSequence], first: bool = False
) -> list[VideoSequence]:
    """The mirrored views of sequences that ``options`` ask for.

    Args:
        options: options of the training.
        source: name of the data; generated sequences are not mirrored, since more can be generated.
        training: its sequences.
        first: only one view of each sequence, the least mirrored one.
    """
    if sources.parse(source)[0] in sources.MADE:
        return list(training)
    views = [mirrored_views(sequence, options.mirror) for sequence in training]
    return [view for several in views for view in (several[:1] if first else several)]


def _usable(source: str, sequences: Sequence[VideoSequence]) -> list[VideoSequence]:
    """The sequences of a source that are suitable for tracking; reads all masks, and frames from files.

    Args:
        source: data by name.
        sequences: its sequences, or some of them.
    """
    read = track(sequences, f"reading {source}")
    usable = [s for s in read if len(s) > 1 and usable_starts(s).size]
    if sources.parse(source)[0] not in sources.MADE:
        for sequence in track(usable, f"checking {source}"):
            sequence.check_frame_sizes()  # now, rather than in the middle of a run
    if not usable:
        raise UserError(
            f"{source} has no usable sequence: none has an object in a frame with another after it"
        )
    return usable
