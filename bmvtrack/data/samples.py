"""Training samples drawn from a bank: crop, jitter, normalise, in batches of tensors.

*Paper mode*: the patch is centred on the object of its own frame. *Tracking mode*: the frame is
seen through a box that is not yet right (the box of the frame before, or the true box moved by a
random motion), the box is the fourth input channel, and the true motion is what the posterior must
explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch.nn import functional

from bmvtrack import geometry, motion
from bmvtrack.data import patches
from bmvtrack.data.bank import WHOLE, FrameBank

Mode = Literal["paper", "tracking"]


@dataclass(frozen=True)
class Jitter:
    """Random motion of the box and of the colours of a training sample.

    Standard deviations of the motion at strength 1; each sample draws one of ``strengths``.
    """

    log_scale: float = 0.10
    """of log Δs on each side"""
    turn: float = 0.122
    """of θ, radians"""
    shift: float = 0.11
    """on each axis, in units of √(w·h)"""
    strengths: tuple[float, ...] = (0.5, 1.0, 1.6)
    """factors of the three above"""
    video: float = 0.5
    """another factor where the box of the frame before is moved: it is wrong already"""
    colour: float = 0.25
    """of brightness, contrast and saturation, uniform in ±this"""
    blur: float = 0.2
    """share of samples that are blurred"""


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        patches: ``(B, 3 or 4, S, S)`` float32, normalised.
        labels: ``(B, S, S)`` int64, 0 background, the number of the object's class elsewhere (1 where
            the data has no classes).
        boxes: ``(B, 5)`` the boxes the frames are seen through, in pixels of the frames as they are
            kept (a bank may have reduced them).
        motion: ``(B, 5)`` float32, true motion from there, in ``object`` coordinates.
    """

    patches: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    motion: torch.Tensor


class BatchSource(Protocol):
    """Whatever training batches are drawn from."""

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples; all randomness comes from ``generator``."""
        ...


class Sampler:
    """Draws batches from the targets of a bank.

    Args:
        bank: of frames.
        targets: indices of the targets to draw from, ``(K,)``.
        size: of the patch in pixels.
        channels: 3, or 4 with the filled box.
        mode: ``paper`` or ``tracking``.
        jitter: of motion and colours.
        augment: flips, colours and blur; off for validation (the motion stays random).
    """

    def __init__(
        self,
        bank: FrameBank,
        targets: torch.Tensor,
        size: int,
        channels: int,
        mode: Mode,
        jitter: Jitter,
        augment: bool = True,
    ) -> None:
        self.bank, self.targets, self.size, self.channels = bank, targets, size, channels
        self.mode, self.jitter, self.augment = mode, jitter, augment
        self._weights = bank.weights[targets]
        # Made once: to make them on a GPU is to wait for it.
        deviations = [jitter.log_scale, jitter.log_scale, jitter.turn, jitter.shift, jitter.shift]
        self._strengths = torch.tensor(jitter.strengths, dtype=torch.float64).to(bank.boxes)
        self._deviations = torch.tensor(deviations, dtype=torch.float64).to(bank.boxes)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples; all randomness comes from ``generator`` (on its device)."""
        bank = self.bank
        chosen = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        target = self.targets[chosen]
        truth = bank.boxes[target]
        box = truth if self.mode == "paper" else self._moved(target, generator)
        windows = patches.window(box)
        frame = bank.frame_index[target]
        sizes = bank.sizes[frame]
        objects, wanted = bank.objects[frame], bank.object_id[target][:, None, None]
        mask = torch.where(wanted == WHOLE, objects > 0, objects == wanted).byte()[..., None]
        layers = torch.cat([bank.frames[frame], mask], dim=-1)  # (B, H, W, 4): one crop for both
        fill = functional.pad(bank.means[frame], (0, 1))
        seen = patches.crop(layers, windows, self.size, sizes, fill)
        images, labels = seen[:, :3], seen[:, 3] > 0.5
        moved = motion.solve(box, geometry.nearest_label(truth, box), 1.0, 1.0, "object").float()
        if self.augment:
            chance = torch.rand(5, count, generator=generator, device=images.device)
            images = recoloured(images, chance, self.jitter)
        channels = [normalize(images)]
        if self.channels == 4:
            channels.append(2 * patches.fill_box(box, windows, self.size) - 1)
        batch = Batch(torch.cat(channels, dim=1), labels.long(), box, moved)
        if not self.augment:
            return batch
        return mirrored(batch, torch.rand(count, generator=generator, device=images.device) < 0.5)

    def _moved(self, target: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The box to look through: last frame's where there is one, moved and relabelled."""
        bank, jitter, count = self.bank, self.jitter, len(target)
        device, dtype = bank.boxes.device, bank.boxes.dtype

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

        previous = bank.previous[target]
        base = torch.where((previous >= 0)[:, None], bank.boxes[previous], bank.boxes[target])
        choice = torch.randint(len(self._strengths), (count,), generator=generator, device=device)
        strength = self._strengths[choice] * torch.where(previous >= 0, jitter.video, 1.0)
        noise = normal(count, 5) * self._deviations * strength[:, None]
        random_motion = torch.cat([noise[:, :2].exp(), noise[:, 2:3].sin(), noise[:, 3:]], dim=1)
        box = motion.apply(base, random_motion, 1.0, 1.0, "object")
        swap = torch.randint(2, (count,), generator=generator, device=device).to(dtype)
        return geometry.relabel(box, swap)


class MixedSampler:
    """Draws each batch from several samplers, in fixed shares.

    Args:
        samplers: of the data sets.
        shares: relative number of samples from each.
    """

    def __init__(self, samplers: Sequence[BatchSource], shares: list[float]) -> None:
        self.samplers, self.shares = samplers, torch.tensor(shares, dtype=torch.float64)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples: the whole part of each share, the rest drawn at random."""
        exact = self.shares / self.shares.sum() * count
        counts = exact.floor().long()
        rest = count - int(counts.sum())
        if rest:
            fraction = (exact - exact.floor()).to(generator.device)
            extra = torch.multinomial(fraction, rest, replacement=True, generator=generator).cpu()
            counts += torch.bincount(extra, minlength=len(counts))
        drawn = [
            sampler.draw(number, generator)
            for sampler, number in zip(self.samplers, counts.tolist(), strict=True)
            if number
        ]
        return Batch(
            *(
                torch.cat([getattr(batch, name) for batch in drawn])
                for name in ("patches", "labels", "boxes", "motion")
            )
        )


def normalize(images: torch.Tensor) -> torch.Tensor:
    """RGB in [0, 255] → the network's units, about ±2."""
    return images / 63.75 - 2


def recoloured(images: torch.Tensor, chance: torch.Tensor, jitter: Jitter) -> torch.Tensor:
    """Images with another brightness, contrast and saturation, some of them blurred.

    Args:
        images: ``(B, 3, S, S)`` in [0, 255].
        chance: ``(5, B)`` uniform in [0, 1): of brightness, contrast, saturation, whether an image is
            blurred, and how much.
        jitter: how much of each.
    """
    uniform = chance[..., None, None, None]
    brightness, contrast, saturation = 1 + jitter.colour * (2 * uniform[:3] - 1)
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + saturation * (images - grey)
    blurred = functional.avg_pool2d(
        functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1
    )
    amount = (uniform[3] < jitter.blur) * uniform[4]
    return (images + amount * (blurred - images)).clamp(0, 255)


def mirrored(batch: Batch, flip: torch.Tensor) -> Batch:
    """The samples where ``flip``, ``(B,)`` boolean, mirrored left to right with their motion."""
    signs = torch.ones(5, device=batch.motion.device)
    signs[2:4] = -1.0  # a tensor from a list would wait for the device
    return Batch(
        torch.where(flip[:, None, None, None], batch.patches.flip(-1), batch.patches),
        torch.where(flip[:, None, None], batch.labels.flip(-1), batch.labels),
        batch.boxes,
        torch.where(flip[:, None], batch.motion * signs, batch.motion),
    )
