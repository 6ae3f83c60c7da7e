"""Which clips an environment plays: drawn at random, or a fixed list."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmvtrack.data import sources
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from envs.state import check_count


@dataclass(frozen=True)
class Clip:
    """A stretch of a sequence to track through.

    Attributes:
        sequence: it is part of.
        start: frame whose true box is given.
        last: frame that ends it.
    """

    sequence: VideoSequence
    start: int
    last: int


class ClipSource:
    """Draws clips from sequences; without any, each clip is of a new synthetic sequence.

    Args:
        sequences: to draw from, or data by name (``davis16:FOLDER``); None: synthetic ones.
        length: steps of a clip at most.

    Raises:
        UserError: if no sequence has two frames, data is not as it should be, or length is not
            positive.
    """

    def __init__(self, sequences: Sequence[VideoSequence] | str | None, length: int) -> None:
        check_count("clip_length", length)
        self.sequences = _given(sequences)
        if self.sequences is not None and not any(len(s) > 1 for s in self.sequences):
            raise UserError(
                "no sequence has two frames: there is nothing to track (cutouts:FOLDER makes some of stills)"
            )
        self.length = length

    def draw(
        self,
        rng: np.random.Generator,
        sequence: int | str | None = None,
        start: int | None = None,
    ) -> Clip:
        """A clip; what is not chosen is random.

        Args:
            rng: of everything random.
            sequence: index or name; of synthetic sequences, the seed.
            start: frame with an object, and another frame after it.

        Raises:
            UserError: if the chosen sequence or start is not there, or has no object.
        """
        if not isinstance(sequence, str):
            sequence = _whole_number("sequence", sequence)
        start = _whole_number("start", start)
        chosen = self._sequence(rng, sequence)
        starts = usable_starts(chosen)
        if not starts.size:
            raise UserError(f"sequence {chosen.name!r} has no frame to start from")
        if start is None:
            start = int(rng.choice(starts))
        elif start not in starts:
            raise UserError(
                f"sequence {chosen.name!r} cannot start at frame {start}: "
                "there is no object, or no frame after it"
            )
        return self._clip(chosen, start)

    def spread(self, count: int) -> list[Clip]:
        """Clips spread evenly over the sequences, from evenly spread starts.

        Args:
            count: of clips.

        Raises:
            UserError: if there are no sequences to spread them over, or none that can be started.
        """
        if self.sequences is None:
            raise UserError(
                "clips are spread over sequences, and None means new ones for each clip: give a list, or "
                'data by name, like "synthetic"'
            )
        rounds = -(-count // len(self._usable))
        clips = []
        for i in range(count):
            turn, which = divmod(i, len(self._usable))
            sequence = self._usable[which]
            starts = usable_starts(sequence)
            clips.append(self._clip(sequence, int(starts[len(starts) * turn // rounds])))
        return clips

    @cached_property
    def _usable(self) -> list[VideoSequence]:
        """Given sequences that a clip can start in; reads all their boxes."""
        usable = [s for s in self.sequences or () if usable_starts(s).size]
        if not usable:
            raise UserError("no sequence has an object in a frame that another one follows")
        return usable

    def _clip(self, sequence: VideoSequence, start: int) -> Clip:
        return Clip(sequence, start, min(start + self.length, len(sequence) - 1))

    def _sequence(self, rng: np.random.Generator, wanted: int | str | None) -> VideoSequence:
        if self.sequences is None:
            if isinstance(wanted, str):
                raise UserError("synthetic sequences are chosen by number, not by name")
            seed = rng.integers(2**31) if wanted is None else wanted
            return synthetic_sequence(int(seed))
        if wanted is None:
            return self._usable[int(rng.integers(len(self._usable)))]
        for i, sequence in enumerate(self.sequences):
            if wanted in (i, sequence.name):
                return sequence
        raise UserError(
            f"no sequence {wanted!r}; there are {len(self.sequences)}: "
            f"{', '.join(s.name for s in self.sequences[:20])}"
        )


def _given(sequences: Any) -> list[VideoSequence] | None:
    """Sequences as a list.

    Raises:
        UserError: if they are none.
    """
    if sequences is None:
        return None
    if isinstance(sequences, str):
        return sources.load_sequences(sequences)
    several = isinstance(sequences, Iterable)
    given = list(sequences) if several else [sequences]
    wrong = [s for s in given if not several or not isinstance(s, VideoSequence)]
    if wrong:
        raise UserError(
            "sequences are a list of VideoSequence, or data by name, like davis16:FOLDER, not "
            f"{type(wrong[0]).__name__}"
        )
    return given


def _whole_number(option: str, value: Any) -> int | None:
    """An option of ``reset``.

    Raises:
        UserError: if it is no whole number.
    """
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UserError(f"the option {option} of reset is a whole number, not {value!r}") from None


def usable_starts(sequence: VideoSequence) -> NDArray[np.intp]:
    """Frames with an object and a frame after them."""
    return np.flatnonzero(sequence.present[:-1])


def assign_clips(clips: Sequence[Clip], players: int) -> list[Iterator[Clip]]:
    """Clips shared out among players, who play theirs in endless rounds.

    Each gets a stretch of them, as many as the others or, the last ones, one more: as many as
    Stable-Baselines3's ``evaluate_policy`` waits for, so that an evaluation plays every clip once.

    Args:
        clips: at least as many as players.
        players: how many there are.
    """
    ends = np.cumsum([0, *((len(clips) + i) // players for i in range(players))])
    return [cycle(clips[start:end]) for start, end in pairwise(ends.tolist())]
