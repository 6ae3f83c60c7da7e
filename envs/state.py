"""The agent's view of a percept, and what its action does: shared by environment and tracker."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from bmvtrack import gaussian, geometry, motion
from bmvtrack.arrays import FloatArray
from bmvtrack.motion import Coordinates
from bmvtrack.perception import GEOMETRY, Percept, mask_motion
from bmvtrack.prior import push_forward

Observation = dict[str, NDArray[np.float32]]

_MOST_RESIDUAL = 5.0  # standard deviations
ACTION_BOUNDS: dict[Coordinates, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "object": ((0.1, 0.1, -0.8, -1.8, -0.9), (4.6, 4.6, 0.8, 1.8, 0.9)),
    "frame": ((0.1, 0.1, -0.8, -0.9, -1.4), (4.6, 4.6, 0.8, 0.9, 1.4)),
}
"""Lowest and highest action.

The 0.1 and 99.9 percentiles of motion one to five frames apart (9,854 pairs of the DAVIS16 training
split, each relabelled to the smallest turn), rounded outwards to a decimal, symmetric where a change of
label or a mirror image makes them so. ``object``: 0.123 0.249 −0.698 −1.710 −0.855 to 4.590 2.722 0.707
1.105 0.848; ``frame``: translations −0.801 −1.307 to 0.667 1.282.
"""


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
    rbbox: FloatArray,
    previous_motion: FloatArray,
    width: int,
    height: int,
    coordinates: Coordinates,
) -> Observation:
    """The observation of one frame.

    Args:
        percept: of the frame through ``rbbox``, a batch of one.
        rbbox: ``(5,)`` box t.
        previous_motion: ``(5,)``, that led to box t, in ``object`` coordinates.
        width: of the frame.
        height: of the frame.
        coordinates: of the action; the posterior is pushed forward to them.

    Returns:
        See :func:`observation_space`; every value is finite.
    """
    box = torch.from_numpy(np.asarray(rbbox, dtype=np.float64))
    mean, covariance = percept.mean[0].cpu(), percept.covariance[0].cpu()
    suggested = mask_motion(percept.geometry.cpu(), box[None])[0]
    if coordinates == "frame":
        mean, covariance = push_forward(mean, covariance, box, width, height)
        suggested = motion.to_frame(suggested, box, width, height)
    factor = gaussian.cholesky(covariance)
    residual = gaussian.whiten(suggested, mean, factor).clamp(-_MOST_RESIDUAL, _MOST_RESIDUAL)
    x, y, w, h, angle = rbbox
    values: dict[str, Any] = {
        "features": percept.features[0].cpu().numpy(),
        "prior_mean": mean.numpy(),
        "prior_cholesky": gaussian.pack_lower(factor).numpy(),
        "mask_geometry": percept.geometry[0].cpu().numpy(),
        "mask_residual": residual.numpy(),
        "box": [x / width, y / height, w / width, h / height, np.sin(angle), np.cos(angle)],
        "previous_motion": previous_motion,
    }
    return {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}


def move(
    rbbox: FloatArray, action: NDArray[Any], width: int, height: int, coordinates: Coordinates
) -> tuple[FloatArray, FloatArray]:
    """Apply an action: clipped to its bounds, and the box kept near the frame.

    Args:
        rbbox: ``(5,)`` box t.
        action: ``(5,)``; infinite values are clipped like any other.
        width: of the frame.
        height: of the frame.
        coordinates: of the action.

    Returns:
        Box t+1 ``(5,)`` and the motion to it in ``object`` coordinates ``(5,)``.

    Raises:
        ValueError: if the action is of another shape or contains NaN.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (5,):
        raise ValueError(
            f"an action is five numbers (Δs_x, Δs_y, sin θ, Δx, Δy), not an array of shape "
            f"{action.shape}"
        )
    if np.isnan(action).any():
        names = [n for n, bad in zip(motion.PARAMETERS, np.isnan(action), strict=True) if bad]
        raise ValueError(
            f"the action is NaN in {', '.join(names)}: {action}; the policy that made it has diverged"
        )
    low, high = ACTION_BOUNDS[coordinates]
    moved = motion.apply(rbbox, np.clip(action, low, high), width, height, coordinates)
    result = geometry.clamp(moved, width, height)
    return result, motion.solve(rbbox, result, width, height, "object")
