"""The tracker for your own video: ``init`` with a box, then ``update`` with each new frame.

    tracker = Tracker.load()
    tracker.init(frame, (x, y, w, h))
    result = tracker.update(frame)

Evaluations run the same tracker through the interface of
:class:`bmvtrack.tracking.trackers.BoxTracker`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmvtrack import geometry, motion
from bmvtrack.arrays import BoolArray, FloatArray
from bmvtrack.bundled import DEFAULT_WEIGHTS, weights_folder
from bmvtrack.errors import UserError
from bmvtrack.inputs import COLOURS, Colour, corner_and_size, rgb_frame, rotated_box
from bmvtrack.masks import INSIDE, bounds_of_mask, mask_in_frame
from bmvtrack.models import Template
from bmvtrack.motion import AT_REST
from bmvtrack.movers import Mover, move_by_both
from bmvtrack.percept import Percept
from bmvtrack.perception import Perception

_AGENT_MOVER = "agents.tracker:load_agent_mover"  # by name: agents imports bmvtrack


@dataclass(frozen=True, eq=False)
class Result:
    """Position of an object in a frame, and the network's output for it.

    Attributes:
        rbbox: ``(5,)`` float64 rotated box x, y, w, h, α in pixels and radians.
        score: in [0, 1]; see :func:`confidence`.
        mean: ``(5,)`` float64, the posterior mean of the motion (Δs_x, Δs_y, sin θ, Δx, Δy) from
            ``previous``, in ``object`` coordinates: origin at the centre of ``previous``,
            translation in units of its √(w·h).
        covariance: ``(5, 5)`` float64 of the same: the network's, scaled by the weights' ``covariance_scale``
            (:mod:`bmvtrack.tracking.calibration`).
        previous: ``(5,)`` float64 rotated box in the frame before, through which this frame was seen.
        probabilities: ``(S, S)`` float32, probability of object on the patch.
        window: ``(4,)`` float64: left, top, right, bottom of the patch in the frame, pixels.
        size: width and height of the frame.
        box_threshold: probability above which a pixel of the mask counts for ``limits``.
    """

    rbbox: FloatArray
    score: float
    mean: FloatArray
    covariance: FloatArray
    previous: FloatArray
    probabilities: FloatArray
    window: FloatArray
    size: tuple[int, int]
    box_threshold: float

    @cached_property
    def mask(self) -> BoolArray:
        """``(H, W)``: where the probability of object is over ½, in the frame."""
        tensors = torch.from_numpy(self.probabilities), torch.from_numpy(self.window)
        return mask_in_frame(*tensors, *self.size)

    @cached_property
    def limits(self) -> FloatArray:
        """``(4,)`` axis-aligned bounds: left, top, right, bottom;
        see :func:`~bmvtrack.masks.bounds_of_mask`."""
        return bounds_of_mask(self.probabilities, self.window, self.rbbox, self.box_threshold)

    @property
    def box(self) -> FloatArray:
        """``(4,)`` axis-aligned ``x, y, w, h`` in pixels, as :meth:`Tracker.init` takes them."""
        return corner_and_size(self.limits)

    @property
    def centre(self) -> FloatArray:
        """``(2,)`` posterior mean of the object's centre, pixels of the frame."""
        result: FloatArray = self.previous[:2] + self._unit * self.mean[3:]
        return result

    @property
    def centre_covariance(self) -> FloatArray:
        """``(2, 2)`` posterior covariance of the object's centre, square pixels."""
        result: FloatArray = self._unit**2 * self.covariance[3:, 3:]
        return result

    def mahalanobis(self, rbbox: FloatArray) -> float:
        """(v − mean)ᵀ covariance⁻¹ (v − mean), where v is the motion from ``previous`` to a box.

        Of the box's equivalent labels the nearest to ``previous`` counts. If the box is the true one and the
        posterior is right, this is a draw from χ² with five degrees of freedom.

        Args:
            rbbox: ``(5,)`` rotated box, pixels and radians; NaN = no object.

        Returns:
            The squared distance, without unit; NaN without object.
        """
        labelled = geometry.nearest_label(rbbox, self.previous)
        difference = motion.solve(self.previous, labelled, *self.size, "object") - self.mean
        return float(difference @ np.linalg.solve(self.covariance, difference))

    @property
    def _unit(self) -> float:
        return float(np.sqrt(self.previous[2] * self.previous[3]))


class Tracker:
    """Follows one object in a video, or several with one encoder pass per frame.

    Args:
        perception: the encoder.
        mover: the rule that moves boxes by what the encoder sees.
        colour: order of the channels of the frames, ``rgb`` or ``bgr`` (OpenCV's).

    Raises:
        UserError: if ``colour`` is neither.
    """

    def __init__(
        self, perception: Perception, mover: Mover = move_by_both, colour: Colour = "rgb"
    ) -> None:
        if colour not in COLOURS:
            raise UserError(f"colour must be one of {COLOURS}, not {colour!r}")
        self._perception, self._mover, self._colour = perception, mover, colour
        self._size = (0, 0)
        self._boxes: dict[int, FloatArray] = {}
        self._motions: dict[int, FloatArray] = {}
        self._templates: dict[int, Template | None] = {}

    @classmethod
    def load(
        cls, weights: str | Path = DEFAULT_WEIGHTS, device: str = "cpu", colour: Colour = "rgb"
    ) -> Tracker:
        """Load a tracker from weights: boxes are moved by the weights' agent if there is one, else halfway
        between the posterior mean and the mask.

        Args:
            weights: a folder, or the name of bundled weights.
            device: ``cpu`` or ``cuda``, for the encoder.
            colour: see the class.

        Raises:
            UserError: if the weights do not exist, cannot track or do not fit each other, or the device
                does not exist.
        """
        folder = weights_folder(weights)
        perception = Perception.load(folder, device)
        if not (folder / "agent.json").is_file():
            return cls(perception, colour=colour)
        load_mover: Callable[[Path, Perception], Mover] = pkgutil.resolve_name(_AGENT_MOVER)
        return cls(perception, load_mover(folder, perception), colour)

    def init(self, frame: Any, box: Any, object_id: int = 1) -> None:
        """Start following an object, or restart one.

        Args:
            frame: ``(H, W, 3)`` uint8.
            box: of the object in the frame: ``x, y, w, h``, a rotated box, or a mask, all of whose pixels
                count; see :func:`bmvtrack.inputs.rotated_box`.
            object_id: distinguishes the objects of one video.

        Raises:
            UserError: if the frame is invalid, or its size differs from that of the other objects' frames;
                if the box is invalid or outside the frame.
        """
        rgb = rgb_frame(frame, self._colour)
        height, width = rgb.shape[:2]
        if self._boxes.keys() - {object_id} and self._size != (width, height):
            raise UserError(
                f"the frame is {width}×{height} but the other objects are followed in frames of "
                f"{self._size[0]}×{self._size[1]}; for another video, make another tracker"
            )
        rbbox = rotated_box(box, width, height)
        template = self._perception.remember(rgb, rbbox)  # may fail, so before any change of state
        self._boxes[object_id] = rbbox
        self._motions[object_id] = np.array(AT_REST)
        self._templates[object_id] = template
        self._size = width, height

    def update(self, frame: Any) -> Result:
        """Follow the one object into the next frame.

        Args:
            frame: ``(H, W, 3)`` uint8, of the same size as the first.

        Raises:
            UserError: if no object is followed, or several are (see :meth:`update_all`), or the frame is
                invalid or of another size.
        """
        if len(self._boxes) > 1:
            raise UserError(f"{len(self._boxes)} objects are followed: call update_all")
        (result,) = self.update_all(frame).values()
        return result

    @torch.inference_mode()
    def update_all(self, frame: Any) -> dict[int, Result]:
        """Follow all objects into the next frame, in one pass of the encoder; results by object id.

        Args:
            frame: ``(H, W, 3)`` uint8, of the same size as the first.

        Raises:
            UserError: if no object is followed, or the frame is invalid or of another size.
        """
        if not self._boxes:
            raise UserError("there is nothing to follow yet: call init with a frame and a box")
        rgb = rgb_frame(frame, self._colour)
        if rgb.shape[1::-1] != self._size:
            raise UserError(
                f"the frame is {rgb.shape[1]}×{rgb.shape[0]} but the first one was "
                f"{self._size[0]}×{self._size[1]}; all frames must have the same size"
            )
        before = np.stack(list(self._boxes.values()))  # (B, 5)
        percept = self._perception.look(rgb, before, self._template()).cpu()
        after = self._moved(percept, before)
        motions = motion.solve(before, after, *self._size, "object")
        ids = list(self._boxes)
        self._boxes = dict(zip(ids, after, strict=True))
        self._motions = dict(zip(ids, motions, strict=True))
        scale = self._perception.network.covariance_scale
        results = _results(percept, before, after, self._size, scale)
        return dict(zip(ids, results, strict=True))

    def _template(self) -> Template | None:
        """Templates of all objects, in the order of their boxes."""
        known = [template for template in self._templates.values() if template is not None]
        return Template.cat(known) if known else None

    def _moved(self, percept: Percept, before: FloatArray) -> FloatArray:
        boxes = torch.as_tensor(before).to(percept.mean)
        previous_motion = torch.as_tensor(np.stack(list(self._motions.values()))).to(percept.mean)
        sizes = torch.tensor([self._size], device=boxes.device).expand(len(boxes), -1)
        moved = self._mover(percept, boxes, previous_motion, sizes)
        return geometry.clamp(moved.cpu().numpy(), *self._size)


def confidence(percept: Percept) -> torch.Tensor:
    """How confident the network is in the masks and the positions of B objects.

    Mean probability inside the mask · exp(−√(Σ_Δx + Σ_Δy)), where the square root is the posterior's
    standard deviation of the centre in units of √(w·h). 0 where there is no mask. It says little when the
    network is confident in the wrong thing.

    Returns:
        ``(B,)`` in [0, 1].
    """
    variances = percept.covariance.diagonal(dim1=-2, dim2=-1)
    spread = variances[:, 3:].sum(dim=-1).sqrt()
    return percept.geometry[:, INSIDE] * (-spread).exp()


def _results(
    percept: Percept, before: FloatArray, after: FloatArray, size: tuple[int, int], scale: float
) -> list[Result]:
    scores = confidence(percept).tolist()
    tensors = percept.mean, percept.covariance, percept.probabilities, percept.windows
    means, covariances, probabilities, windows = (tensor.cpu().numpy() for tensor in tensors)
    return [
        Result(
            rbbox=after[i].copy(),  # the tracker continues from its own
            score=scores[i],
            mean=means[i],
            covariance=scale * covariances[i],
            previous=before[i],
            probabilities=probabilities[i],
            window=windows[i],
            size=size,
            box_threshold=percept.box_threshold,
        )
        for i in range(len(after))
    ]
