"""Training data on the training device: frames and objects as uint8 tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch

from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.workers import mapped
from bmvtrack.errors import UserError

WHOLE = 0
"""Object id that stands for everything that is not background."""
_SMALLEST_PART = 0.1  # of the largest part: smaller parts are not separate objects
_SMALLEST_AREA = 48  # pixels on the bank's canvas
_LEFT_OVER = 255  # object id of parts that are not separate objects
_WHOLE_SHARE = 0.3  # of the draws of an image with several parts


@dataclass(frozen=True, eq=False)
class FrameBank:
    """Frames on a common canvas, and the table of targets in them.

    A target is one object (or all objects of a frame together) with its box. ``previous`` links a target to
    the same object one frame earlier.

    Attributes:
        frames: ``(N, H, W, 3)`` uint8 RGB, padded on the right and at the bottom.
        objects: ``(N, H, W)`` uint8, 0 background, 1… the parts of the mask, 255 parts too small to
            be separate objects.
        sizes: ``(N, 2)`` int64, true width and height.
        means: ``(N, 3)`` float32, mean colour of each frame.
        frame_index: ``(M,)`` int64, the frame of each target.
        object_id: ``(M,)`` int64, its number in ``objects``; 0 is all objects.
        boxes: ``(M, 5)`` float64.
        previous: ``(M,)`` int64, the target one frame earlier; −1 where there is none.
        weights: ``(M,)`` float32, relative probability of being drawn.
        group: ``(M,)`` int64, the sequence (or still) that each target belongs to.
        shown: ``(M, 2)`` int64, first of the targets that show the same object, and their number.
    """

    frames: torch.Tensor
    objects: torch.Tensor
    sizes: torch.Tensor
    means: torch.Tensor
    frame_index: torch.Tensor
    object_id: torch.Tensor
    boxes: torch.Tensor
    previous: torch.Tensor
    weights: torch.Tensor
    group: torch.Tensor
    shown: torch.Tensor

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def to(self, device: torch.device | str) -> FrameBank:
        """The same bank on another device."""
        return FrameBank(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def split(self, share: float, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices of targets for training and for validation; no sequence is in both.

        Which sequences are held out depends on their number alone, not on whether an object is left in them
        after they were reduced.

        Args:
            share: of the sequences for validation, in (0, 1); each side gets at least one sequence.
            seed: of the shuffle.
            count: number of sequences that the bank was built from.

        Raises:
            UserError: if there is only one sequence, or no object on one of the sides.
        """
        held_out = held_out_of(count, share, seed).to(self.group.device)
        validation = torch.isin(self.group, held_out)
        halves = (~validation).nonzero()[:, 0], validation.nonzero()[:, 0]
        if not all(map(len, halves)):
            raise UserError(
                f"of {count} sequences {len(held_out)} are held out for validation, and one of the sides "
                "has no object; give another --split-seed or --validation-share"
            )
        return halves


def held_out_of(count: int, share: float, seed: int) -> torch.Tensor:
    """Indices ``(K,)`` of the sequences that are held out from training.

    Args:
        count: number of sequences.
        share: of the sequences to hold out, in (0, 1); at least one is held out, and one is not.
        seed: of the shuffle.

    Raises:
        UserError: if there is only one sequence.
    """
    if count < 2:
        raise UserError("one sequence cannot be split into training and validation; give more")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: share_of(count, share)]


def share_of(count: int, share: float) -> int:
    """The number of ``count`` ≥ 2 things that are a share of them; at least one is, and one is not."""
    return max(1, min(count - 1, round(share * count)))


@dataclass
class _Frame:
    image: ByteArray
    objects: ByteArray
    targets: list[tuple[int, FloatArray, float]]  # object id, box as OpenCV labels it, weight


def build_bank(
    sequences: Sequence[VideoSequence],
    longest_side: int,
    make: Callable[[], Sequence[VideoSequence]] | None = None,
) -> Iterator[FrameBank | int]:
    """Read sequences into a bank, on the CPU; frames are reduced to ``longest_side`` pixels.

    Yields the number of sequences read so far (for a progress bar) and finally the bank itself.

    Args:
        sequences: of one frame (stills: each part of the mask is a target) or more (videos: the
            whole mask is the target, linked from frame to frame).
        longest_side: of the canvas in pixels; larger frames are reduced to it.
        make: returns the same sequences, in each of several processes that read them if they have many
            frames. None: threads read them.

    Raises:
        UserError: if no frame has an object, or a file is invalid.
    """
    frames: list[_Frame] = []
    starts = [0]
    read = partial(_reduced_frames, longest_side=longest_side)
    results = mapped(read, sequences, make, sum(map(len, sequences)))
    for count, found in enumerate(results, start=1):
        frames.extend(found)
        starts.append(len(frames))
        yield count
    yield _assemble(frames, starts)


def _reduced_frames(sequence: VideoSequence, longest_side: int) -> list[_Frame]:
    video = len(sequence) > 1
    frames = []
    for t in range(len(sequence)):
        image, mask = sequence.frame(t), sequence.mask(t)
        scale = longest_side / max(mask.shape)
        if scale < 1:
            height, width = (max(1, round(side * scale)) for side in mask.shape)
            size = (width, height)
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
            reduced = cv2.resize(mask.view(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
            mask = np.asarray(reduced > 127)
        parts = [] if video else _parts(mask)
        objects = mask * np.uint8(_LEFT_OVER if parts else 1)
        box = geometry.from_mask(mask)
        targets = [] if box is None else [(WHOLE, box, _WHOLE_SHARE if parts else 1.0)]
        for number, part in enumerate(parts, start=1):
            objects[part] = number
            part_box = geometry.from_mask(part)
            assert part_box is not None
            targets.append((number, part_box, (1 - _WHOLE_SHARE) / len(parts)))
        frames.append(_Frame(image, objects, targets))
    return frames


def _parts(mask: BoolArray) -> list[BoolArray]:
    """The connected parts of a mask that are separate objects; none if there is only one."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
    areas = statistics[1:, cv2.CC_STAT_AREA]
    if count < 3:
        return []
    least = max(_SMALLEST_AREA, _SMALLEST_PART * areas.max())
    large = [i for i in range(1, count) if areas[i - 1] >= least]
    return [labels == i for i in large[: _LEFT_OVER - 1]] if len(large) > 1 else []


class _Target(NamedTuple):
    """A row of the bank's table, in the order of :class:`FrameBank`'s attributes."""

    frame: int
    object_id: int
    box: FloatArray
    previous: int
    weight: float
    group: int


def _assemble(frames: list[_Frame], starts: list[int]) -> FrameBank:
    targets: list[_Target] = []
    shown: list[tuple[int, int]] = []
    for group, (first, last) in enumerate(pairwise(starts)):
        known = len(targets)
        targets += _targets(frames[first:last], group, first, known)
        new = len(targets) - known
        video = last - first > 1
        shown += [(known, new)] * new if video else [(known + k, 1) for k in range(new)]
    if not targets:
        raise UserError("no frame of the training data has an object; are the masks all empty?")
    frame_index, object_id, boxes, previous, weights, groups = zip(*targets, strict=True)
    return FrameBank(
        frames=_padded([frame.image for frame in frames]),
        objects=_padded([frame.objects for frame in frames]),
        sizes=torch.tensor([f.image.shape[1::-1] for f in frames]),
        means=torch.from_numpy(_means(frames)),
        frame_index=torch.tensor(frame_index),
        object_id=torch.tensor(object_id),
        boxes=torch.from_numpy(np.stack(boxes)),
        previous=torch.tensor(previous),
        weights=torch.tensor(weights, dtype=torch.float32),
        group=torch.tensor(groups),
        shown=torch.tensor(shown),
    )


def _targets(sequence: Sequence[_Frame], group: int, first: int, known: int) -> list[_Target]:
    """The targets of one sequence, linked from frame to frame if it is a video.

    Args:
        sequence: its frames.
        group: number of the sequence.
        first: number of its first frame.
        known: number of the targets before.
    """
    targets: list[_Target] = []
    previous = -1
    for i, frame in enumerate(sequence, start=first):
        for number, box, weight in frame.targets:
            if previous >= 0:
                box = geometry.nearest_label(box, targets[previous - known].box)
            targets.append(_Target(i, number, box, previous, weight, group))
        linked = frame.targets and len(sequence) > 1
        previous = known + len(targets) - 1 if linked else -1
    return targets


def _padded(images: Sequence[ByteArray]) -> torch.Tensor:
    """Images ``(H, W, …)`` on a common canvas, padded with zeros on the right and at the bottom."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    result = np.zeros((len(images), height, width, *images[0].shape[2:]), np.uint8)
    for canvas, image in zip(result, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(result)


def _means(frames: Iterable[_Frame]) -> FloatArray:
    return np.array([cv2.mean(f.image)[:3] for f in frames], dtype=np.float32)
