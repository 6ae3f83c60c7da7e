"""Options that the two evaluations share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bmvtrack.bundled import MASK_WEIGHTS
from bmvtrack.data.mirrored import upside_down
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError


@dataclass(kw_only=True)
class NetworkOptions:
    """Which network is judged, and how its stochastic masks are drawn."""

    weights: str = MASK_WEIGHTS
    """Bundled weights by name, or a folder; networks of paper mode and of tracking mode."""
    device: Literal["cpu", "cuda"] = "cpu"
    """For the network."""
    upside_down: bool = False
    """Show everything upside down: to choose between weights on data that they were trained on, which
    they err on then as on new data."""
    draws: int = 32
    """Stochastic masks that the oracle chooses from, in one decoder pass."""
    batch_size: int = 8
    """Frames or images in one encoder pass."""
    seed: int = 0
    """Of the stochastic masks."""

    def shown(self, sequences: Sequence[VideoSequence]) -> list[VideoSequence]:
        """Sequences as they are to be shown."""
        return [upside_down(s) for s in sequences] if self.upside_down else list(sequences)

    def called(self, dataset: str) -> str:
        """What the report calls the data."""
        return f"{dataset}, upside down" if self.upside_down else dataset

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            UserError: naming the option.
        """
        for name, least in (("draws", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option} must be at least {least}, not {value}")
