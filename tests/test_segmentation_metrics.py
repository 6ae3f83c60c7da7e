"""J, F and their statistics, against slow computations of their definitions."""

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bmvtrack.segmentation.metrics import (
    Statistics,
    average,
    boundary,
    contour_accuracy,
    region_similarity,
    statistics,
    tolerance,
)

HEIGHT, WIDTH = 180, 320  # matches within 3 pixels
shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


@st.composite
def mask_pairs(draw):
    shape = draw(shapes)
    return draw(arrays(bool, shape)), draw(arrays(bool, shape))


def blobs(seed: int, count: int = 4) -> np.ndarray:
    """A mask of overlapping ellipses, some of them holes."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for i in range(count):
        centre = generator.integers((60, 40), (260, 140)).tolist()
        axes = generator.integers(6, 60, 2).tolist()
        cv2.ellipse(mask, centre, axes, float(generator.uniform(0, 180)), 0, 360, int(i != 1), -1)
    return mask.astype(bool)


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    result = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            for down, right in ((0, 1), (1, 0), (1, 1)):
                other = mask[min(y + down, height - 1), min(x + right, width - 1)]
                result[y, x] |= mask[y, x] != other
    return result


def slow_contour_accuracy(predicted: np.ndarray, true: np.ndarray, radius: float) -> float:
    """By exact distances between all pixels of both boundaries."""
    first, second = (np.argwhere(slow_boundary(mask)) for mask in (predicted, true))
    if not len(first) or not len(second):
        return float(len(first) == len(second))
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)
    precision = (distances.min(axis=1) <= radius).mean()
    recall = (distances.min(axis=0) <= radius).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def slow_decay(scored: list[float]) -> float:
    """The bins as DAVIS numbers them: from 1, end frames in both neighbours."""
    ends = [math.floor(1 + k * (len(scored) - 1) / 4 + 0.5) for k in range(5)]
    bins = [scored[a - 1 : b] for a, b in pairwise(ends)]
    return sum(bins[0]) / len(bins[0]) - sum(bins[3]) / len(bins[3])


@given(mask_pairs())
def test_region_similarity_is_intersection_over_union(pair) -> None:
    first, second = ({tuple(p) for p in np.argwhere(mask)} for mask in pair)
    expected = len(first & second) / len(first | second) if first | second else 1.0
    assert region_similarity(*pair) == pytest.approx(expected)


@given(arrays(bool, shapes))
def test_boundary_is_where_a_neighbour_differs(mask) -> None:
    np.testing.assert_array_equal(boundary(mask), slow_boundary(mask))


@pytest.mark.parametrize("seed", range(2))
def test_contour_accuracy_matches_within_the_exact_distance(seed: int) -> None:
    true = blobs(seed)
    predicted = np.roll(true, (2, 3), axis=(0, 1)) ^ blobs(seed + 100, 1)
    expected = slow_contour_accuracy(predicted, true, 3)
    assert 0.1 < expected < 0.95
    assert contour_accuracy(predicted, true) == pytest.approx(expected)


@given(mask_pairs())
def test_contour_accuracy_of_any_masks(pair) -> None:
    found = contour_accuracy(*pair)
    assert found == pytest.approx(slow_contour_accuracy(*pair, 1))
    assert found == pytest.approx(contour_accuracy(*pair[::-1]))
    assert 0 <= found <= 1
    assert contour_accuracy(pair[0], pair[0]) == 1


@pytest.mark.parametrize(("shift", "expected"), [(3, 1.0), (4, 0.0)])
def test_an_edge_matches_up_to_three_pixels_and_no_further(shift: int, expected: float) -> None:
    true, predicted = np.zeros((2, HEIGHT, WIDTH), bool)
    true[:, 100:] = predicted[:, 100 + shift :] = True
    assert contour_accuracy(predicted, true) == expected


@pytest.mark.parametrize("size", [(480, 854), (360, 640), (1080, 1920), (20, 20)])
def test_tolerance_is_a_share_of_the_diagonal(size) -> None:
    known = {(480, 854): 8, (360, 640): 6, (1080, 1920): 18, (20, 20): 1}
    assert tolerance(*size) == known[size]


def test_empty_masks() -> None:
    empty, full, some = np.zeros((9, 9), bool), np.ones((9, 9), bool), np.eye(9, dtype=bool)
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1
    assert region_similarity(empty, some) == contour_accuracy(empty, some) == 0
    assert contour_accuracy(full, some) == contour_accuracy(some, full) == 0


@given(arrays(np.float64, st.integers(3, 60), elements=st.floats(0, 1)))
def test_statistics_leave_out_first_and_last_frame(values) -> None:
    scored = values[1:-1].tolist()
    found = statistics(values)
    assert found.mean == pytest.approx(sum(scored) / len(scored))
    assert found.recall == pytest.approx(sum(v > 0.5 for v in scored) / len(scored))
    assert found.decay == pytest.approx(slow_decay(scored))


def test_a_sequence_that_gets_worse_has_a_positive_decay() -> None:
    values = np.r_[0.0, np.repeat([0.9, 0.6, 0.5, 0.1], 10), 1.0]
    found = statistics(values)
    assert found.recall == 0.5  # ½ itself is not above ½
    assert found.decay == pytest.approx((10 * 0.9 + 0.6) / 11 - (0.5 + 10 * 0.1) / 11)


def test_two_frames_have_nothing_to_score() -> None:
    with pytest.raises(ValueError, match="no frame is scored"):
        statistics(np.ones(2))


def test_every_sequence_counts_once() -> None:
    parts = [Statistics(0.2, 0.0, -0.1), Statistics(0.8, 1.0, 0.3)]
    found = average(parts)
    assert (found.mean, found.recall, found.decay) == pytest.approx((0.5, 0.5, 0.1))
