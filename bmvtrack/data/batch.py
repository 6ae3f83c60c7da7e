"""Training batches: what is drawn, and from whatever it is drawn."""

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
        labels: ``(B, S, S)`` int64, 0 background, the number of the object's class elsewhere (1 where
            the data has no classes).
        boxes: ``(B, 5)`` the boxes the frames are seen through, in pixels of the frames as they are
            kept (a bank may have reduced them).
        motion: ``(B, 5)`` float32, true motion from there, in ``object`` coordinates; NaN where there
            is none to learn.
        template: like ``patches``, of the same objects seen through their true boxes, in another frame
            where there is one; None where the network uses none.
    """

    patches: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    motion: torch.Tensor
    template: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device, without waiting for that."""
        return Batch(
            to_device(self.patches, device),
            to_device(self.labels, device),
            to_device(self.boxes, device),
            to_device(self.motion, device),
            None if self.template is None else to_device(self.template, device),
        )

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """Several batches as one."""
        templates = [part.template for part in parts if part.template is not None]
        return Batch(
            torch.cat([part.patches for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.motion for part in parts]),
            torch.cat(templates) if templates else None,
        )


class BatchSource(Protocol):
    """Whatever training batches are drawn from."""

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples; all randomness comes from ``generator``, all else from
        :meth:`reached`.
        """
        ...

    def follow(self, by: torch.Tensor) -> None:
        """Be told ``(B, 5)`` by which motion the network goes on from the boxes of the last batch drawn."""
        ...

    def reached(self) -> list[torch.Tensor]:
        """What is kept of that, to be saved, and written in place to go on from it."""
        ...
