"""Which device networks run on, and what it can do."""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import warnings

import psutil
import torch

from bmvtrack.errors import UserError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_KEPT, _MOST_ONCE = 2**30, 2**25  # bytes


def check_choice(device: str) -> None:
    """Refuse what is no choice of a ``--device``.

    Raises:
        UserError: if it is neither ``auto`` nor ``cpu`` nor ``cuda``.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown --device {device!r}: it is auto, cpu or cuda")


def resolved_device(device: str) -> str:
    """``cuda`` or ``cpu`` for ``auto``, by what the machine has; any other name as it is."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(device: str | torch.device) -> torch.device:
    """The device of that name, or the best one there is for ``auto``.

    Raises:
        UserError: if it is no device, or a GPU that the machine does not have.
    """
    try:
        checked = torch.device(resolved_device(device) if isinstance(device, str) else device)
    except RuntimeError:
        raise UserError(f"no device {device!r}; take cpu, cuda, cuda:1 … or auto") from None
    if checked.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there:
            raise UserError(f"device {device}: this machine has no CUDA device; use cpu")
        if (checked.index or 0) >= there:
            raise UserError(f"device {device}: this machine has {there}, counted from cuda:0 on")
    return checked


def free_memory(device: torch.device) -> int:
    """Bytes that tensors can still take on a device; on a GPU with those that torch holds unused."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep up to 1 GiB of what was freed, for the whole process.

    Without that glibc may give the maps of a pass over many frames back to the system after it, and the next
    pass gets them anew, page by page: 5,000 page faults a pass over 16 frames of 128×128, 28,000 over 64,
    where that took a fifth of the time. Other C libraries are left as they are. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        if not library.mallopt(_MMAP_THRESHOLD, _KEPT):  # before glibc 2.35 it took no more than:
            library.mallopt(_MMAP_THRESHOLD, _MOST_ONCE)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)


def data_capacity(device: torch.device) -> float:
    """Bytes of training data that may be kept on a device: half of a GPU's free memory, any on a CPU."""
    return free_memory(device) / 2 if device.type == "cuda" else math.inf


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on another device, without waiting for that: through pinned memory to a GPU."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def knows_bfloat16(device: str | torch.device) -> bool | None:
    """Whether a device has instructions for products of bfloat16; where not, float32 is faster.

    Args:
        device: a CPU or a GPU that is there.

    Returns:
        None where this version of torch does not say (2.4 does not, of CPUs).
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):
        return None
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def warn_of_emulation(device: str | torch.device) -> None:
    """Say so, where bfloat16 was asked for and the device has no instructions for it."""
    if knows_bfloat16(device) is False:
        warnings.warn(
            f"bfloat16 on a {torch.device(device).type.upper()} that has no instructions for it: "
            "float32 would be faster here",
            stacklevel=3,
        )
