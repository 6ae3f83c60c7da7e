"""The interface between encoder and agent: frames and boxes in; features, posterior and mask out.

The environment, the trackers and the agent all see frames through :class:`Perception`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from bmvtrack import geometry
from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.bundled import DEFAULT_WEIGHTS, weights_folder
from bmvtrack.cuda_graphs import RowGraphs, portions
from bmvtrack.data import patches
from bmvtrack.devices import (
    checked_device,
    fork_with_one_thread,
    keep_freed_memory,
    to_device,
    warn_of_emulation,
)
from bmvtrack.errors import UserError
from bmvtrack.masks import mask_geometry
from bmvtrack.models import (
    MultivariationalNetwork,
    Template,
    fold_batch_norms,
    foreground_probability,
    load_network,
)
from bmvtrack.models.bottleneck import Bottleneck
from bmvtrack.percept import Percept
from bmvtrack.perception_graphs import GraphCache

Precision = Literal["float32", "bfloat16"]
_AT_ONCE = 64  # frames in one pass on a CPU: with more, layers fit no cache and take gigabytes
_LAUNCHED_WHOLE = 8  # frames on a GPU with a graph for exactly that many; larger batches are padded
_AT_ONCE_ON_GPU = 256  # with more, a GPU is no faster, and the host would wait for all of them
_MOST_NUMBERS = 2**28  # float32 numbers of the frames in one pass
_ROOM = 2**25  # bytes per frame that must be free for a graph
_LEAST_SCALE, _MOST_SINE = 0.05, 0.95  # limits that keep a posterior mean where motion is defined


@dataclass(frozen=True, eq=False)
class BoxedFrames:
    """B frames on one canvas, each to be looked at through a box; all tensors are on one device.

    Attributes:
        frames: ``(B, H, W, 3)`` uint8 RGB; may be one frame, expanded.
        boxes: ``(B, 5)`` float64 rotated boxes in pixels.
        sizes: ``(B, 2)`` int64 true width and height.
        fill: ``(B, 3)`` float32 colour used outside the frame.
    """

    frames: torch.Tensor
    boxes: torch.Tensor
    sizes: torch.Tensor
    fill: torch.Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of the attributes."""
        return [self.frames, self.boxes, self.sizes, self.fill]

    def rows(self, part: slice) -> BoxedFrames:
        """Some of the frames and their boxes."""
        return BoxedFrames(*(tensor[part] for tensor in self.tensors()))


class Perception:
    """A frozen network that looks at frames through boxes.

    Args:
        network: a network of :mod:`bmvtrack.models` with 4 input channels (tracking mode) and ``frame``
            covariance. It is not changed; frames pass through a copy with the batch norms folded into the
            convolutions.
        device: to run on.
        precision: of the network's convolutions and products; ``bfloat16`` is about twice as fast for
            many frames at once if the device has instructions for it, and gives nearly the same results.

    On a GPU up to eight frames are processed by one launch of a CUDA graph
    (:class:`~bmvtrack.perception_graphs.GraphCache`). More are processed in parts of up to 256, padded to
    a power of two, each by one launch (:class:`~bmvtrack.cuda_graphs.RowGraphs`). A graph is captured when
    its shape recurs (up to eight frames: twice in a row), which takes as long as a few dozen passes, and
    its memory is held as long as this object exists. Several threads must not use this object at once then,
    because graphs read their frames from one place.

    Raises:
        UserError: if the network was not trained to track, or the device does not exist.
    """

    def __init__(
        self,
        network: MultivariationalNetwork,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        if network.input_channels != 4 or network.bottleneck.covariance_kind != "frame":
            raise UserError(
                "these weights cannot track: they were not pretrained with --mode tracking"
            )
        self.device = checked_device(device)
        fork_with_one_thread()
        if self.device.type == "cpu":
            keep_freed_memory()
        self.precision: Precision = precision
        if precision == "bfloat16":
            warn_of_emulation(self.device)
        self.network = network.eval()
        self._folded = (
            fold_batch_norms(network).to(self.device).to(memory_format=torch.channels_last)
        )
        self._graphs = GraphCache()
        self._passes, self._memories = RowGraphs(), RowGraphs()

    @classmethod
    def load(
        cls,
        weights: str | Path = DEFAULT_WEIGHTS,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> Perception:
        """Load bundled weights by name, or weights from a folder.

        Raises:
            UserError: if the weights do not exist or are invalid.
        """
        return cls(load_network(weights_folder(weights)), device, precision)

    @property
    def feature_count(self) -> int:
        """Number of features F."""
        return self.network.feature_count

    @property
    def uses_template(self) -> bool:
        """Whether the network takes a template of the object to look for."""
        return self.network.uses_template

    @torch.inference_mode()
    def __call__(self, boxed: BoxedFrames, template: Template | None = None) -> Percept:
        """Look at B frames.

        Args:
            boxed: the frames and the boxes to look through.
            template: of the B objects, from :meth:`memorize`; None: each patch is its own template.
        """
        return Percept.cat(list(self.in_parts(boxed, template)))

    @torch.inference_mode()
    def in_parts(
        self, boxed: BoxedFrames, template: Template | None = None, any_number: bool = False
    ) -> Iterator[Percept]:
        """The call in parts, where a GPU processes a batch in parts: the host can go on with the first part
        while the GPU works on the others.

        Args:
            boxed: as in the call.
            template: as in the call.
            any_number: whether B differs from call to call. Batches of up to eight frames then get no graph
                for exactly their size, because there would be too many graphs.
        """
        count = len(boxed)
        if not any_number and self._launches_whole(count):
            yield self._launch(*_joined(boxed), template)
        elif self.device.type == "cuda" and self._capturable:
            known = [] if template is None else template.tensors()
            tensors = *boxed.tensors(), *known
            for rows, whole in portions(count, _most_at_once(boxed.frames)):
                yield self._launch_part([tensor[rows] for tensor in tensors], whole)
        elif self.device.type != "cpu" or count <= _AT_ONCE:
            yield self._perceive(boxed, template)
        else:
            parts = []
            for index in torch.arange(count).split(_AT_ONCE):
                own = None if template is None else template.rows(index)
                part = slice(int(index[0]), int(index[-1]) + 1)
                parts.append(self._perceive(boxed.rows(part), own))
            yield Percept.cat(parts)

    @property
    def _capturable(self) -> bool:
        """Whether a graph can hold a pass; with flows it cannot: they copy constants to the device."""
        return type(self._folded.bottleneck) is Bottleneck

    @torch.inference_mode()
    def _launch_part(self, tensors: Sequence[torch.Tensor], rows: int) -> Percept:
        """Process part of a batch on a GPU, given the tensors of the boxed frames and of the template."""
        seen = self._passes(self._perceive_rows, tensors, rows, memory=rows * _ROOM)
        named = dict(zip(Percept.names(), seen, strict=True))
        return Percept(**named, box_threshold=self.network.box_threshold)

    def _perceive_rows(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """:meth:`_perceive` with plain tensors as arguments and results."""
        frames, boxes, sizes, fill, *known = tensors
        boxed = BoxedFrames(frames, boxes, sizes, fill)
        return self._perceive(boxed, Template.of(known) if known else None).tensors()

    def _launches_whole(self, count: int) -> bool:
        """Whether ``count`` frames are processed by one launch of a graph for exactly that many."""
        return self.device.type == "cuda" and count <= _LAUNCHED_WHOLE and self._capturable

    @torch.inference_mode()
    def _launch(
        self, frames: torch.Tensor, numbers: torch.Tensor, template: Template | None
    ) -> Percept:
        """Process few frames on a GPU, by one launch if their shape has occurred before.

        Args:
            frames: ``(B, H, W, 3)``, or ``(1, H, W, 3)``: one for all boxes; may be in pinned memory.
            numbers: ``(B, 10)`` float64: boxes, sizes and fill; may be in pinned memory.
            template: see the call.
        """
        percept = self._graphs(self._perceive_columns, frames, numbers, template, self.device)
        if percept is not None:
            return percept
        frames = frames.to(self.device, non_blocking=True)
        return self._perceive_columns(frames, numbers.to(self.device, non_blocking=True), template)

    def _perceive_columns(
        self, frames: torch.Tensor, numbers: torch.Tensor, template: Template | None
    ) -> Percept:
        """:meth:`_perceive` with the arguments of :meth:`_launch`, on the device."""
        return self._perceive(_apart(frames, numbers), template)

    def _perceive(self, boxed: BoxedFrames, template: Template | None) -> Percept:
        """Process all frames in one pass."""
        inputs, windows = self._patches(boxed)
        with self._autocast():
            output = self._folded(inputs, template=template)
        posterior = self._folded.bottleneck.to_motion(output.posterior)
        probabilities = foreground_probability(output.logits)
        mean, covariance = as_labelled(
            posterior.mean.double(), posterior.covariance.double(), boxed.boxes
        )
        mean[:, :2].clamp_(min=_LEAST_SCALE)
        mean[:, 2].clamp_(-_MOST_SINE, _MOST_SINE)
        return Percept(
            output.features.float(),
            mean,
            covariance,
            probabilities,
            windows,
            mask_geometry(probabilities, windows, boxed.boxes),
            self.network.box_threshold,
        )

    @torch.inference_mode()
    def memorize(self, boxed: BoxedFrames) -> Template | None:
        """The templates of the objects in B boxes, for later frames.

        Returns:
            The templates, or None if the network does not use them.
        """
        if not self.uses_template:
            return None
        if self.device.type != "cuda" or not self._capturable:
            return Template.of(self._memorize_rows(*boxed.tensors()))
        parts = []
        for rows, whole in portions(len(boxed), _most_at_once(boxed.frames)):
            tensors = boxed.rows(rows).tensors()
            known = self._memories(self._memorize_rows, tensors, whole, memory=whole * _ROOM)
            parts.append(Template.of(known))
        return Template.cat(parts)

    def _memorize_rows(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values of the templates, in one pass, given the tensors of the boxed frames."""
        inputs, _ = self._patches(BoxedFrames(*tensors))
        with self._autocast():
            return self._folded.memorize(inputs).tensors()

    def look(
        self, frame: ByteArray, rbboxes: FloatArray, template: Template | None = None
    ) -> Percept:
        """Look at one frame through one or several boxes: a batch of B.

        Args:
            frame: ``(H, W, 3)`` uint8 RGB.
            rbboxes: ``(5,)`` or ``(B, 5)``.
            template: of the B objects, see :meth:`remember`.
        """
        frames, numbers = _together(frame, rbboxes)
        if self._launches_whole(len(numbers)):
            return self._launch(frames.pin_memory(), numbers.pin_memory(), template)
        return self(self._moved(frames, numbers), template)

    def remember(self, frame: ByteArray, rbboxes: FloatArray) -> Template | None:
        """The templates of the objects in one frame's boxes; see :meth:`memorize`.

        Args:
            frame: ``(H, W, 3)`` uint8 RGB.
            rbboxes: ``(5,)`` or ``(B, 5)``.
        """
        return self.memorize(self._moved(*_together(frame, rbboxes)))

    def _autocast(self) -> torch.autocast:
        reduced = self.precision == "bfloat16"
        # No weight is used twice in a pass, and tensors that a graph captures must not be in a cache.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=reduced, cache_enabled=False
        )

    def _patches(self, boxed: BoxedFrames) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's input, and the windows of the frames that it shows."""
        size, channels = self.network.input_size, self.network.input_channels
        windows = patches.window(boxed.boxes)
        images = patches.crop(boxed.frames, windows, size, boxed.sizes, boxed.fill)
        inputs = patches.network_input(images, boxed.boxes, windows, channels)
        return inputs.contiguous(memory_format=torch.channels_last), windows

    def _moved(self, frames: torch.Tensor, numbers: torch.Tensor) -> BoxedFrames:
        """The result of :func:`_together`, on the device and in the form that the call takes."""
        return _apart(to_device(frames, self.device), to_device(numbers, self.device))


def _most_at_once(frames: torch.Tensor) -> int:
    """Number of frames of this size in one pass on a GPU: a power of two, smaller for large frames."""
    fit = max(1, _MOST_NUMBERS // frames[0].numel())
    return int(min(_AT_ONCE_ON_GPU, 1 << (fit.bit_length() - 1)))


def _together(frame: ByteArray, rbboxes: FloatArray) -> tuple[torch.Tensor, torch.Tensor]:
    """One frame ``(1, H, W, 3)`` and, for each of B boxes in it, box, size and fill ``(B, 10)``.

    All numbers are float64, which is exact for each of them, so that they reach a GPU in one transfer.
    """
    boxes = np.atleast_2d(rbboxes)
    numbers = np.empty((len(boxes), 10))
    numbers[:, :5] = boxes
    numbers[:, 5:7] = frame.shape[1::-1]
    numbers[:, 7:] = cv2.mean(frame)[:3]
    return torch.from_numpy(frame)[None], torch.from_numpy(numbers)


def _joined(boxed: BoxedFrames) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames, or the one frame of all boxes, and numbers ``(B, 10)`` as in :func:`_together`."""
    frames, *numbers = boxed.tensors()
    return frames[:1] if frames.stride(0) == 0 else frames, torch.cat(numbers, dim=1)


def _apart(frames: torch.Tensor, numbers: torch.Tensor) -> BoxedFrames:
    """The inverse of :func:`_joined`."""
    boxes, sizes, fill = numbers.split((5, 2, 3), dim=1)
    seen = frames.expand(len(numbers), -1, -1, -1)
    return BoxedFrames(seen, boxes.contiguous(), sizes.long(), fill.float())


def as_labelled(
    mean: torch.Tensor, covariance: torch.Tensor, boxes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert a Gaussian over the motion of level boxes to the boxes' own labels.

    The network's first scale is that of the side closest to horizontal
    (:func:`bmvtrack.geometry.turns_to_level`); for a box with w and h swapped, the two scales are swapped.

    Args:
        mean: ``(B, 5)`` in ``object`` coordinates.
        covariance: ``(B, 5, 5)``.
        boxes: ``(B, 5)``.
    """
    swapped = (geometry.turns_to_level(boxes) % 2 == 1).long()
    order = torch.arange(5, device=mean.device).repeat(len(boxes), 1)
    order[:, 0], order[:, 1] = swapped, 1 - swapped
    rows = covariance.gather(1, order[:, :, None].expand(-1, -1, 5))
    return mean.gather(1, order), rows.gather(2, order[:, None, :].expand(-1, 5, -1))
