"""The weights that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from bmvtrack.errors import UserError

DEFAULT_WEIGHTS = "davis16-duts-small"
"""Bundled encoder and agent, trained on real images and video: the best that run at twice CSRT's rate on a
CPU, with AVX512 or without."""
ACCURATE_WEIGHTS = "davis16-duts"
"""Bundled encoder and agent with more pixels: more accurate, and slower."""
MASK_WEIGHTS = "davis16-duts-masks"
"""Bundled encoder with better masks, without an agent."""
BUNDLED = Path(__file__).parent / "weights"
"""The folder with a folder for each of them."""


def weights_folder(weights: str | Path) -> Path:
    """The folder of the bundled weights with this name, or the given folder itself.

    Raises:
        UserError: if neither exists.
    """
    bundled = BUNDLED / weights
    if isinstance(weights, str) and (bundled / "config.json").is_file():
        return bundled
    if Path(weights).is_dir():
        return Path(weights)
    names = sorted(p.name for p in BUNDLED.glob("*/") if (p / "config.json").is_file())
    raise UserError(
        f"no weights {str(weights)!r}: neither a folder nor bundled (bundled: {', '.join(names)})"
    )
