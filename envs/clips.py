"""The clips that an environment plays: drawn at random, or from a fixed list."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
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
    """A part of a sequence to track through.

    Attributes:
        sequence: the sequence that it is part of.
        start: first frame, whose true box is given.
        last: last frame.
    """

    sequence: VideoSequence
    start: int
    last: int


class ClipSource:
    """Draws clips from sequences or, without any, from new synthetic sequences.

    Args:
        sequences: sequences to draw from, or data by name (``davis16:FOLDER``); None: a new synthetic
            sequence for every clip.
        length: maximum number of steps per clip.

    Raises:
        UserError: if no sequence has two frames, the data is invalid, or ``length`` is not positive.
    """

    def __init__(self, sequences: Sequence[VideoSequence] | str | None, length: int) -> None:
        check_count("clip_length", length)
        self.sequences = _given(sequences)
        if self.sequences is not None and not any(len(s) > 1 for s in self.sequences):
            raise UserError(
                "no sequence has two frames, so there is nothing to track (cutouts:FOLDER makes sequences "
                "of stills)"
            )
        self.length = length

    def draw(
        self,
        rng: np.random.Generator,
        sequence: int | str | None = None,
        start: int | None = None,
    ) -> Clip:
        """Draw a clip; the sequence and start are random unless given.

        Args:
            rng: random generator.
            sequence: index or name; for synthetic sequences, the seed.
            start: first frame; it needs an object and a frame after it.

        Raises:
            UserError: if the chosen sequence or start does not exist or has no object.
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
                "there is no object in it, or no frame after it"
            )
        return self._clip(chosen, start)

    def spread(self, count: int) -> list[Clip]:
        """Clips spread evenly over the sequences, with evenly spread starts.

        If there are fewer clips than sequences, they are the beginnings of sequences spread evenly over the
        list.

        Args:
            count: number of clips.

        Raises:
            UserError: if there are no sequences, or a clip can start in none of them.
        """
        if self.sequences is None:
            raise UserError(
                "clips are spread over sequences, but None means new ones for each clip: give a list, or "
                'data by name, like "synthetic"'
            )
        available = len(self._usable)
        rounds = -(-count // available)
        clips = []
        for i in range(count):
            turn, which = (
                divmod(i, available) if count >= available else (0, i * available // count)
            )
            sequence = self._usable[which]
            starts = usable_starts(sequence)
            clips.append(self._clip(sequence, int(starts[len(starts) * turn // rounds])))
        return clips

    @cached_property
    def _usable(self) -> list[VideoSequence]:
        """The given sequences in which a clip can start; reads all their boxes."""
        usable = [s for s in self.sequences or () if usable_starts(s).size]
        if not usable:
            raise UserError("no sequence has an object in a frame with another frame after it")
        return usable

    def _clip(self, sequence: VideoSequence, start: int) -> Clip:
        return Clip(sequence, start, min(start + self.length, len(sequence) - 1))

    def _sequence(self, rng: np.random.Generator, wanted: int | str | None) -> VideoSequence:
        if self.sequences is None:
            if isinstance(wanted, str):
                raise UserError("synthetic sequences are chosen by number (the seed), not by name")
            seed = rng.integers(2**31) if wanted is None else wanted
            return synthetic_sequence(int(seed))
        if wanted is None:
            return self._usable[int(rng.integers(len(self._usable)))]
        for i, sequence in enumerate(self.sequences):
            if wanted in (i, sequence.name):
                return sequence
        raise UserError(
            f"no sequence {wanted!r}; the {len(self.sequences)} sequences are: "
            f"{', '.join(s.name for s in self.sequences[:20])}"
        )


def _given(sequences: Any) -> list[VideoSequence] | None:
    """The given sequences as a list.

    Raises:
        UserError: if they are not sequences.
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
            "sequences must be a list of VideoSequence, or data by name, like davis16:FOLDER, not "
            f"{type(wrong[0]).__name__}"
        )
    return given


def _whole_number(option: str, value: Any) -> int | None:
    """Check an option of ``reset``.

    Raises:
        UserError: if it is not an integer.
    """
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UserError(f"the option {option} of reset must be an integer, not {value!r}") from None


def usable_starts(sequence: VideoSequence) -> NDArray[np.intp]:
    """Frames that have an object and a frame after them."""
    return np.flatnonzero(sequence.present[:-1])


def assign_clips(clips: Sequence[Clip], players: int) -> list[deque[Clip]]:
    """Distribute clips over players, each of which plays its clips in an endless cycle, by rotating them.

    Each player gets consecutive clips, equally many except that the last players may get one more. These
    are the numbers of episodes that Stable-Baselines3's ``evaluate_policy`` waits for, so an evaluation
    plays every clip once.

    Args:
        clips: at least as many clips as players.
        players: number of players.
    """
    ends = np.cumsum([0, *((len(clips) + i) // players for i in range(players))])
    return [deque(clips[start:end]) for start, end in pairwise(ends.tolist())]
