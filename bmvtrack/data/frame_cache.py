"""Frames of many sequences as uint8 in one tensor on one device, within a memory limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import torch

from bmvtrack.data.sequence import VideoSequence
from bmvtrack.devices import free_memory, to_device
from bmvtrack.errors import UserError

GIBIBYTE = 2**30


class FrameCache:
    """The most recently requested frames, each in a slot with a common canvas; an LRU cache.

    Args:
        slots: number of frames to keep.
        width: of the canvas, at least that of the widest frame.
        height: of the canvas.
        device: to keep them on.

    Attributes:
        frames: ``(slots, H, W, 3)`` uint8 RGB, padded on the right and at the bottom.
        means: ``(slots, 3)`` float32, mean colour of each frame.
    """

    def __init__(self, slots: int, width: int, height: int, device: torch.device) -> None:
        self.frames = torch.empty(slots, height, width, 3, dtype=torch.uint8, device=device)
        self.means = torch.empty(slots, 3, device=device)
        self._slot_of: OrderedDict[tuple[int, int], int] = OrderedDict()  # oldest use first
        # Sequences are keyed by identity, not by name: those of two data sets may have the same name. A
        # number, unlike an address, is not reused when a sequence is gone.
        self._numbers: WeakKeyDictionary[VideoSequence, int] = WeakKeyDictionary()
        self._next_number = count()
        self._free = list(range(slots))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_numbers": list(self._numbers.items())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_numbers": WeakKeyDictionary(state["_numbers"])}

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return self.frames.nbytes + self.means.nbytes

    def slots(self, wanted: Sequence[tuple[VideoSequence, int]]) -> list[int]:
        """Slots of frames; frames that are not cached yet are read.

        Args:
            wanted: sequence and index of each frame; at most as many different frames as there are slots.
        """
        numbers = {sequence: self._number(sequence) for sequence in {s for s, _ in wanted}}
        keys = [(numbers[sequence], t) for sequence, t in wanted]
        for key in keys:  # first, so that none of them is evicted for another
            if key in self._slot_of:
                self._slot_of.move_to_end(key)
        for key, (sequence, t) in zip(keys, wanted, strict=True):
            if key not in self._slot_of:
                self._slot_of[key] = self._read(sequence, t)
        return [self._slot_of[key] for key in keys]

    def at(self, slots: torch.Tensor) -> torch.Tensor:
        """The frames in slots, ``(B, H, W, 3)``; copied eight bytes at a time if the size allows it."""
        whole = self.frames[0].numel() % 8 == 0
        flat = self.frames.flatten(1)
        wide = flat.view(torch.int64) if whole else flat
        return wide[slots].view(torch.uint8).view(len(slots), *self.frames.shape[1:])

    def _number(self, sequence: VideoSequence) -> int:
        if sequence not in self._numbers:
            self._numbers[sequence] = next(self._next_number)
        return self._numbers[sequence]

    def _read(self, sequence: VideoSequence, t: int) -> int:
        frame = sequence.frame(t)
        height, width = frame.shape[:2]
        slot = self._free.pop() if self._free else self._slot_of.popitem(last=False)[1]
        device = self.frames.device
        self.frames[slot, :height, :width] = to_device(torch.from_numpy(frame), device)
        self.means[slot] = to_device(torch.tensor(cv2.mean(frame)[:3]), device)
        return slot


def make_frame_cache(
    sequences: Sequence[VideoSequence], at_once: int, limit: float | None, device: torch.device
) -> FrameCache:
    """A cache for all frames of ``sequences``, or for as many as the limit allows.

    Args:
        sequences: whose frames will be requested.
        at_once: number of frames that must be cached at the same time.
        limit: bytes that the frames may take; None: 4 GiB, or a quarter of a GPU's free memory if that is
            more.
        device: to keep them on.

    Raises:
        UserError: if the limit holds fewer than ``at_once`` frames.
    """
    width = max(sequence.size[0] for sequence in sequences)
    height = max(sequence.size[1] for sequence in sequences)
    frame_bytes = width * height * 3
    if limit is None:
        limit = max(4 * GIBIBYTE, free_memory(device) / 4 if device.type == "cuda" else 0)
    if limit < at_once * frame_bytes:
        raise UserError(
            f"a cache of {limit:,.0f} bytes is too small: {at_once} frames of {width}×{height} take "
            f"{at_once * frame_bytes:,}; allow more bytes or run fewer environments"
        )
    slots = min(sum(len(sequence) for sequence in sequences), limit / frame_bytes)
    return FrameCache(max(int(slots), at_once), width, height, device)
