"""What the agent is told of a percept."""

import math
from dataclasses import replace

import pytest
import torch

from bmvtrack import gaussian, motion
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.motion import AT_REST, COORDINATES, Coordinates
from bmvtrack.movers import move_by_mask
from bmvtrack.perception import Perception
from bmvtrack.prior import named
from envs.state import observe


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_mask_s_motion_is_told_in_units_of_the_prior(
    perception: Perception, coordinates: Coordinates
) -> None:
    sequence = synthetic_sequence(3)
    boxes = torch.from_numpy(sequence.boxes[:8])
    wide = torch.from_numpy(100 * named("davis16").covariance).expand(len(boxes), 5, 5)
    percept = replace(perception.look(sequence.frame(1), boxes.numpy()), covariance=wide)
    sizes = torch.tensor([sequence.size] * len(boxes))
    rest = torch.tensor(AT_REST, dtype=torch.float64).expand(len(boxes), 5)
    state = observe(percept, boxes, rest, sizes, coordinates)
    width, height = sizes.to(boxes).unbind(-1)
    by_mask = move_by_mask(percept, boxes, rest, sizes)
    expected = motion.solve(boxes, by_mask, width, height, coordinates)
    factor = gaussian.unpack_lower(state["prior_cholesky"].double())
    residual = state["mask_residual"].double()
    found = gaussian.unwhiten(residual, state["prior_mean"].double(), factor)
    whole = (residual.abs() < 10).all(dim=1)  # the rest is cut
    assert whole.sum() >= 2
    torch.testing.assert_close(found[whole], expected[whole], rtol=1e-4, atol=1e-4)


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
