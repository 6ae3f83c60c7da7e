"""Options that the two evaluations share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bmvtrack.errors import UserError


@dataclass(kw_only=True)
class NetworkOptions:
    """Which network is judged, and how its stochastic masks are drawn."""

    weights: str = "davis16-duts"
    """Bundled weights by name, or a folder; networks of paper mode and of tracking mode."""
    device: Literal["cpu", "cuda"] = "cpu"
    """For the network."""
    draws: int = 32
    """Stochastic masks that the oracle chooses from, in one decoder pass."""
    batch_size: int = 8
    """Frames or images in one encoder pass."""
    seed: int = 0
    """Of the stochastic masks."""

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
