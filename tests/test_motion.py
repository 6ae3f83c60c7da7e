import math

import numpy as np
import pytest
import torch
from hypothesis import given
from numpy.testing import assert_allclose
from strategies import HEIGHT, WIDTH, motions, random_boxes, rbboxes

from bmvtrack import geometry, motion
from bmvtrack.data.davis import load_davis16
from bmvtrack.motion import COORDINATES
from bmvtrack.prior import LABELS

FRAME = (WIDTH, HEIGHT)
in_both_coordinates = pytest.mark.parametrize("coordinates", COORDINATES)


def moved(rbbox, object_motion):
    """The box after an object motion, from the definition in words."""
    unit = math.sqrt(rbbox[2] * rbbox[3])
    return np.array(
        [
            rbbox[0] + object_motion[3] * unit,
            rbbox[1] + object_motion[4] * unit,
            rbbox[2] * object_motion[0],
            rbbox[3] * object_motion[1],
            rbbox[4] + math.asin(object_motion[2]),
        ]
    )


def random_motions(count, seed=2):
    generator = np.random.default_rng(seed)
    return generator.uniform((0.5, 0.5, -0.9, -1, -1), (2, 2, 0.9, 1, 1), (count, 5))


@given(rbboxes(), motions())
def test_frame_motion_is_the_matrix_of_the_paper(rbbox, v):
    scale_x, scale_y, sin, shift_x, shift_y = v
    cos = math.sqrt(1 - sin**2)
    matrix = np.array(
        [
            [scale_x * cos, -scale_y * sin, shift_x * WIDTH],
            [scale_x * sin, scale_y * cos, shift_y * HEIGHT],
            [0, 0, 1],
        ]
    )
    result = motion.apply(rbbox, v, *FRAME, "frame")
    assert_allclose([*result[:2], 1], matrix @ [*rbbox[:2], 1], rtol=1e-9, atol=1e-9)
    expected = [rbbox[2] * scale_x, rbbox[3] * scale_y, rbbox[4] + math.asin(sin)]
    assert_allclose(result[2:], expected, rtol=1e-12)


@given(rbboxes(), motions())
def test_frame_motion_is_solved_as_the_paper_solves_it(rbbox, v):
    (x, y, w, h, angle), after = rbbox, moved(rbbox, v)
    turn = after[4] - angle
    scale_x, scale_y = after[2] / w, after[3] / h
    shift_x = (after[0] - x * scale_x * math.cos(turn) + y * scale_y * math.sin(turn)) / WIDTH
    shift_y = (after[1] - x * scale_x * math.sin(turn) - y * scale_y * math.cos(turn)) / HEIGHT
    expected = [scale_x, scale_y, math.sin(turn), shift_x, shift_y]
    result = motion.solve(rbbox, after, *FRAME, "frame")
    assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


@in_both_coordinates
@given(rbbox=rbboxes(), v=motions())
def test_solve_then_apply_gives_the_next_box(coordinates, rbbox, v):
    after = moved(rbbox, v)
    solved = motion.solve(rbbox, after, *FRAME, coordinates)
    assert_allclose(motion.apply(rbbox, solved, *FRAME, coordinates), after, rtol=1e-9, atol=1e-9)


@in_both_coordinates
@given(rbbox=rbboxes(), v=motions())
def test_apply_then_solve_gives_the_motion(coordinates, rbbox, v):
    after = motion.apply(rbbox, v, *FRAME, coordinates)
    # In pixels a motion of a box of 1 px is small beside the frame: 1e-9 of the box's place.
    assert_allclose(motion.solve(rbbox, after, *FRAME, coordinates), v, rtol=1e-9, atol=1e-8)


@given(rbboxes(), motions())
def test_frame_and_object_coordinates_are_a_bijection(rbbox, v):
    in_frame = motion.to_frame(v, rbbox, *FRAME)
    assert_allclose(motion.to_object(in_frame, rbbox, *FRAME), v, rtol=1e-9, atol=1e-8)
    in_object = motion.to_object(v, rbbox, *FRAME)
    assert_allclose(motion.to_frame(in_object, rbbox, *FRAME), v, rtol=1e-9, atol=1e-9)
    by_object = motion.apply(rbbox, v, *FRAME, "object")
    by_frame = motion.apply(rbbox, in_frame, *FRAME, "frame")
    assert_allclose(by_frame, by_object, rtol=1e-9, atol=1e-9)


@in_both_coordinates
def test_no_motion_is_the_identity(coordinates):
    boxes = random_boxes(10)
    still = np.array([1.0, 1, 0, 0, 0])
    assert_allclose(motion.solve(boxes, boxes, *FRAME, coordinates), [still] * 10, atol=1e-12)
    assert_allclose(motion.apply(boxes, still, *FRAME, coordinates), boxes, rtol=1e-12)


@in_both_coordinates
@pytest.mark.parametrize("sin", [-3.0, -1.0, 1.0, 1.5])
def test_a_turn_is_at_most_a_quarter(coordinates, sin):
    box = random_boxes(1)[0]
    result = motion.apply(box, np.array([1, 1, sin, 0, 0]), *FRAME, coordinates)
    assert result[4] - box[4] == pytest.approx(math.copysign(math.pi / 2, sin))
    assert np.isfinite(result).all()


def test_missing_boxes_have_no_motion():
    boxes = random_boxes(3)
    boxes[1] = np.nan
    result = motion.solve(boxes[:-1], boxes[1:], *FRAME, "frame")
    assert np.isnan(result).any(axis=-1).all()


def test_jacobian_is_that_of_autograd():
    boxes, motions = torch.from_numpy(random_boxes(8)), torch.from_numpy(random_motions(8))
    result = motion.to_frame_jacobian(motions, boxes, *FRAME)
    for box, v, jacobian in zip(boxes, motions, result, strict=True):
        expected = torch.autograd.functional.jacobian(
            lambda m, box=box: motion.to_frame(m, box, *FRAME), v
        )
        assert_allclose(jacobian.numpy(), expected.numpy(), rtol=1e-9, atol=1e-9)


@in_both_coordinates
def test_torch_gives_the_numbers_of_numpy(coordinates):
    boxes, others, motions = random_boxes(40), random_boxes(40, seed=1), random_motions(40)
    calls = [
        (motion.solve, (boxes, others), (*FRAME, coordinates)),
        (motion.apply, (boxes, motions), (*FRAME, coordinates)),
        (motion.to_frame, (motions, boxes), FRAME),
        (motion.to_object, (motions, boxes), FRAME),
        (motion.to_frame_jacobian, (motions, boxes), FRAME),
    ]
    for function, arrays, rest in calls:
        result = function(*(torch.from_numpy(a) for a in arrays), *rest)
        assert_allclose(result.numpy(), function(*arrays, *rest), rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def davis_boxes(shared_data):
    """OpenCV's boxes of every sequence of davis16-dev, and the size of its frames."""
    return [(s.opencv_boxes, s.size) for s in load_davis16(shared_data / "davis16-dev")]


@in_both_coordinates
@pytest.mark.parametrize("labels", LABELS)
def test_round_trip_on_every_pair_of_davis(davis_boxes, labels, coordinates):
    pairs = 0
    for boxes, size in davis_boxes:
        if labels == "continuous":
            boxes = geometry.continuous_labels(boxes)
        solved = motion.solve(boxes[:-1], boxes[1:], *size, coordinates)
        result = motion.apply(boxes[:-1], solved, *size, coordinates)
        assert_allclose(result, boxes[1:], rtol=1e-9, atol=0)
        pairs += len(solved)
    assert pairs == 668
