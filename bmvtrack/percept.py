"""The output of an encoder for frames seen through boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Percept:
    """The network's output for B frames, each seen through a box.

    Attributes:
        features: ``(B, F)`` float32.
        mean: ``(B, 5)`` float64, posterior mean of the motion in ``object`` coordinates.
        covariance: ``(B, 5, 5)`` float64.
        probabilities: ``(B, S, S)`` float32, probability of object on the patch.
        windows: ``(B, 4)`` float64, where the patch lies in the frame.
        geometry: ``(B, 8)`` float32 soft-mask moments relative to the box, see
            :data:`bmvtrack.masks.GEOMETRY`.
        box_threshold: probability of object above which a pixel counts for the box of the mask.
    """

    features: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor
    probabilities: torch.Tensor
    windows: torch.Tensor
    geometry: torch.Tensor
    box_threshold: float

    @classmethod
    def cat(cls, parts: Sequence[Percept]) -> Percept:
        """Concatenate batches seen by one network; a single one is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        tensors = {n: torch.cat([getattr(part, n) for part in parts]) for n in cls.names()}
        return cls(**tensors, box_threshold=parts[0].box_threshold)

    def cpu(self) -> Percept:
        """The same percept on the host, where moving a few boxes is faster than on a GPU."""
        if self.mean.device.type == "cpu":
            return self
        return self.unpacked(self.packed().cpu())  # one transfer

    def packed(self) -> torch.Tensor:
        """The bytes of all tensors in one uint8 tensor; float64 tensors come first, for alignment."""
        tensors = (getattr(self, name) for name in self._packing())
        return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])

    def unpacked(self, packed: torch.Tensor) -> Percept:
        """Another percept of the same shapes, from its :meth:`packed` form; its tensors are views of it."""
        names = self._packing()
        models = [getattr(self, name) for name in names]
        parts = packed.split([model.numel() * model.element_size() for model in models])
        tensors = {
            name: part.view(model.dtype).view(model.shape)
            for name, part, model in zip(names, parts, models, strict=True)
        }
        return Percept(**tensors, box_threshold=self.box_threshold)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of the attributes."""
        return [getattr(self, name) for name in self.names()]

    @classmethod
    def names(cls) -> list[str]:
        """Names of the tensors."""
        return [field.name for field in fields(cls) if field.name != "box_threshold"]

    def _packing(self) -> list[str]:
        return sorted(self.names(), key=lambda name: -getattr(self, name).element_size())
