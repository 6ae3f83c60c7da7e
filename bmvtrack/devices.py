"""Which device networks run on."""

from __future__ import annotations

import torch

from bmvtrack.errors import UserError


def resolved_device(device: str) -> str:
    """``cuda`` or ``cpu`` for ``auto``, by what the machine has; any other name as it is."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        UserError: if it is a GPU and the machine has none.
    """
    checked = torch.device(device)
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device}: this machine has no CUDA device; use cpu")
    return checked
