"""Options shared by the evaluations of masks and of saliency maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bmvtrack.bundled import MASK_WEIGHTS
from bmvtrack.console import check_at_least
from bmvtrack.data.mirrored import upside_down
from bmvtrack.data.sequence import VideoSequence


@dataclass(kw_only=True)
class NetworkOptions:
    """Which network is evaluated, and how its stochastic masks are drawn."""

    weights: str = MASK_WEIGHTS
    """Name of bundled weights, or a folder; networks of paper mode and of tracking mode are supported."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the network."""
    upside_down: bool = False
    """Flip everything upside down. Networks err on their own training data, flipped, as they do on new
    data, so weights can be selected on it."""
    draws: int = 32
    """Stochastic masks that the oracle chooses from, computed in one decoder pass."""
    batch_size: int = 8
    """Frames or images per encoder pass."""
    seed: int = 0
    """Random seed of the stochastic masks."""

    def shown(self, sequences: Sequence[VideoSequence]) -> list[VideoSequence]:
        """The sequences as the network sees them, flipped if asked for."""
        return [upside_down(s) for s in sequences] if self.upside_down else list(sequences)

    def called(self, dataset: str) -> str:
        """The name of the data in the report."""
        return f"{dataset}, upside down" if self.upside_down else dataset

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: if one is invalid; it names the option.
        """
        check_at_least(1, self, "draws", "batch_size")
        check_at_least(0, self, "seed")
