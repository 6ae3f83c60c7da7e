"""Tracking metrics against independent computations and by their properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmvtrack import geometry
from bmvtrack.iou import rotated_iou
from bmvtrack.tracking import metrics
from bmvtrack.tracking.metrics import Overlap, axis_aligned_overlap, rotated_overlap, score

NAN = float("nan")

ious = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)
errors = st.lists(st.floats(0, 200), min_size=1, max_size=30).map(np.array)
boxes = st.lists(
    st.tuples(
        st.floats(-50, 900),
        st.floats(-50, 500),
        st.floats(1, 300),
        st.floats(1, 300),
        st.floats(-7, 7),
    ),
    min_size=2,
    max_size=12,
).map(np.array)


def shapes(*sides: tuple[float, float]) -> np.ndarray:
    """Upright boxes about (100, 100)."""
    return np.array([[100, 100, w, h, 0] for w, h in sides], dtype=float)


@given(ious, errors)
def test_curves_are_what_counting_gives(iou, centre_error):
    for k in range(21):
        expected = sum(value > metrics.THRESHOLDS[k] for value in iou) / len(iou)
        assert metrics.success_curve(iou)[k] == pytest.approx(expected)
    for pixels in range(51):
        expected = sum(value <= pixels for value in centre_error) / len(centre_error)
        assert metrics.precision_curve(centre_error)[pixels] == pytest.approx(expected)


@given(ious)
def test_scores_are_bounded_and_ordered(iou):
    scores = score(Overlap(iou, 100 * (1 - iou)))
    for value in (scores.ao, scores.sr50, scores.sr75, scores.auc, scores.precision20):
        assert 0 <= value <= 1
    assert scores.sr75 <= scores.sr50
    assert np.all(np.diff(scores.success) <= 0)
    assert np.all(np.diff(scores.precision) >= 0)
    # The curve is a Riemann sum of AO with steps of 0.05.
    assert scores.auc == pytest.approx(scores.ao, abs=0.05)


def test_coverage_of_the_right_gaussian_is_its_level():
    draws = np.random.default_rng(3).standard_normal((40_000, 5))
    distances = np.square(draws).sum(axis=1)
    assert metrics.coverage(distances) == pytest.approx(
        {"50": 0.5, "90": 0.9, "99": 0.99}, abs=0.008
    )
    too_certain = metrics.coverage(distances * 1.5**2)
    assert [too_certain[level] < float(level) / 100 - 0.03 for level in too_certain] == [True] * 3
    assert metrics.coverage(np.array([0.0, 1e9])) == {"50": 0.5, "90": 0.5, "99": 0.5}


@given(boxes)
def test_a_perfect_tracker_is_perfect(true):
    for overlap in (
        rotated_overlap(true, true),
        axis_aligned_overlap(geometry.bounds(true), geometry.bounds(true)),
    ):
        scores = score(overlap)
        assert scores.ao == pytest.approx(1, abs=1e-8)
        assert scores.sr75 == scores.precision20 == 1
        assert scores.auc == pytest.approx(20 / 21, abs=1 / 21 + 1e-9)


def test_success_is_strictly_above_the_threshold():
    iou = np.array([0.5, 0.5, 0.75, 0.76])
    assert metrics.success_rate(iou, 0.5) == 0.5
    assert metrics.success_rate(iou, 0.75) == 0.25
    assert metrics.success_curve(np.array([0.0]))[0] == 0
    assert metrics.success_curve(np.array([1.0])).tolist() == [1.0] * 20 + [0.0]


def test_half_a_box_overlaps_by_exactly_half():
    true, predicted = shapes((1, 1), (40, 20)), shapes((1, 1), (40, 10))
    assert score(rotated_overlap(predicted, true)).sr50 == 0
    limits = axis_aligned_overlap(geometry.bounds(predicted), geometry.bounds(true))
    assert limits.iou[1] == 0.5
    assert score(limits).sr50 == 0


def test_precision_includes_twenty_pixels():
    true = np.tile([0.0, 0, 10, 10, 0], (3, 1))
    predicted = true + np.array([[0], [1], [1]]) * [12, 16, 0, 0, 0]  # 20 pixels away
    assert score(rotated_overlap(predicted, true)).precision20 == 1
    predicted[2, 0] += 0.01
    assert score(rotated_overlap(predicted, true)).precision20 == 0.5


def test_first_frame_and_frames_without_object_are_not_scored():
    true = shapes((9, 9), (10, 10), (10, 10), (10, 10))
    true[2] = NAN
    predicted = shapes((1, 1), (10, 10), (1, 1), (10, 5))
    overlap = rotated_overlap(predicted, true)
    assert np.isnan(overlap.iou).tolist() == [True, False, True, False]
    assert np.isnan(overlap.centre_error).tolist() == [True, False, True, False]
    assert score(overlap).ao == pytest.approx(0.75)
    limits = axis_aligned_overlap(geometry.bounds(predicted), geometry.bounds(true))
    assert score(limits).ao == pytest.approx(0.75)


def test_a_box_of_nan_overlaps_nothing():
    true = shapes((9, 9), (10, 10))
    predicted = np.full((2, 5), NAN)
    scores = score(rotated_overlap(predicted, true))
    assert (scores.ao, scores.precision20) == (0, 0)


def test_nothing_to_score_is_an_error():
    true = shapes((9, 9), (10, 10))
    true[1] = NAN
    with pytest.raises(ValueError, match="no frame is scored"):
        score(rotated_overlap(true, true))


@given(boxes, st.integers(0, 10_000))
def test_geometries_agree_on_upright_boxes(true, seed):
    true[:, 4] = 0
    predicted = true + np.random.default_rng(seed).normal(size=true.shape) * [5, 5, 0, 0, 0]
    rotated = score(rotated_overlap(predicted, true))
    upright = score(axis_aligned_overlap(geometry.bounds(predicted), geometry.bounds(true)))
    assert rotated.ao == pytest.approx(upright.ao, abs=1e-8)
    assert rotated.precision20 == upright.precision20


def test_average_is_the_mean_of_each():
    runs = [score(Overlap(np.array([v]), np.array([100 * v]))) for v in (0.1, 0.6)]
    mean = metrics.average(runs)
    assert mean.ao == pytest.approx(0.35)
    assert (mean.sr50, mean.precision20) == (0.5, 0.5)
    assert mean.success == pytest.approx((runs[0].success + runs[1].success) / 2)
    assert mean.precision == pytest.approx((runs[0].precision + runs[1].precision) / 2)
    assert mean.auc == pytest.approx(mean.success.mean())


def test_boxes_that_differ_in_the_last_digit_overlap():
    """shapely's plain intersection finds four points in common here, and an IoU of 0."""
    true = np.array([95.50799560546875, 73.33785247802734, 153.34146118, 62.40347672, -0.46706056])
    generator = np.random.default_rng(0)
    near = true * (1 + 1e-15 * generator.normal(size=(500, 5)))
    assert rotated_iou(near, true).min() > 1 - 1e-8
    assert rotated_iou(true, near).max() <= 1


def test_bounds_of_a_mask_reach_to_the_edges_of_its_pixels():
    mask = np.zeros((20, 30), dtype=bool)
    assert np.isnan(geometry.mask_bounds(mask)).all()
    mask[5, 3] = True
    assert geometry.mask_bounds(mask).tolist() == [2.5, 4.5, 3.5, 5.5]
    mask[19, 29] = True
    assert geometry.mask_bounds(mask).tolist() == [2.5, 4.5, 29.5, 19.5]


def test_bounds_of_an_upright_rectangle_are_a_pixel_wider_than_its_box():
    mask = np.zeros((50, 60), dtype=np.uint8)
    mask[10:30, 20:55] = 1
    limits = geometry.bounds(geometry.from_mask(mask))
    grown = limits + np.array([-0.5, -0.5, 0.5, 0.5])
    assert geometry.mask_bounds(mask) == pytest.approx(grown, abs=1e-4)
    assert math.isclose(np.diff(geometry.mask_bounds(mask)[[0, 2]])[0], 35)


def test_half_and_three_quarters_are_counted():
    scores = score(Overlap(np.array([0.4, 0.6, 0.72, 0.8]), np.zeros(4)))
    assert (scores.sr50, scores.sr75) == (0.75, 0.25)
    mean = metrics.average([scores, scores])
    assert (mean.sr50, mean.sr75) == (0.75, 0.25)


def test_a_box_of_which_a_number_is_missing_is_none():
    true = shapes((9, 9), (10, 10), (10, 10))
    predicted = true.copy()
    predicted[1, 4] = NAN
    overlap = rotated_overlap(predicted, true)
    assert overlap.iou[1:].tolist() == [0, 1]
    assert overlap.centre_error[1:].tolist() == [np.inf, 0]


def test_the_centre_of_bounds_is_their_middle():
    true = np.tile([0.0, 0, 10, 20], (2, 1))
    assert axis_aligned_overlap(true + np.array([2, 4, -2, -4]), true).centre_error[1] == 0
