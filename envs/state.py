"""The agent's observations and the effect of its actions, shared by environments and tracker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from bmvtrack import gaussian, geometry, motion
from bmvtrack.arrays import Array, FloatArray, namespace
from bmvtrack.errors import UserError
from bmvtrack.masks import GEOMETRY
from bmvtrack.motion import COORDINATES, Coordinates
from bmvtrack.movers import move_by_mask
from bmvtrack.percept import Percept

Observation = dict[str, NDArray[np.float32]]

Reward = Literal["rotated", "axis_aligned"]

OVERLAP_OF_LOST = 1e-6
"""IoU below which a frame counts as lost; not 0, because of rounding errors."""
_MOST_RESIDUAL = 10.0  # standard deviations
ACTION_BOUNDS: dict[Coordinates, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "object": ((0.1, 0.1, -0.8, -1.8, -0.9), (4.6, 4.6, 0.8, 1.8, 0.9)),
    "frame": ((0.1, 0.1, -0.8, -0.9, -1.4), (4.6, 4.6, 0.8, 0.9, 1.4)),
}
"""Lowest and highest action.

These are the 0.1 and 99.9 percentiles of motion one to five frames apart (9,854 pairs of the DAVIS16 training
split, each relabelled to the smallest rotation), rounded outwards to one decimal, and made symmetric where a
change of label or mirroring implies it. ``object``: 0.123 0.249 −0.698 −1.710 −0.855 to 4.590 2.722 0.707
1.105 0.848; ``frame``: translations −0.801 −1.307 to 0.667 1.282.
"""


def check_choices(coordinates: str, reward: str, lost_after: float) -> None:
    """Check arguments common to all environments.

    Raises:
        UserError: if one is invalid; it names the argument and the values it may take.
    """
    if coordinates not in COORDINATES:
        raise UserError(f"coordinates must be one of {COORDINATES}, not {coordinates!r}")
    if reward not in get_args(Reward):
        raise UserError(f"reward must be one of {get_args(Reward)}, not {reward!r}")
    if lost_after != math.inf:
        check_count("lost_after", lost_after)


def check_count(name: str, value: Any) -> None:
    """Check that an argument is an integer and at least 1.

    Raises:
        UserError: if it is not; it names the argument.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise UserError(f"{name} must be at least 1 and an integer, not {value!r}")


def action_space(coordinates: Coordinates) -> spaces.Box:
    """The five motion parameters within :data:`ACTION_BOUNDS`, float32."""
    low, high = ACTION_BOUNDS[coordinates]
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)


def observation_space(feature_count: int) -> spaces.Dict:
    """A flat ``Dict`` of unbounded float32 boxes."""
    sizes = {
        "features": feature_count,
        "prior_mean": 5,
        "prior_cholesky": 15,
        "mask_geometry": len(GEOMETRY),
        "mask_residual": 5,
        "box": 6,
        "previous_motion": 5,
    }
    return spaces.Dict(
        {name: spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()}
    )


def observe(
    percept: Percept,
    boxes: torch.Tensor,
    previous_motion: torch.Tensor,
    sizes: torch.Tensor,
    coordinates: Coordinates,
) -> dict[str, torch.Tensor]:
    """The observations of B frames, on the percept's device.

    Args:
        percept: percept of the frames seen through ``boxes``.
        boxes: ``(B, 5)`` float64 boxes t.
        previous_motion: ``(B, 5)`` motion that led to boxes t, in ``object`` coordinates.
        sizes: ``(B, 2)`` width and height of the frames.
        coordinates: coordinates of the action; the posterior is transformed to them.

    Returns:
        See :func:`observation_space`, with a leading axis B; float32, every value finite.
    """
    by_mask = move_by_mask(percept, boxes, previous_motion, sizes)
    numbers = numbers_of(
        percept.mean, percept.covariance, boxes, by_mask, sizes, coordinates=coordinates
    )
    return as_observation(percept, numbers, previous_motion)


def numbers_of(
    mean: torch.Tensor,
    covariance: torch.Tensor,
    boxes: torch.Tensor,
    by_mask: torch.Tensor,
    sizes: torch.Tensor,
    coordinates: Coordinates,
) -> list[torch.Tensor]:
    """The parts of an observation that are computed from a percept.

    Args:
        mean: mean of the posterior.
        covariance: covariance of the posterior.
        boxes: see :func:`observe`.
        by_mask: ``(B, 5)`` boxes t+1 according to the mask.
        sizes: see :func:`observe`.
        coordinates: see :func:`observe`.

    Returns:
        Mean, packed Cholesky factor, residual of the mask, and box, as float32.
    """
    width, height = sizes.to(boxes).unbind(-1)
    factor = gaussian.cholesky(covariance)
    if coordinates == "frame":
        # The Jacobian J is lower triangular, so JL is the factor of JΣJᵀ (as of prior.push_forward), whose
        # own factorization would be beyond float64 for a box of one pixel far from the frame's corner.
        factor = motion.to_frame_jacobian(mean, boxes, width, height) @ factor
        mean = motion.to_frame(mean, boxes, width, height)
    suggested = motion.solve(boxes, by_mask, width, height, coordinates)
    residual = gaussian.whiten(suggested, mean, factor).clamp(-_MOST_RESIDUAL, _MOST_RESIDUAL)
    x, y, w, h, angle = boxes.unbind(-1)
    relative = [x / width, y / height, w / width, h / height, angle.sin(), angle.cos()]
    values = mean, gaussian.pack_lower(factor), residual, torch.stack(relative, dim=-1)
    return [value.float() for value in values]


def as_observation(
    percept: Percept, numbers: Sequence[torch.Tensor], previous_motion: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The observations of B frames, from the result of :func:`numbers_of` and the remaining parts."""
    mean, factor, residual, relative = numbers
    values = {
        "features": percept.features,
        "prior_mean": mean,
        "prior_cholesky": factor,
        "mask_geometry": percept.geometry,
        "mask_residual": residual,
        "box": relative,
        "previous_motion": previous_motion.float(),
    }
    # Tensors made in inference mode are copied, because training on observations may need gradients.
    return {
        name: value.clone() if value.is_inference() else value for name, value in values.items()
    }


def observe_one(
    percept: Percept,
    rbbox: FloatArray,
    previous_motion: FloatArray,
    size: tuple[int, int],
    coordinates: Coordinates,
) -> Observation:
    """:func:`observe` of one frame, in NumPy.

    Args:
        percept: percept of a batch of one.
        rbbox: ``(5,)`` box t.
        previous_motion: ``(5,)`` motion that led to box t.
        size: width and height of the frame.
        coordinates: coordinates of the action.
    """
    like = percept.mean
    batch = observe(
        percept,
        torch.as_tensor(rbbox).to(like)[None],
        torch.as_tensor(previous_motion).to(like)[None],
        torch.tensor([size], device=like.device),
        coordinates,
    )
    return {name: value[0].cpu().numpy() for name, value in batch.items()}


def checked_action(action: NDArray[Any]) -> FloatArray:
    """Check one action and convert it to float64.

    Raises:
        ValueError: if its shape is not ``(5,)`` or it contains NaN.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (5,):
        raise ValueError(
            f"an action must be five numbers (Δs_x, Δs_y, sin θ, Δx, Δy), not an array of shape "
            f"{action.shape}"
        )
    if np.isnan(action).any():
        names = [n for n, bad in zip(motion.PARAMETERS, np.isnan(action), strict=True) if bad]
        raise ValueError(
            f"the action is NaN in {', '.join(names)}: {action}; the policy that made it has diverged"
        )
    return action


def move(
    rbbox: Array,
    action: Array,
    width: float | Array,
    height: float | Array,
    coordinates: Coordinates,
) -> tuple[Array, Array]:
    """Apply actions, clipped to their bounds, and keep the boxes near the frame.

    Args:
        rbbox: ``(..., 5)`` boxes t, float64.
        action: ``(..., 5)`` float64; infinite values are clipped like any other.
        width: width of the frame; a number, or ``(...)`` if frames differ.
        height: height of the frame.
        coordinates: coordinates of the action.

    Returns:
        Boxes t+1 ``(..., 5)`` and the motion to them in ``object`` coordinates ``(..., 5)``.
    """
    result = moved(rbbox, action, width, height, coordinates)
    return result, motion.solve(rbbox, result, width, height, "object")


def moved(
    rbbox: Array,
    action: Array,
    width: float | Array,
    height: float | Array,
    coordinates: Coordinates,
) -> Array:
    """The boxes of :func:`move`, without the motion."""
    xp = namespace(rbbox, action)
    # Component by component: copying an array of bounds to the device would synchronise.
    bounds = zip(*ACTION_BOUNDS[coordinates], strict=True)
    clipped = xp.stack(
        [xp.clip(action[..., i], low, high) for i, (low, high) in enumerate(bounds)], axis=-1
    )
    after = motion.apply(rbbox, clipped, width, height, coordinates)
    result: Array = geometry.clamp(after, width, height)
    return result
