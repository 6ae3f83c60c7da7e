import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from strategies import random_boxes, rbboxes, vectors

from bmvtrack import geometry
from bmvtrack.iou import bounds_iou, rotated_iou, rotated_iou_torch

UNIT = (400, 240, 100, 100, 0)
KNOWN = {
    "identical": (UNIT, UNIT, 1),
    "half over": (UNIT, (450, 240, 100, 100, 0), 1 / 3),
    "turned by 45°": (UNIT, (400, 240, 100, 100, math.pi / 4), math.sqrt(0.5)),
    "nested": (UNIT, (410, 230, 40, 30, 0.3), 0.12),
    "nested upright, sharing a corner": (UNIT, (375, 215, 50, 50, 0), 0.25),
    "touching at an edge": (UNIT, (500, 240, 100, 100, 0), 0),
    "touching at a corner": (UNIT, (500, 340, 100, 100, 0), 0),
    "corner on an edge": (UNIT, (450 + 50 * math.sqrt(2), 240, 100, 100, math.pi / 4), 0),
    "disjoint": (UNIT, (800, 10, 100, 100, 1), 0),
    "far": (UNIT, (1e5, -1e5, 100, 100, 1), 0),
    "thin, crossed": ((400, 240, 1, 600, 0.4), (400, 240, 600, 1, 0.4), 1 / 1199),
    "thin, identical": ((400, 240, 1, 900, 0.7), (400, 240, 1, 900, 0.7), 1),
    "thin, in line": ((400, 240, 1, 800, 0), (400, 440, 1, 800, 0), 0.6),
    "one pixel": (UNIT, (420, 230, 1, 1, 0.2), 1e-4),
}


def torch_iou(first, second):
    return rotated_iou_torch(torch.as_tensor(first), torch.as_tensor(second)).numpy()


@pytest.mark.parametrize("iou", [rotated_iou, torch_iou])
@pytest.mark.parametrize(("first", "second", "expected"), KNOWN.values(), ids=KNOWN)
def test_known_overlaps(iou, first, second, expected):
    first, second = np.array(first, dtype=float), np.array(second, dtype=float)
    assert iou(first, second) == pytest.approx(expected, abs=1e-9)
    assert iou(second, first) == pytest.approx(expected, abs=1e-9)


def test_torch_agrees_with_shapely_on_random_boxes():
    first, second = random_boxes(3000), random_boxes(3000, seed=1)
    expected = rotated_iou(first, second)
    assert (expected > 0.05).mean() > 0.5
    assert_allclose(torch_iou(first, second), expected, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, math.pi / 2, math.pi / 4, 3 * math.pi / 4, math.atan(0.5)])
@pytest.mark.parametrize("relative", [0.0, 1e-16, 3e-16, 1e-15, 1e-14, 1e-12])
def test_boxes_that_differ_by_rounding_agree(angle, relative):
    """As the box that true motion leads to and the true box do."""
    rng = np.random.default_rng(0)
    count = 2000
    first = np.column_stack(
        [
            rng.uniform(0, 2000, (count, 2)),
            np.exp(rng.uniform(0, 7, (count, 2))),
            np.full(count, angle),
        ]
    )
    second = first * (1 + relative * rng.uniform(-1, 1, first.shape))
    second = geometry.relabel(second, rng.integers(-2, 3, count))
    assert_allclose(rotated_iou(first, second), 1, atol=1e-6)
    assert_allclose(rotated_iou(second, first), 1, atol=1e-6)


@given(rbboxes(), vectors(*[(-20, 20)] * 2, *[(1, 3)] * 2, (-1.6, 1.6)))
def test_torch_agrees_with_shapely_on_thin_and_small_boxes(first, change):
    second = np.concatenate(
        [first[:2] + change[:2], first[2:4] * change[2:4], first[4:] + change[4]]
    )
    assert_allclose(torch_iou(first, second), rotated_iou(first, second), atol=1e-6)


def test_small_boxes_far_from_each_other_have_nothing_in_common():
    rng = np.random.default_rng(0)
    first, second = (
        np.hstack([rng.uniform(lowest, lowest + 1e4, (2000, 2)), rng.uniform(0.1, 2, (2000, 3))])
        for lowest in (0, 2e4)
    )
    assert_allclose(torch_iou(first, second), 0, atol=1e-12)


@pytest.mark.parametrize("iou", [rotated_iou, torch_iou])
@given(rbbox=rbboxes(), k=st.integers(0, 3).map(float))
def test_a_box_overlaps_itself_wholly_under_each_label(iou, rbbox, k):
    assert iou(rbbox, geometry.relabel(rbbox, np.asarray(k))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("iou", [rotated_iou, torch_iou])
def test_upright_boxes_overlap_as_their_bounds(iou):
    first, second = (geometry.bounds(random_boxes(200, seed)) for seed in (0, 1))
    expected = bounds_iou(first, second)
    assert_allclose(iou(geometry.upright(first), geometry.upright(second)), expected, atol=1e-9)


def test_bounds_iou_at_the_edges_of_its_domain():
    first = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [3, 3, 3, 3], [np.nan] * 4], dtype=float)
    second = np.array([[0, 0, 10, 5], [20, 0, 30, 10], [3, 3, 3, 3], [0, 0, 1, 1]], dtype=float)
    expected = [0.5, 0, 0, np.nan]
    assert_allclose(bounds_iou(first, second), expected)
    assert_allclose(bounds_iou(torch.tensor(first), torch.tensor(second)).numpy(), expected)


def test_shapes_broadcast_and_a_missing_box_has_no_iou():
    first, second = random_boxes(4)[:, None], random_boxes(6, seed=1)
    second[2] = np.nan
    result = rotated_iou(first, second)
    assert result.shape == (4, 6)
    assert (np.isnan(result) == np.isnan(second[:, 0])).all()
    tensors = torch.from_numpy(first).float(), torch.from_numpy(random_boxes(6, seed=1)).float()
    assert rotated_iou_torch(*tensors).shape == (4, 6)
    assert rotated_iou_torch(*tensors).dtype == torch.float32


def test_gradient_is_that_of_finite_differences():
    first, second = (torch.from_numpy(random_boxes(20, seed)).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(rotated_iou_torch, (first, second), atol=1e-5)


@pytest.mark.parametrize(("first", "second"), [v[:2] for v in KNOWN.values()], ids=KNOWN)
def test_gradient_is_finite_where_there_is_none(first, second):
    boxes = [torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (first, second)]
    rotated_iou_torch(*boxes).backward()
    assert all(box.grad.isfinite().all() for box in boxes)
