"""Training batches, and the interface of the sources that they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from bmvtrack.devices import to_device

Mode = Literal["paper", "tracking"]


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        patches: ``(B, 3 or 4, S, S)`` float32, normalised.
        labels: ``(B, S, S)`` int64, 0 for background, the number of the object's class elsewhere (1 if
            the data has no classes).
        boxes: ``(B, 5)`` boxes that the frames are seen through, in pixels of the frames as stored
            (a bank may have reduced them).
        motion: ``(B, 5)`` float32, true motion from these boxes, in ``object`` coordinates; NaN where
            there is none to learn.
        template: like ``patches``, of the same objects seen through their true boxes, in another frame
            if there is one; None if the network uses no template.
    """

    patches: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    motion: torch.Tensor
    template: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device, without waiting for the copy."""
        return Batch(
            to_device(self.patches, device),
            to_device(self.labels, device),
            to_device(self.boxes, device),
            to_device(self.motion, device),
            None if self.template is None else to_device(self.template, device),
        )

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """Concatenate batches."""
        templates = [part.template for part in parts if part.template is not None]
        return Batch(
            torch.cat([part.patches for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.motion for part in parts]),
            torch.cat(templates) if templates else None,
        )


class BatchSource(Protocol):
    """A source that training batches are drawn from."""

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples; all randomness comes from ``generator``, all other state is in
        :meth:`reached`.
        """
        ...

    def follow(self, by: torch.Tensor) -> None:
        """Take the motion ``(B, 5)`` by which the network moves on from the boxes of the last batch drawn."""
        ...

    def reached(self) -> list[torch.Tensor]:
        """The state kept from :meth:`follow`: to be saved, and written in place when a run is resumed."""
        ...
