"""Priors N(μ, Σ) over the five motion parameters: the paper's printed one, fitted ones, and their use.

Source of the printed numbers: paper Appendix 2.2. Everything here is float64 on the host;
:mod:`bmvtrack.gaussian` does the same computations for batches on a device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from bmvtrack import gaussian, geometry, motion
from bmvtrack.arrays import FloatArray
from bmvtrack.errors import UserError
from bmvtrack.files import write_json
from bmvtrack.motion import COORDINATES, Coordinates

Labels = Literal["opencv", "continuous"]
LABELS: tuple[Labels, ...] = get_args(Labels)
_LEAST_EIGENVALUE = 1e-9  # of the correlation matrix
_BUNDLED = Path(__file__).parent / "priors"


@dataclass(frozen=True, eq=False)
class MotionPrior:
    """A Gaussian over the motion v = (Δs_x, Δs_y, sin θ, Δx, Δy).

    Args:
        mean: ``(5,)`` float64.
        covariance: ``(5, 5)`` float64, symmetric positive definite.
        coordinates: of the motion, ``frame`` or ``object``.
        labels: how rectangles were labelled, ``opencv`` or ``continuous``.
        source: where the numbers come from, as text for readers.

    Raises:
        ValueError: for other shapes, numbers that are not finite, or a covariance that is not
            symmetric positive definite.
    """

    mean: FloatArray
    covariance: FloatArray
    coordinates: Coordinates = "object"
    labels: Labels = "continuous"
    source: str = ""

    def __post_init__(self) -> None:
        mean = np.array(self.mean, dtype=np.float64)
        covariance = np.array(self.covariance, dtype=np.float64)
        if mean.shape != (5,) or covariance.shape != (5, 5):
            raise ValueError(
                f"a motion prior needs a mean (5,) and a covariance (5, 5), "
                f"not {mean.shape} and {covariance.shape}"
            )
        if self.coordinates not in COORDINATES or self.labels not in LABELS:
            raise ValueError(
                f"coordinates must be one of {COORDINATES} and labels one of {LABELS}, "
                f"not {self.coordinates!r} and {self.labels!r}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("the numbers of a motion prior must be finite")
        if not np.allclose(covariance, covariance.T) or not _positive_definite(covariance):
            raise ValueError("the covariance of a motion prior must be symmetric positive definite")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @property
    def factor(self) -> FloatArray:
        """Lower Cholesky factor L of the covariance, ``(5, 5)``."""
        result: FloatArray = np.linalg.cholesky(self.covariance)
        return result

    @property
    def standard_deviations(self) -> FloatArray:
        """√diag Σ, ``(5,)``."""
        result: FloatArray = np.sqrt(np.diag(self.covariance))
        return result

    def whiten(self, value: FloatArray) -> FloatArray:
        """L⁻¹(v − μ) of ``(..., 5)`` motions: standard normal under the prior."""
        result = gaussian.whiten(*self._tensors(value)).numpy()
        return np.asarray(result)

    def unwhiten(self, noise: FloatArray) -> FloatArray:
        """μ + L·u, the inverse of :meth:`whiten`."""
        return np.asarray(gaussian.unwhiten(*self._tensors(noise)).numpy())

    def sample(self, count: int, generator: np.random.Generator) -> FloatArray:
        """Draw ``(count, 5)`` motions."""
        return self.unwhiten(generator.standard_normal((count, 5)))

    def log_density(self, value: FloatArray) -> FloatArray:
        """log N(v; μ, Σ) of ``(..., 5)`` motions, in nats."""
        return np.asarray(gaussian.log_density(*self._tensors(value)).numpy())

    def kl_divergence(self, other: MotionPrior) -> float:
        """D(self ‖ other) in nats.

        Raises:
            ValueError: if the two are in different coordinates.
        """
        if self.coordinates != other.coordinates:
            raise ValueError(
                f"the KL between priors in {self.coordinates!r} and {other.coordinates!r} coordinates "
                "is meaningless; push one forward first (at_box)"
            )
        tensors = (self.mean, self.factor, other.mean, other.factor)
        return float(gaussian.kl_divergence(*(torch.from_numpy(t) for t in tensors)))

    def at_box(self, rbbox: FloatArray, width: float, height: float) -> MotionPrior:
        """The prior in ``frame`` coordinates, given box t: the linearised push-forward.

        A Gaussian in ``object`` coordinates becomes a state-dependent, strongly correlated one:
        far from the frame's corner, scale, turn and translation can only be drawn jointly.

        Args:
            rbbox: ``(5,)`` box t.
            width: frame width in pixels.
            height: frame height in pixels.

        Returns:
            The prior in ``frame`` coordinates; ``self`` if it already is.
        """
        if self.coordinates == "frame":
            return self
        mean, covariance = push_forward(self.mean, self.covariance, rbbox, width, height)
        return MotionPrior(mean, covariance, "frame", self.labels, self.source)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that ``json`` can write, with exact float64 numbers."""
        return {
            "mean": self.mean.tolist(),
            "covariance": self.covariance.tolist(),
            "coordinates": self.coordinates,
            "labels": self.labels,
            "source": self.source,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MotionPrior:
        """The inverse of :meth:`to_json`."""
        return cls(
            np.array(data["mean"], dtype=np.float64),
            np.array(data["covariance"], dtype=np.float64),
            data["coordinates"],
            data["labels"],
            data.get("source", ""),
        )

    def save(self, path: Path) -> None:
        """Write the prior as JSON, atomically."""
        write_json(path, self.to_json())

    def _tensors(self, value: FloatArray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tensor = torch.as_tensor(np.asarray(value, dtype=np.float64))
        return tensor, torch.from_numpy(self.mean), torch.from_numpy(self.factor)


def push_forward(
    mean: Any, covariance: Any, rbbox: Any, width: Any, height: Any
) -> tuple[Any, Any]:
    """A Gaussian over ``object`` motion in ``frame`` coordinates, linearised at its mean.

    Args:
        mean: ``(..., 5)``, NumPy or torch.
        covariance: ``(..., 5, 5)``.
        rbbox: ``(..., 5)`` boxes t.
        width: frame width in pixels; a number, or ``(...)`` if frames differ.
        height: frame height in pixels.

    Returns:
        Mean ``(..., 5)`` and covariance ``(..., 5, 5)`` in ``frame`` coordinates.
    """
    jacobian = motion.to_frame_jacobian(mean, rbbox, width, height)
    frame_mean = motion.to_frame(mean, rbbox, width, height)
    return frame_mean, jacobian @ covariance @ jacobian.swapaxes(-1, -2)


def fit(
    sequences: Iterable[tuple[FloatArray, float, float]],
    *,
    frames_apart: int = 1,
    labels: Labels = "continuous",
    coordinates: Coordinates = "object",
    source: str = "",
) -> tuple[MotionPrior, int]:
    """Fit a prior to the motion between boxes of sequences.

    Pairs start at every ``frames_apart``-th frame, as if only those frames were annotated; pairs with
    a frame without object are left out.

    Args:
        sequences: ``(rbboxes, width, height)`` each, with boxes ``(T, 5)`` as OpenCV labels them and
            NaN where there is no object.
        frames_apart: frames between the two boxes of a pair.
        labels: ``opencv`` takes the labels as they are; ``continuous`` relabels along those frames, so that
            no turn is over 45°.
        coordinates: ``frame`` or ``object``.
        source: recorded in the prior.

    Returns:
        The prior (maximum-likelihood mean, unbiased covariance) and the number of pairs.

    Raises:
        UserError: if ``frames_apart`` is below 1, if there are fewer than 6 pairs, too few for a
            covariance of five variables, or if the boxes move too little for a Gaussian.
    """
    if frames_apart < 1:
        raise UserError(f"the boxes of a pair must be at least 1 frame apart, not {frames_apart}")
    motions = [
        sequence_motion(boxes, width, height, frames_apart, labels, coordinates)
        for boxes, width, height in sequences
    ]
    pairs = np.concatenate([*motions, np.empty((0, 5))])
    if len(pairs) < 6:
        raise UserError(
            f"only {len(pairs)} pairs of boxes {frames_apart} frames apart: "
            "a covariance of five variables needs at least 6; give more or longer sequences"
        )
    mean, covariance = pairs.mean(axis=0), np.cov(pairs, rowvar=False)
    try:
        return MotionPrior(mean, covariance, coordinates, labels, source), len(pairs)
    except ValueError as error:
        raise UserError(
            f"no Gaussian can be fitted to the motion of {len(pairs)} pairs of boxes ({error}); "
            "give sequences whose object moves, turns and changes size"
        ) from error


def sequence_motion(
    rbboxes: FloatArray,
    width: float,
    height: float,
    frames_apart: int,
    labels: Labels,
    coordinates: Coordinates,
) -> FloatArray:
    """Motion between the boxes of one sequence, ``(pairs, 5)``; arguments as in :func:`fit`."""
    boxes = rbboxes[::frames_apart]
    if labels == "continuous":
        boxes = geometry.continuous_labels(boxes)
    result = motion.solve(boxes[:-1], boxes[1:], width, height, coordinates)
    return result[np.isfinite(result).all(axis=-1)]


def named(name: str) -> MotionPrior:
    """A prior that comes with the package.

    ``paper`` is the one printed in the paper (Appendix 2.2); the others are fitted (see their
    ``source``) and written by ``scripts/fit_prior.py``.

    Raises:
        UserError: if there is no prior with this name.
    """
    path = _BUNDLED / f"{name}.json"
    if not path.is_file():
        known = sorted(p.stem for p in _BUNDLED.glob("*.json"))
        raise UserError(f"no prior named {name!r}; the bundled ones are {', '.join(known)}")
    return MotionPrior.from_json(json.loads(path.read_text(encoding="utf-8")))


def load(name_or_path: str) -> MotionPrior:
    """A prior by name (:func:`named`) or from a JSON file that :meth:`MotionPrior.save` wrote.

    Raises:
        UserError: if there is no such prior, or the file does not hold one.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        return named(name_or_path)
    try:
        return MotionPrior.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a motion prior ({error}); make one with scripts/fit_prior.py"
        ) from error


def _positive_definite(covariance: FloatArray) -> bool:
    """Tested on the correlation matrix, so that units do not matter, with a margin for rounding."""
    variances = np.diag(covariance)
    if not (variances > 0).all():
        return False
    deviations = np.sqrt(variances)
    correlations = covariance / np.outer(deviations, deviations)
    return bool(np.linalg.eigvalsh(correlations)[0] > _LEAST_EIGENVALUE)
