"""What the agent is told of a percept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bmvtrack import motion
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.motion import AT_REST, COORDINATES, Coordinates
from bmvtrack.movers import move_by_mask
from bmvtrack.percept import Percept
from bmvtrack.perception import Perception
from bmvtrack.prior import named
from envs.state import observe

SIZES = ((320, 180), (90, 140), (640, 200), (64, 300))
REST = torch.tensor(AT_REST, dtype=torch.float64).expand(8, 5)


def seen(perception: Perception, spread: float) -> tuple[Percept, torch.Tensor, torch.Tensor]:
    """Eight boxes in frames of four sizes, and Gaussians over their motion of any correlations.

    Args:
        perception: that sees the masks.
        spread: of the Gaussians, in units of the prior.
    """
    sequence, prior = synthetic_sequence(3), named("davis16")
    boxes = torch.from_numpy(sequence.boxes[:8])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 5, 21, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.from_numpy(prior.covariance)) @ noise[..., 1:]
    percept = replace(
        perception.look(sequence.frame(1), boxes.numpy()),
        mean=torch.from_numpy(prior.mean) + 0.05 * noise[..., 0],
        covariance=spread**2 * factor @ factor.mT / 20,
    )
    return percept, boxes, torch.tensor(SIZES * 2)


def in_coordinates(
    mean: torch.Tensor,
    covariance: torch.Tensor,
    box: torch.Tensor,
    size: torch.Tensor,
    coordinates: Coordinates,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian over the motion of one box, by way of the boxes that the motion leads to."""

    def same_motion(v: torch.Tensor) -> torch.Tensor:
        return motion.solve(box, motion.apply(box, v, *size, "object"), *size, coordinates)

    jacobian = torch.autograd.functional.jacobian(same_motion, mean)
    return same_motion(mean), jacobian @ covariance @ jacobian.T


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_posterior_is_told_in_the_coordinates_of_the_action(
    perception: Perception, coordinates: Coordinates
) -> None:
    percept, boxes, sizes = seen(perception, spread=1)
    state = observe(percept, boxes, REST, sizes, coordinates)
    rows, columns = np.tril_indices(5)
    for i, row in enumerate(zip(percept.mean, percept.covariance, boxes, sizes, strict=True)):
        mean, covariance = in_coordinates(*row, coordinates)
        factor = torch.zeros(5, 5)
        factor[rows, columns] = state["prior_cholesky"][i]
        assert (factor.diagonal() > 0).all()
        torch.testing.assert_close(state["prior_mean"][i], mean.float(), rtol=1e-5, atol=1e-5)
        sigmas = covariance.diagonal().sqrt()
        units = sigmas.outer(sigmas)
        found = (factor @ factor.T).double() / units
        torch.testing.assert_close(found, covariance / units, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(320, 180), (1920, 1080), (3840, 2160)])
def test_a_box_of_a_pixel_far_outside_the_frame_is_told_in_finite_numbers(
    perception: Perception, size: tuple[int, int]
) -> None:
    """There, the covariance in frame coordinates is singular to within rounding."""
    percept, boxes, _ = seen(perception, spread=1)
    corner = torch.tensor([2.0 * size[0], 2.0 * size[1], 1, 1, 1.54]).double().expand_as(boxes)
    state = observe(percept, corner, REST, torch.tensor([size] * 8), "frame")
    for name, value in state.items():
        assert value.isfinite().all(), name
    diagonal = state["prior_cholesky"][:, [0, 2, 5, 9, 14]]
    assert (diagonal > 0).all()
    expected = percept.covariance.diagonal(dim1=1, dim2=2)[:, 0].sqrt().float()
    torch.testing.assert_close(diagonal[:, 0], expected)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("spread", [30, 1, 0.1])
def test_the_mask_s_motion_is_told_in_units_of_the_prior(
    perception: Perception, coordinates: Coordinates, spread: float
) -> None:
    percept, boxes, sizes = seen(perception, spread)
    residual = observe(percept, boxes, REST, sizes, coordinates)["mask_residual"]
    by_mask = move_by_mask(percept, boxes, REST, sizes)
    for i, row in enumerate(zip(percept.mean, percept.covariance, boxes, sizes, strict=True)):
        mean, covariance = in_coordinates(*row, coordinates)
        suggested = motion.solve(boxes[i], by_mask[i], *sizes[i], coordinates)
        units = torch.linalg.solve(torch.linalg.cholesky(covariance), suggested - mean)
        expected = units.clamp(-10, 10).float()
        torch.testing.assert_close(residual[i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_of_a_narrow_prior_the_mask_is_ten_deviations_away(
    perception: Perception, coordinates: Coordinates
) -> None:
    """At most ten, as the environment's page says."""
    percept, boxes, sizes = seen(perception, spread=1e-4)
    residual = observe(percept, boxes, REST, sizes, coordinates)["mask_residual"]
    assert torch.equal(residual.abs(), torch.full((8, 5), 10.0))


def test_box_and_last_motion_are_told_as_the_environment_says(perception: Perception) -> None:
    sequence = synthetic_sequence(3)
    boxes = torch.from_numpy(sequence.boxes[:4])
    sizes = torch.tensor([sequence.size] * 4)
    last = torch.rand(4, 5, dtype=torch.float64)
    state = observe(perception.look(sequence.frame(1), boxes.numpy()), boxes, last, sizes, "object")
    width, height = sequence.size
    for (x, y, w, h, angle), told in zip(boxes.tolist(), state["box"].tolist(), strict=True):
        expected = [x / width, y / height, w / width, h / height, math.sin(angle), math.cos(angle)]
        assert told == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(state["previous_motion"], last.float())
