"""Observations of many clips at once: frames and boxes go through the encoder in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from bmvtrack.cuda_graphs import RowGraphs
from bmvtrack.data.frame_cache import FrameCache
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.devices import to_device
from bmvtrack.masks import PendingMasks, boxes_of_pending
from bmvtrack.models import Template
from bmvtrack.motion import Coordinates
from bmvtrack.movers import towards
from bmvtrack.percept import Percept
from bmvtrack.perception import BoxedFrames, Perception
from envs.state import as_observation, numbers_of, observe

Observations = dict[str, torch.Tensor]
FrameKey = tuple[VideoSequence, int]
"""A sequence and the index of a frame in it."""


@dataclass(frozen=True)
class View:
    """The frames that B environments look at, and the boxes they look through.

    Args:
        frames: B of them.
        boxes: ``(B, 5)`` float64, pixels.
        previous: ``(B, 5)`` float64, the motion that led there.
        sizes: ``(B, 2)`` float64, width and height of the frames.
        template: of the B objects; None if the network uses none.
    """

    frames: list[FrameKey]
    boxes: torch.Tensor
    previous: torch.Tensor
    sizes: torch.Tensor
    template: Template | None


@dataclass(frozen=True)
class Look:
    """A view and, on a GPU, the work that was started for it."""

    view: View
    percepts: list[Percept] = field(default_factory=list)
    masks: list[PendingMasks] = field(default_factory=list)


class BatchObserver:
    """Turns views into observations.

    On a CPU all views go through the encoder in one pass, when the observations are asked for. On a GPU
    the encoder starts with :meth:`look`, part by part, and while it is at one part the host finds the
    boxes of the masks of the part before.

    Args:
        perception: the encoder.
        cache: of the frames, on the encoder's device.
        coordinates: of the actions.
        varying: whether views differ in their number of frames. A GPU then pads them to few sizes, so
            that few CUDA graphs are captured.
    """

    def __init__(
        self, perception: Perception, cache: FrameCache, coordinates: Coordinates, varying: bool
    ) -> None:
        self._perception, self._cache = perception, cache
        self._coordinates: Coordinates = coordinates
        self._varying = varying
        self._numbers = RowGraphs()  # on a GPU

    def memorize(
        self, frames: Sequence[FrameKey], boxes: torch.Tensor, sizes: torch.Tensor
    ) -> Template:
        """Templates of the objects in B first frames.

        Args:
            frames: B of them.
            boxes: ``(B, 5)`` float64 around the objects, pixels.
            sizes: ``(B, 2)`` float64, width and height of the frames.
        """
        template = self._perception.memorize(self._boxed(frames, boxes, sizes))
        assert template is not None, "only of networks that use templates"
        return template

    def look(self, view: View) -> Look:
        """Begin to look. On a GPU the work is launched, and the host does not wait for it."""
        look = Look(view)
        if self._perception.device.type != "cpu":
            for percept in self._percepts([view]):
                look.percepts.append(percept)
                masks = percept.probabilities, percept.windows, percept.box_threshold
                look.masks.append(PendingMasks(*masks))
        return look

    def observations(self, looks: Sequence[Look]) -> Observations:
        """The observations of all looks, one after the other."""
        views = [look.view for look in looks]
        boxes = torch.cat([view.boxes for view in views])
        sizes = torch.cat([view.sizes for view in views])
        previous = torch.cat([view.previous for view in views])
        if self._perception.device.type == "cpu":
            (percept,) = self._percepts(views)
            return observe(percept, boxes, previous, sizes, self._coordinates)
        percept = Percept.cat([percept for look in looks for percept in look.percepts])
        found = boxes_of_pending(masks for look in looks for masks in look.masks)
        state = percept.mean, percept.covariance, boxes, towards(found, boxes), sizes
        function = partial(numbers_of, coordinates=self._coordinates)
        numbers = self._numbers(function, state, constants=(self._coordinates,))
        return as_observation(percept, numbers, previous)

    def _percepts(self, views: Sequence[View]) -> Iterator[Percept]:
        """The encoder's percepts of all views, in parts."""
        templates = [view.template for view in views if view.template is not None]
        boxed = self._boxed(
            [frame for view in views for frame in view.frames],
            torch.cat([view.boxes for view in views]),
            torch.cat([view.sizes for view in views]),
        )
        template = Template.cat(templates) if templates else None
        return self._perception.in_parts(boxed, template, any_number=self._varying)

    def _boxed(
        self, frames: Sequence[FrameKey], boxes: torch.Tensor, sizes: torch.Tensor
    ) -> BoxedFrames:
        """Boxes and their frames, which are read if they are not in the cache."""
        keys = torch.from_numpy(np.array(self._cache.slots(frames)))
        slots = to_device(keys, self._perception.device)
        return BoxedFrames(self._cache.at(slots), boxes, sizes.long(), self._cache.means[slots])
