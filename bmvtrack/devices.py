"""Choice of the device that networks run on, and what it supports."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import warnings

import psutil
import torch

from bmvtrack.errors import UserError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_KEPT, _MOST_ONCE = 2**30, 2**25  # bytes


def check_choice(device: str) -> None:
    """Reject an unknown ``--device``.

    Raises:
        UserError: if it is not ``auto``, ``cpu`` or ``cuda``.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown --device {device!r}: use auto, cpu or cuda")


def resolved_device(device: str) -> str:
    """Replace ``auto`` by ``cuda`` or ``cpu``, whichever the machine has; other names are kept."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(device: str | torch.device) -> torch.device:
    """The device with this name, or the best available one for ``auto``.

    Raises:
        UserError: if it is neither a CPU nor a CUDA device, or a GPU that the machine does not have.
    """
    unknown = UserError(f"unknown device {str(device)!r}; use cpu, cuda, cuda:1 … or auto")
    try:
        checked = torch.device(resolved_device(device) if isinstance(device, str) else device)
    except RuntimeError:
        raise unknown from None
    if checked.type not in ("cpu", "cuda"):  # mps has no float64, which boxes need
        raise unknown
    if checked.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there:
            raise UserError(f"device {device}: this machine has no CUDA device; use cpu")
        if (checked.index or 0) >= there:
            raise UserError(
                f"no device {device}: this machine has {there} CUDA devices, numbered from cuda:0"
            )
    return checked


def free_memory(device: torch.device) -> int:
    """Bytes available for tensors on a device; on a GPU including what torch has reserved but not used."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


@functools.cache
def keep_freed_memory() -> None:
    """Make the C library keep up to 1 GiB of freed memory, for the whole process.

    Otherwise glibc may return the feature maps of a pass over many frames to the system afterwards, and the
    next pass gets them again page by page: 5,000 page faults per pass over 16 frames of 128×128, and 28,000
    over 64 frames, where this took a fifth of the time. Other C libraries are left alone. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        if not library.mallopt(_MMAP_THRESHOLD, _KEPT):  # the most before glibc 2.35:
            library.mallopt(_MMAP_THRESHOLD, _MOST_ONCE)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)


@functools.cache
def fork_with_one_thread() -> None:
    """Let torch use one thread in every process that this one forks from now on.

    A forked process, as of Gymnasium's AsyncVectorEnv, does not have its parent's threads, and torch would
    wait for them for ever. With one thread it needs none.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def data_capacity(device: torch.device) -> float:
    """Bytes of training data that may be kept on a device: half of a GPU's free memory; no limit on a CPU."""
    return free_memory(device) / 2 if device.type == "cuda" else math.inf


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to another device without waiting for it; to a GPU through pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def knows_bfloat16(device: str | torch.device) -> bool | None:
    """Whether a device has instructions for bfloat16 products; if not, float32 is faster.

    Args:
        device: a CPU or an available GPU.

    Returns:
        None if this version of torch does not tell (2.4 does not for CPUs).
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):
        return None
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def warn_of_emulation(device: str | torch.device) -> None:
    """Warn if a device that is to use bfloat16 has no instructions for it."""
    if knows_bfloat16(device) is False:
        warnings.warn(
            f"bfloat16 on a {torch.device(device).type.upper()} that has no instructions for it: "
            "float32 would be faster here",
            stacklevel=3,
        )
