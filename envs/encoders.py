"""The encoders that environments see through: one for all of a process that name the same weights."""

from __future__ import annotations

import os
from functools import lru_cache

from bmvtrack.bundled import weights_folder
from bmvtrack.errors import UserError
from bmvtrack.perception import Perception


def encoder_of(weights: str | os.PathLike[str] | Perception, device: str = "cpu") -> Perception:
    """Return a perception as it is, or that of the given weights, loaded once per process.

    Weights whose files have been rewritten are loaded again.

    Args:
        weights: name of bundled weights, a folder, or a perception.
        device: to run on, unless a perception is given.

    Raises:
        UserError: if the weights are none of these, or do not exist.
    """
    if isinstance(weights, Perception):
        return weights
    if not isinstance(weights, (str, os.PathLike)):
        raise UserError(
            "weights must be the name of bundled weights, a folder, or a Perception, not "
            f"{type(weights).__name__}"
        )
    name = os.fspath(weights)
    files = [weights_folder(name) / file for file in ("config.json", "model.safetensors")]
    stamps = tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)
    return _loaded(name, device, stamps)


@lru_cache(maxsize=4)
def _loaded(weights: str, device: str, stamps: tuple[int, ...]) -> Perception:
    return Perception.load(weights, device)
