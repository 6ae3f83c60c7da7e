import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from strategies import HEIGHT, WIDTH, random_boxes, rbboxes, vectors

from bmvtrack import geometry

QUARTER_TURNS = st.integers(-6, 6).map(float)


@given(rbboxes())
def test_corners_are_those_of_opencv(rbbox):
    x, y, w, h, angle = rbbox
    expected = cv2.boxPoints(((x, y), (w, h), math.degrees(angle)))  # float32
    assert_allclose(np.roll(geometry.corners(rbbox), 1, axis=0), expected, atol=2e-3)


@given(rbboxes())
def test_bounds_hold_the_corners_tightly(rbbox):
    corners = geometry.corners(rbbox)
    expected = [*corners.min(axis=0), *corners.max(axis=0)]
    assert_allclose(geometry.bounds(rbbox), expected, atol=1e-9)


@given(vectors((-50, 50), (-50, 50), (51, 900), (51, 900)))
def test_upright_inverts_bounds(limits):
    assert_allclose(geometry.bounds(geometry.upright(limits)), limits, atol=1e-9)


@given(rbboxes(), QUARTER_TURNS)
def test_relabelling_keeps_the_corners_and_can_be_undone(rbbox, k):
    relabelled = geometry.relabel(rbbox, np.asarray(k))
    rolled = np.roll(geometry.corners(rbbox), -int(k), axis=0)
    assert_allclose(geometry.corners(relabelled), rolled, atol=1e-9)
    assert_allclose(geometry.relabel(relabelled, np.asarray(-k)), rbbox, atol=1e-12)


@given(rbboxes(), rbboxes())
def test_nearest_label_turns_least_of_all_labels(rbbox, reference):
    turn = abs(geometry.nearest_label(rbbox, reference)[4] - reference[4])
    turns = [
        abs(geometry.relabel(rbbox, np.asarray(k))[4] - reference[4]) for k in np.arange(-12.0, 13)
    ]
    assert turn == pytest.approx(min(turns), abs=1e-9)
    assert turn <= math.pi / 4 + 1e-9


def assert_level(rbbox, other):
    level = geometry.relabel(rbbox, geometry.turns_to_level(rbbox))
    assert abs(level[4]) <= math.pi / 4 + 1e-12
    assert_allclose(geometry.relabel(other, geometry.turns_to_level(other)), level, atol=1e-9)


@given(rbboxes(), QUARTER_TURNS)
def test_the_level_label_is_the_same_for_all_labels_of_a_box(rbbox, k):
    assert_level(rbbox, geometry.relabel(rbbox, np.array(k)))


@pytest.mark.parametrize("quarters", [-2, -1, 1, 2])
def test_the_level_label_is_the_same_at_exactly_45_degrees(quarters):
    """As OpenCV labels every square that stands on its corner."""
    rbbox = np.array([20.0, 30, 8, 5, math.pi / 4])
    assert_level(rbbox, geometry.relabel(rbbox, np.array(float(quarters))))


def test_continuous_labels_follow_a_rectangle_through_a_whole_turn():
    turning = np.array([[100, 80, 60, 30, angle] for angle in np.arange(-0.2, 7, 0.1)])
    turning[20:23] = np.nan  # the object is gone for a while
    jumping = geometry.relabel(turning, -np.floor(turning[:, 4] / geometry.QUARTER_TURN) - 1)
    present = np.isfinite(turning[:, 0])
    assert np.abs(np.diff(jumping[present, 4])).max() > 1
    assert_allclose(geometry.continuous_labels(jumping), turning, atol=1e-12)


@pytest.mark.parametrize("value", [1, 7, 255, True])
def test_box_of_a_mask(value):
    drawn = np.array([150.0, 90.0, 120.0, 50.0, -1.1])
    mask = cv2.fillPoly(
        np.zeros((200, 300), np.uint8), [np.round(geometry.corners(drawn)).astype(np.int32)], 1
    )
    rbbox = geometry.from_mask(mask * np.array(value))
    assert rbbox.dtype == np.float64
    assert_allclose(rbbox, drawn, atol=1.5)
    assert_allclose(rbbox[4], drawn[4], atol=0.02)


@pytest.mark.parametrize(
    ("pixels", "w", "h"),
    [
        ([(5, 5)], 1, 1),
        ([(5, x) for x in range(3, 9)], 1, 5),
        ([(y, 5) for y in range(3, 9)], 5, 1),
        ([(y, x) for y in range(2, 6) for x in range(3, 9)], 3, 5),
        ([(2, 3), (9, 3), (2, 8)], 7, 5),
    ],
    ids=["pixel", "row", "column", "block", "parts"],
)
def test_box_of_a_small_mask_has_sides_of_a_pixel_or_more(pixels, w, h):
    mask = np.zeros((12, 12), dtype=bool)
    mask[tuple(np.transpose(pixels))] = True
    rbbox = geometry.from_mask(mask)
    assert_allclose(rbbox[2:], [w, h, -math.pi / 2], atol=1e-5)


def test_an_empty_mask_has_no_box():
    assert geometry.from_mask(np.zeros((4, 5), dtype=np.uint8)) is None


@given(st.integers(0, 10_000))
def test_the_box_of_a_mask_holds_it_and_its_angle_is_in_range(seed):
    generator = np.random.default_rng(seed)
    mask = np.zeros((60, 80), dtype=bool)
    rows, columns = generator.integers(0, (60, 80), (generator.integers(1, 9), 2)).T
    mask[rows, columns] = True
    rbbox = geometry.from_mask(mask)
    assert -math.pi / 2 <= rbbox[4] < 0
    cos, sin = math.cos(rbbox[4]), math.sin(rbbox[4])
    offset = np.stack([columns - rbbox[0], rows - rbbox[1]], axis=-1) @ [[cos, -sin], [sin, cos]]
    assert (np.abs(offset) <= rbbox[2:4] / 2 + 1e-3).all()


@given(vectors(*[(-1e6, 1e6)] * 5))
def test_a_clamped_box_is_near_the_frame_and_stays_clamped(rbbox):
    x, y, w, h, angle = clamped = geometry.clamp(rbbox, WIDTH, HEIGHT)
    assert -WIDTH <= x <= 2 * WIDTH
    assert -HEIGHT <= y <= 2 * HEIGHT
    assert 1 <= min(w, h) <= max(w, h) <= 4 * WIDTH
    assert -math.pi <= angle <= math.pi
    assert math.cos(angle) == pytest.approx(math.cos(rbbox[4]), abs=1e-8)
    assert_allclose(geometry.clamp(clamped, WIDTH, HEIGHT), clamped, atol=1e-9)


@given(rbboxes())
def test_clamping_does_not_move_a_box_in_the_frame(rbbox):
    clamped = geometry.clamp(rbbox, WIDTH, HEIGHT)
    assert_allclose(geometry.corners(clamped), geometry.corners(rbbox), atol=1e-9)


BOXES, OTHERS = random_boxes(50), random_boxes(50, seed=1)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (geometry.corners, [BOXES]),
        (geometry.bounds, [BOXES]),
        (geometry.upright, [geometry.bounds(BOXES)]),
        (geometry.relabel, [BOXES, np.arange(-25.0, 25)]),
        (geometry.nearest_label, [BOXES, OTHERS]),
        (lambda boxes: geometry.clamp(20 * boxes, WIDTH, HEIGHT), [BOXES]),
    ],
    ids=["corners", "bounds", "upright", "relabel", "nearest_label", "clamp"],
)
def test_torch_gives_the_numbers_of_numpy(function, arguments):
    tensors = [torch.from_numpy(a) for a in arguments]
    assert_allclose(function(*tensors).numpy(), function(*arguments), rtol=1e-12, atol=1e-12)


def test_numpy_and_torch_do_not_mix():
    with pytest.raises(TypeError):
        geometry.nearest_label(BOXES, torch.from_numpy(OTHERS))
