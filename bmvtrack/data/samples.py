"""Training samples drawn from a bank: crop, augment, normalise, in batches of tensors.

*Paper mode*: the patch is centred on the object of its own frame. *Tracking mode*: the frame is
seen through a box that is not right yet (the box of the frame before, or the true box moved by a
random motion), the box is the fourth input channel, and the posterior must explain the true motion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from bmvtrack import geometry, motion
from bmvtrack.cuda_graphs import Launcher
from bmvtrack.data import patches
from bmvtrack.data.augmentation import (
    Augmentation,
    colour_jitter,
    flipped,
    motion_of_mirrored,
    with_others,
)
from bmvtrack.data.bank import WHOLE, FrameBank
from bmvtrack.data.batch import Batch, BatchSource, Mode
from bmvtrack.iou import rotated_iou_torch

_LEAST_OVERLAP = 1 / 3  # IoU with the true box, for a box that has not lost its object
_ROOM = 256  # bytes per pixel of frames and patches to be free for a graph: about four times what it holds
_Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # targets, boxes, whether flipped


@dataclass(frozen=True)
class _View:
    """Frames seen through boxes: ``(B, 3, S, S)`` in [0, 255] and the share of each pixel that is object."""

    images: torch.Tensor
    mask: torch.Tensor  # (B, 1, S, S)
    box: torch.Tensor
    windows: torch.Tensor


class Sampler:
    """Draws batches from the targets of a bank.

    Args:
        bank: of frames.
        targets: indices of the targets to draw from, ``(K,)``.
        size: of the patch in pixels.
        channels: 3, or 4 with the filled box.
        mode: ``paper`` or ``tracking``.
        augmentation: of motion and colours.
        augment: apply flips, colours, blur and other objects or backgrounds; off for validation (the
            motion stays random).
        templates: show each object in another frame as well.
        graphed: draw and follow as CUDA graphs, one for each number of samples, from the fourth batch of that
            size on, where there is memory for them; for a bank on a GPU, and one generator for all batches.
    """

    def __init__(
        self,
        bank: FrameBank,
        targets: torch.Tensor,
        size: int,
        channels: int,
        mode: Mode,
        augmentation: Augmentation,
        augment: bool = True,
        templates: bool = False,
        graphed: bool = False,
    ) -> None:
        self.bank, self.targets, self.size, self.channels = bank, targets, size, channels
        self.mode, self.augmentation, self.augment, self.templates = (
            mode,
            augmentation,
            augment,
            templates,
        )
        self._weights = bank.weights[targets]
        self._reached = torch.zeros_like(bank.boxes)  # the network's boxes; 0: none yet
        self._drawn: _Drawn | None = None
        self._graphs: dict[int, _Graphs] | None = {} if graphed else None
        # Made once, because making them on a GPU waits for it.
        deviations = [
            augmentation.log_scale,
            augmentation.log_scale,
            augmentation.turn,
            augmentation.shift,
            augmentation.shift,
        ]
        self._strengths = torch.tensor(augmentation.strengths, dtype=torch.float64).to(bank.boxes)
        self._deviations = torch.tensor(deviations, dtype=torch.float64).to(bank.boxes)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples; all randomness comes from ``generator`` (on its device)."""
        if self._graphs is None:
            batch, self._drawn = self._samples(count, generator)
            return batch
        if count not in self._graphs:
            self._graphs[count] = _Graphs(count, self.bank.boxes)
        pixels = self.bank.objects[0].numel() + self.size**2
        batch, self._drawn = self._graphs[count].draw.run(
            lambda: self._samples(count, generator), (), (), [generator], _ROOM * count * pixels
        )
        return Batch.cat([batch])  # a copy: the next launch overwrites it

    def follow(self, by: torch.Tensor) -> None:
        """Keep the boxes to which the network moves on from those of the last batch drawn.

        The next frames may be seen through them. A box that has lost its object is discarded.

        Args:
            by: ``(B, 5)`` motion in ``object`` coordinates, of the samples as they were drawn.
        """
        assert self._drawn is not None
        drawn, by = self._drawn, by.detach().to(self.bank.boxes)
        if self._graphs is None:
            self._keep(by, *drawn)
            return
        graphs = self._graphs[len(by)]
        graphs.by.copy_(by)
        graphs.follow.run(lambda: self._keep(graphs.by, *drawn), [*drawn, self._reached])

    def reached(self) -> list[torch.Tensor]:
        """The boxes that the network reached when each target was last drawn, ``(M, 5)``; 0: none."""
        return [self._reached]

    def _samples(self, count: int, generator: torch.Generator) -> tuple[Batch, _Drawn]:
        """A batch, and what :meth:`follow` needs to know of it."""
        bank = self.bank
        # At least two: for a single draw, multinomial asks the device whether the weights are valid.
        drawn = max(count, 2)
        chosen = torch.multinomial(self._weights, drawn, replacement=True, generator=generator)
        chosen = chosen[:count]
        target = self.targets[chosen]
        truth, wanted = bank.boxes[target], bank.object_id[target]
        box = truth if self.mode == "paper" else self._moved(target, generator)
        whole = self._whole(target, generator)
        if self.augment and self.augmentation.whole_images:
            box = torch.where(whole[:, None], patches.box_of_whole(self._sizes(target)), box)
        views = [self._seen(target, box, wanted.masked_fill(whole, WHOLE))]
        if self.templates:
            other, seen_through = self._shown(target, generator)
            views.append(self._seen(other, seen_through, bank.object_id[other]))
        moved = motion.solve(box, geometry.nearest_label(truth, box), 1.0, 1.0, "object").float()
        if self.augment:
            group = bank.group[target]  # in the same sequence, the other object may be this one
            views = self._augmented(views, ~whole & (group != group.roll(1)), generator)
        seen, *templates = [self._patches(view) for view in views]
        batch = Batch(
            seen,
            (views[0].mask[:, 0] > 0.5).long(),
            box,
            torch.where(whole[:, None], torch.nan, moved),
            torch.where(whole[:, None, None, None], seen, templates[0]) if templates else None,
        )
        if not self.augment:
            return batch, (target, box, torch.zeros_like(whole))
        flip = torch.rand(count, generator=generator, device=box.device) < 0.5
        return flipped(batch, flip), (target, box, flip)

    def _keep(
        self, by: torch.Tensor, target: torch.Tensor, box: torch.Tensor, flip: torch.Tensor
    ) -> None:
        """See :meth:`follow`; ``by`` in the boxes' precision."""
        own = motion_of_mirrored(by, flip)
        after = _level(motion.apply(box, own, 1.0, 1.0, "object"))
        has_it = rotated_iou_torch(after, self.bank.boxes[target]) >= _LEAST_OVERLAP
        kept = has_it & (after[:, 2:4] > 0).all(dim=-1)
        # Of samples of one target the last counts. On a GPU, where several values are written to one place,
        # any of their numbers may arrive; so all of them write those of the last.
        order = torch.arange(len(target), device=target.device)
        last = ((target[:, None] == target) * order).amax(dim=1)
        self._reached[target] = torch.where(kept[:, None], after, 0.0)[last]

    def _whole(self, target: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Which targets are shown with their whole image, ``(B,)`` boolean: some of the stills.

        An object that is seen in a single frame of its sequence counts as a still.
        """
        still = self.bank.shown[target, 1] == 1
        if not (self.augment and self.augmentation.whole_images):
            return torch.zeros_like(still)
        chance = torch.rand(len(target), generator=generator, device=target.device)
        return still & (chance < self.augmentation.whole_images)

    def _sizes(self, target: torch.Tensor) -> torch.Tensor:
        """Width and height of the frames of targets, ``(B, 2)``, in the boxes' precision."""
        return self.bank.sizes[self.bank.frame_index[target]].to(self.bank.boxes)

    def _seen(self, target: torch.Tensor, box: torch.Tensor, wanted: torch.Tensor) -> _View:
        """Frames of targets seen through boxes, with the masks of the wanted objects."""
        bank = self.bank
        frame = bank.frame_index[target]
        windows = patches.window(box)
        if self.mode == "paper":
            windows = patches.clipped(windows, bank.sizes[frame].to(windows))
        objects, wanted = bank.objects[frame], wanted[:, None, None]
        mask = torch.where(wanted == WHOLE, objects > 0, objects == wanted).byte()[..., None]
        layers = torch.cat([bank.frames[frame], mask], dim=-1)  # (B, H, W, 4): one crop for both
        fill = functional.pad(bank.means[frame], (0, 1))
        seen = patches.crop(layers, windows, self.size, bank.sizes[frame], fill)
        return _View(seen[:, :3], seen[:, 3:], box, windows)

    def _augmented(
        self, views: list[_View], crowded: torch.Tensor, generator: torch.Generator
    ) -> list[_View]:
        """Put other things behind the objects of the same samples in all views, and change colours.

        Samples that are not ``crowded`` (they show their whole image, or the preceding sample is from the
        same sequence) get nothing behind their objects.
        """
        augmentation, count, device = self.augmentation, len(views[0].box), views[0].images.device

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        result = []
        other, background = augmentation.distractors > 0, augmentation.backgrounds > 0
        chosen = torch.where(crowded, uniform(count), 1.0) if other or background else None
        for view in views:
            images = view.images
            if chosen is not None:
                images = with_others(images, view.mask, chosen, uniform(4, count), augmentation)
            result.append(
                replace(view, images=colour_jitter(images, uniform(5, count), augmentation))
            )
        return result

    def _patches(self, view: _View) -> torch.Tensor:
        """The network's input for a view."""
        return patches.network_input(view.images, view.box, view.windows, self.channels)

    def _moved(self, target: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The box to look through: last frame's if there is one, moved, with a level label."""
        bank, augmentation, count = self.bank, self.augmentation, len(target)
        previous = bank.previous[target]
        base = torch.where((previous >= 0)[:, None], bank.boxes[previous], bank.boxes[target])
        choice = torch.randint(
            len(self._strengths), (count,), generator=generator, device=base.device
        )
        strength = self._strengths[choice] * torch.where(previous >= 0, augmentation.video, 1.0)
        box = self._shaken(base, strength, generator)
        if not (self.augment and augmentation.own_boxes):
            return box
        own = self._reached[previous]  # any box if there is no frame before; it is not used
        chance = torch.rand(count, generator=generator, device=box.device)
        taken = (chance < augmentation.own_boxes) & (previous >= 0) & (own[:, 2] > 0)
        return torch.where(taken[:, None], own, box)

    def _shown(
        self, target: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets that show the same objects, and boxes to see them through."""
        first, number = self.bank.shown[target].unbind(-1)
        chance = torch.rand(len(target), generator=generator, device=target.device)
        other = first + (chance * number).long().clamp_max(number - 1)
        boxes = self.bank.boxes[other]
        strength = boxes.new_full((len(boxes),), self.augmentation.template)
        return other, self._shaken(boxes, strength, generator)

    def _shaken(
        self, base: torch.Tensor, strength: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Boxes moved at random by ``strength`` times the standard deviations, with level labels.

        The network cannot see which label a box has: with random labels it would predict the mean for its
        two scales.
        """
        count, device = len(base), base.device
        normal = torch.randn(count, 5, generator=generator, device=device, dtype=base.dtype)
        noise = normal * self._deviations * strength[:, None]
        random_motion = torch.cat([noise[:, :2].exp(), noise[:, 2:3].sin(), noise[:, 3:]], dim=1)
        return _level(motion.apply(base, random_motion, 1.0, 1.0, "object"))


class _Graphs:
    """What is launched to draw ``count`` samples, and to follow them."""

    def __init__(self, count: int, boxes: torch.Tensor) -> None:
        self.draw = Launcher[tuple[Batch, _Drawn]](boxes.device)
        self.follow = Launcher[None](boxes.device)
        self.by = boxes.new_zeros(count, 5)  # where the graph reads the motion


class HostSampler:
    """Draws from a bank that is too large for the device and stays on the host, and sends the batches.

    Args:
        sampler: of that bank.
        device: to send batches to.
    """

    def __init__(self, sampler: BatchSource, device: torch.device) -> None:
        self.sampler, self.device = sampler, device

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples on the device; ``generator`` may be on the device."""
        on_host = torch.Generator().manual_seed(host_seed(generator))
        return self.sampler.draw(count, on_host).to(self.device)

    def follow(self, by: torch.Tensor) -> None:
        """See :class:`~bmvtrack.data.batch.BatchSource`; this waits for the device."""
        self.sampler.follow(by.cpu())

    def reached(self) -> list[torch.Tensor]:
        """See :class:`~bmvtrack.data.batch.BatchSource`."""
        return self.sampler.reached()


class MixedSampler:
    """Draws each batch from several samplers, in fixed shares.

    Args:
        samplers: of the data sets.
        shares: relative number of samples from each.
    """

    def __init__(self, samplers: Sequence[BatchSource], shares: list[float]) -> None:
        self.samplers = samplers
        self.shares = np.asarray(shares, dtype=np.float64) / sum(shares)
        self._counts: list[int] = []  # of the last batch, from each

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` samples: the integer part of each share, the rest drawn at random."""
        exact = self.shares * count
        counts = np.floor(exact).astype(np.int64)
        rest = count - int(counts.sum())
        if rest:
            fraction = exact - counts
            random = np.random.default_rng(host_seed(generator))
            counts += random.multinomial(rest, fraction / fraction.sum())
        self._counts = counts.tolist()
        drawn = [
            sampler.draw(number, generator)
            for sampler, number in zip(self.samplers, self._counts, strict=True)
            if number
        ]
        return Batch.cat(drawn)

    def follow(self, by: torch.Tensor) -> None:
        """See :class:`~bmvtrack.data.batch.BatchSource`."""
        parts = by.split(self._counts)
        for sampler, part in zip(self.samplers, parts, strict=True):
            if len(part):
                sampler.follow(part)

    def reached(self) -> list[torch.Tensor]:
        """See :class:`~bmvtrack.data.batch.BatchSource`."""
        return [boxes for sampler in self.samplers for boxes in sampler.reached()]


def _level(boxes: torch.Tensor) -> torch.Tensor:
    """The same boxes with the label that can be seen in a picture of them."""
    level: torch.Tensor = geometry.relabel(boxes, geometry.turns_to_level(boxes))
    return level


def host_seed(generator: torch.Generator) -> int:
    """A seed that follows from a generator's state; advances the generator.

    The state is on the host. A number drawn from the generator would be on its device, and if that is a
    GPU, the host would have to wait for it.
    """
    seed = state_seed(generator.get_state())
    torch.rand(1, generator=generator, device=generator.device)
    return seed


def state_seed(state: torch.Tensor) -> int:
    """A seed that follows from a generator's state, whatever the generator's device."""
    return int.from_bytes(hashlib.blake2b(state.numpy().tobytes(), digest_size=8).digest(), "big")
