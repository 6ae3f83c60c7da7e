"""The five motion parameters of a rotated box, v = (Δs_x, Δs_y, sin θ, Δx, Δy).

Paper Eq. 4–5 and 10–15, in two coordinate systems:

- ``frame``: origin at the frame's corner, translation in units of the frame's width and height. These
  are the parameters of the paper's G_t.
- ``object``: origin at box t's centre, translation in units of √(w·h) of box t.

For given labels and |θ| ≤ 90° the motion between two boxes is unique, and the two systems are an
exact bijection of each other once box t is known.
"""

from __future__ import annotations

from typing import Literal, get_args

from bmvtrack.arrays import Array, namespace

Coordinates = Literal["frame", "object"]
COORDINATES: tuple[Coordinates, ...] = get_args(Coordinates)
AT_REST = (1.0, 1.0, 0.0, 0.0, 0.0)
"""In ``object`` coordinates: the box stays as it is."""
PARAMETERS = ("Δs_x", "Δs_y", "sin θ", "Δx", "Δy")


def solve(
    rbbox: Array,
    next_rbbox: Array,
    width: float | Array,
    height: float | Array,
    coordinates: Coordinates,
) -> Array:
    """The motion that takes each box to the next one (paper Eq. 10–15).

    The labels are taken as given; see :func:`bmvtrack.geometry.nearest_label`.

    Args:
        rbbox: ``(..., 5)`` boxes t.
        next_rbbox: ``(..., 5)`` boxes t+1.
        width: frame width in pixels; a number, or ``(...)`` if frames differ.
        height: frame height in pixels.
        coordinates: ``frame`` or ``object``.

    Returns:
        ``(..., 5)`` motion.
    """
    xp = namespace(rbbox, next_rbbox)
    sin = xp.sin(next_rbbox[..., 4] - rbbox[..., 4])
    unit = xp.sqrt(rbbox[..., 2] * rbbox[..., 3])
    motion: Array = xp.stack(
        [
            next_rbbox[..., 2] / rbbox[..., 2],
            next_rbbox[..., 3] / rbbox[..., 3],
            sin,
            (next_rbbox[..., 0] - rbbox[..., 0]) / unit,
            (next_rbbox[..., 1] - rbbox[..., 1]) / unit,
        ],
        axis=-1,
    )
    return motion if coordinates == "object" else to_frame(motion, rbbox, width, height)


def apply(
    rbbox: Array,
    motion: Array,
    width: float | Array,
    height: float | Array,
    coordinates: Coordinates,
) -> Array:
    """Move each box (paper Eq. 4–5): the inverse of :func:`solve`.

    Args:
        rbbox: ``(..., 5)`` boxes t.
        motion: ``(..., 5)``, broadcast against ``rbbox``; sin θ is clipped to [−1, 1].
        width: frame width in pixels; a number, or ``(...)`` if frames differ.
        height: frame height in pixels.
        coordinates: of ``motion``, ``frame`` or ``object``.

    Returns:
        ``(..., 5)`` boxes t+1.
    """
    xp = namespace(rbbox, motion)
    if coordinates == "frame":
        motion = to_object(motion, rbbox, width, height)
    unit = xp.sqrt(rbbox[..., 2] * rbbox[..., 3])
    result: Array = xp.stack(
        [
            rbbox[..., 0] + motion[..., 3] * unit,
            rbbox[..., 1] + motion[..., 4] * unit,
            rbbox[..., 2] * motion[..., 0],
            rbbox[..., 3] * motion[..., 1],
            rbbox[..., 4] + xp.asin(xp.clip(motion[..., 2], -1.0, 1.0)),
        ],
        axis=-1,
    )
    return result


def to_frame(motion: Array, rbbox: Array, width: float | Array, height: float | Array) -> Array:
    """Motion in ``object`` coordinates at a box → the same motion in ``frame`` coordinates.

    Args:
        motion: ``(..., 5)`` in ``object`` coordinates.
        rbbox: ``(..., 5)`` boxes t, broadcast against ``motion``.
        width: frame width in pixels; a number, or ``(...)`` if frames differ.
        height: frame height in pixels.

    Returns:
        ``(..., 5)`` in ``frame`` coordinates.
    """
    xp = namespace(motion, rbbox)
    motion, rbbox = xp.broadcast_arrays(motion, rbbox)
    image_x, image_y = _linear_image(motion, rbbox)
    unit = xp.sqrt(rbbox[..., 2] * rbbox[..., 3])
    shift_x = (rbbox[..., 0] + motion[..., 3] * unit - image_x) / width
    shift_y = (rbbox[..., 1] + motion[..., 4] * unit - image_y) / height
    result: Array = xp.stack(
        [motion[..., 0], motion[..., 1], motion[..., 2], shift_x, shift_y], axis=-1
    )
    return result


def to_object(motion: Array, rbbox: Array, width: float | Array, height: float | Array) -> Array:
    """Motion in ``frame`` coordinates → ``object`` coordinates: the inverse of :func:`to_frame`."""
    xp = namespace(motion, rbbox)
    motion, rbbox = xp.broadcast_arrays(motion, rbbox)
    image_x, image_y = _linear_image(motion, rbbox)
    unit = xp.sqrt(rbbox[..., 2] * rbbox[..., 3])
    shift_x = (image_x + motion[..., 3] * width - rbbox[..., 0]) / unit
    shift_y = (image_y + motion[..., 4] * height - rbbox[..., 1]) / unit
    result: Array = xp.stack(
        [motion[..., 0], motion[..., 1], motion[..., 2], shift_x, shift_y], axis=-1
    )
    return result


def to_frame_jacobian(
    motion: Array, rbbox: Array, width: float | Array, height: float | Array
) -> Array:
    """∂(frame motion)/∂(object motion) at ``motion``, for pushing a covariance forward.

    Args:
        motion: ``(..., 5)`` in ``object`` coordinates, |sin θ| < 1.
        rbbox: ``(..., 5)`` boxes t.
        width: frame width in pixels; a number, or ``(...)`` if frames differ.
        height: frame height in pixels.

    Returns:
        ``(..., 5, 5)``: row i is the gradient of the i-th ``frame`` parameter.
    """
    xp = namespace(motion, rbbox)
    scale_x, scale_y, sin = (motion[..., i] for i in range(3))
    x, y = rbbox[..., 0], rbbox[..., 1]
    cos = xp.sqrt(1 - sin * sin)
    unit = xp.sqrt(rbbox[..., 2] * rbbox[..., 3])
    zero, one = 0 * (x + sin), 1 + 0 * (x + sin)
    rows = [
        [one, zero, zero, zero, zero],
        [zero, one, zero, zero, zero],
        [zero, zero, one, zero, zero],
        [-x * cos, y * sin, x * scale_x * sin / cos + y * scale_y, unit + zero, zero],
        [-x * sin, -y * cos, y * scale_y * sin / cos - x * scale_x, zero, unit + zero],
    ]
    frame_units = (1.0, 1.0, 1.0, width, height)
    result: Array = xp.stack(
        [
            xp.stack([entry / size for entry in row], axis=-1)
            for row, size in zip(rows, frame_units, strict=True)
        ],
        axis=-2,
    )
    return result


def _linear_image(motion: Array, rbbox: Array) -> tuple[Array, Array]:
    """The box's centre under the linear part of G_t (paper Eq. 5), in pixels."""
    xp = namespace(motion, rbbox)
    x, y = rbbox[..., 0], rbbox[..., 1]
    sin = xp.clip(motion[..., 2], -1.0, 1.0)
    cos = xp.sqrt(1 - sin * sin)
    scale_x, scale_y = motion[..., 0], motion[..., 1]
    return x * scale_x * cos - y * scale_y * sin, x * scale_x * sin + y * scale_y * cos
