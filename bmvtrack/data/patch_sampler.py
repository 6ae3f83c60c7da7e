"""Training batches from a store of patches, which is held on the device or streamed from disk.

Both ways give bitwise identical batches. Which patches a batch holds, and how they are augmented, depends
only on the state of the generator when the batch is drawn; so a run that is resumed from that state gets
the same batches, whatever had been read ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Protocol

import torch
from torch.nn import functional

from bmvtrack.data.augmentation import Augmentation, colour_jitter, flipped
from bmvtrack.data.batch import Batch
from bmvtrack.data.patch_store import IntArray, PatchStore, Split
from bmvtrack.data.patches import normalize
from bmvtrack.data.samples import host_seed
from bmvtrack.devices import data_capacity, to_device
from bmvtrack.errors import UserError
from bmvtrack.motion import AT_REST

READ_AHEAD = 2
"""Number of batches that are read before they are requested, each by its own thread."""
_LOAD_AT_ONCE = 512  # records


class Records(Protocol):
    """Source of the records of one side of the split."""

    def get(self, choice: torch.Tensor) -> torch.Tensor:
        """Records ``(B, record_bytes)`` uint8 on the device, by indices ``(B,)`` int64 on the CPU."""
        ...

    def expect(self, choices: Sequence[torch.Tensor]) -> None:
        """Announce what :meth:`get` will be called with next, if nothing else comes first."""
        ...


class ResidentRecords:
    """All records, held on the device.

    Args:
        store: of patches.
        indices: of the wanted patches, ``(K,)``.
        device: to hold them.
    """

    def __init__(self, store: PatchStore, indices: IntArray, device: torch.device) -> None:
        self._records = torch.empty(
            (len(indices), store.record_bytes), dtype=torch.uint8, device=device
        )
        for start in range(0, len(indices), _LOAD_AT_ONCE):
            part = _read(store, indices[start : start + _LOAD_AT_ONCE], pin=False)
            self._records[start : start + len(part)] = part

    def get(self, choice: torch.Tensor) -> torch.Tensor:
        """See :class:`Records`."""
        return self._records[to_device(choice, self._records.device)]

    def expect(self, choices: Sequence[torch.Tensor]) -> None:
        """Do nothing: all records are on the device."""


class StreamedRecords:
    """Records copied from the memory map on demand, or in advance while requests are predictable.

    Expected requests are only a guess: if anyone else draws from the generator, it is wrong. A wrong
    guess costs nothing but time. After one, nothing is read ahead until a guess was right again, so
    that a caller with unpredictable requests does not pay for patches that are not used.

    Args:
        store: of patches.
        indices: of the wanted patches, ``(K,)``.
        device: that the records are for; pinned memory is used if it is a GPU.
    """

    def __init__(self, store: PatchStore, indices: IntArray, device: torch.device) -> None:
        self.hits = 0
        """Number of requested batches that had been read ahead."""
        self._store, self._indices, self._device = store, indices, device
        self._expected: deque[tuple[torch.Tensor, Future[torch.Tensor] | None]] = deque()
        self._foreseen = False  # whether the last request was as expected
        self._threads = ThreadPoolExecutor(READ_AHEAD, "patches")

    def get(self, choice: torch.Tensor) -> torch.Tensor:
        """See :class:`Records`."""
        guess, future = self._expected.popleft() if self._expected else (None, None)
        self._foreseen = guess is not None and torch.equal(guess, choice)
        if not self._foreseen:
            self._forget()
        if self._foreseen and future is not None:
            self.hits += 1
            records = future.result()
        else:
            records = self._gather(choice)
        return records.to(self._device, non_blocking=True)

    def expect(self, choices: Sequence[torch.Tensor]) -> None:
        """See :class:`Records`; reads that have already begun continue."""
        begun = [future for _, future in self._expected]
        self._expected.clear()
        for choice, future in zip_longest(choices, begun):
            if future is None and self._foreseen:
                future = self._threads.submit(self._gather, choice)
            self._expected.append((choice, future))

    def _forget(self) -> None:
        for _, future in self._expected:
            if future is not None:
                future.cancel()
        self._expected.clear()

    def _gather(self, choice: torch.Tensor) -> torch.Tensor:
        return _read(self._store, self._indices[choice.numpy()], self._device.type == "cuda")


@dataclass(frozen=True)
class _Draw:
    """The random numbers of a batch, on the CPU."""

    choice: torch.Tensor  # (B,) int64, into the sampler's indices
    chance: torch.Tensor  # (6, B) uniform: five for the colours, one for the flip


class PatchSampler:
    """Draws batches from one side of a store's split, for paper mode.

    Args:
        store: of patches.
        split: which side.
        size: of the patches that the network takes; the store's are averaged down to it.
        device: of the batches.
        resident: keep all records on the device; otherwise stream them.
        augmentation: of the colours, with flips; None leaves the patches as they are, for validation.

    Raises:
        UserError: if the store's patches cannot be reduced to ``size`` by a whole factor.
    """

    def __init__(
        self,
        store: PatchStore,
        split: Split,
        size: int,
        device: torch.device,
        resident: bool,
        augmentation: Augmentation | None,
    ) -> None:
        if store.size % size:
            raise UserError(
                f"--input-size {size} does not divide the {store.size} pixels of the patches in "
                f"{store.folder}; give {store.size}, or prepare the patches in another size"
            )
        indices = store.indices(split)
        self.store, self.size, self.device, self.augmentation = store, size, device, augmentation
        self.count = len(indices)
        kind = ResidentRecords if resident else StreamedRecords
        self.records: Records = kind(store, indices, device)
        self._categories = torch.from_numpy(store.table.category[indices]).long().to(device)
        self._still = torch.tensor(AT_REST, device=device)
        self._boxes = torch.from_numpy(store.table.rbbox[indices]).to(device)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples; the generator advances by one number."""
        drawn = self._random(count, generator)
        records = self.records.get(drawn.choice)
        foreseen = torch.Generator(generator.device)
        foreseen.set_state(generator.get_state())
        self.records.expect([self._random(count, foreseen).choice for _ in range(READ_AHEAD)])
        return self._batch(records, drawn)

    def follow(self, by: torch.Tensor) -> None:
        """Do nothing: patches are centred on the true box."""

    def reached(self) -> list[torch.Tensor]:
        """An empty list: nothing is kept."""
        return []

    def _random(self, count: int, generator: torch.Generator) -> _Draw:
        """All random numbers of a batch."""
        own = torch.Generator().manual_seed(host_seed(generator))
        choice = torch.randint(self.count, (count,), generator=own)
        return _Draw(choice, torch.rand(6, count, generator=own))

    def _batch(self, records: torch.Tensor, drawn: _Draw) -> Batch:
        choice, chance = to_device(drawn.choice, self.device), to_device(drawn.chance, self.device)
        images, masks = unpacked(records, self.store.size)
        if self.size < self.store.size:
            factor = self.store.size // self.size
            images = functional.avg_pool2d(images, factor)
            masks = (functional.avg_pool2d(masks.float(), factor) > 0.5).byte()
        if self.augmentation is not None:
            images = colour_jitter(images, chance[:5], self.augmentation)
        labels = masks * self._categories[choice, None, None]
        motion = self._still.expand(len(choice), 5)
        batch = Batch(normalize(images), labels, self._boxes[choice], motion)
        return batch if self.augmentation is None else flipped(batch, chance[5] < 0.5)


def unpacked(records: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Records ``(B, record_bytes)`` → images ``(B, 3, S, S)`` float32, masks ``(B, S, S)`` 0 or 1."""
    pixels = 3 * size * size
    images = records[:, :pixels].reshape(-1, size, size, 3).permute(0, 3, 1, 2).float()
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=records.device)
    bits = (records[:, pixels:, None] >> shifts) & 1  # (B, S·S/8, 8)
    return images, bits.reshape(-1, size, size)


def _read(store: PatchStore, indices: IntArray, pin: bool) -> torch.Tensor:
    records = torch.empty((len(indices), store.record_bytes), dtype=torch.uint8, pin_memory=pin)
    store.read(indices, records.numpy())
    return records


def store_samplers(
    store: PatchStore, size: int, device: torch.device, resident_bytes: float | None = None
) -> tuple[PatchSampler, PatchSampler]:
    """Samplers of the training and the validation side of a store.

    Args:
        store: of patches.
        size: of the patches that the network takes.
        device: of the batches.
        resident_bytes: a store of this size or less is kept on the device, a larger one is streamed.
            Default: half of a GPU's free memory; 0 on a CPU, whose memory already holds the memory map.
    """
    if resident_bytes is None:
        resident_bytes = data_capacity(device) if device.type == "cuda" else 0
    resident = store.nbytes <= resident_bytes
    make = partial(PatchSampler, store, size=size, device=device, resident=resident)
    return make("train", augmentation=Augmentation()), make("validation", augmentation=None)
