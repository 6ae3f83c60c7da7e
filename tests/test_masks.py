"""Boxes of many masks at once, beside those of one mask after the other; bounds of mask and box."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bmvtrack import geometry, masks
from bmvtrack.data import patches
from bmvtrack.masks import bounds_of_mask, mask_boxes

SIZE = 24


def plainly(mask: np.ndarray, window: np.ndarray) -> np.ndarray:
    """The box of one mask: all contours, less those under a tenth of the largest, and no short cuts."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.full(5, np.nan)
    areas = [cv2.contourArea(contour) for contour in contours]
    parts = [c for c, area in zip(contours, areas, strict=True) if area >= 0.1 * max(areas)]
    points = np.concatenate(parts)[:, 0].astype(np.float64)
    return geometry.from_points(patches.to_frame(points, window, mask.shape[-1]))


def assert_as_plainly(drawn: np.ndarray, windows: np.ndarray) -> None:
    found = mask_boxes(torch.from_numpy(drawn).float(), torch.from_numpy(windows), above=0.5)
    expected = [plainly(mask, window) for mask, window in zip(drawn, windows, strict=True)]
    np.testing.assert_array_equal(found, expected)


def blobs(rng: np.random.Generator) -> np.ndarray:
    """Blurred noise over a random level: blobs of all sizes, with holes and parts in them."""
    noise = cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE)), None, rng.uniform(0.3, 4))
    return (noise > np.quantile(noise, rng.uniform(0.05, 1.0))).astype(np.uint8)


def pixels(rng: np.random.Generator) -> np.ndarray:
    """A few pixels, none or touching, in corners too."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    places = rng.choice([0, 1, SIZE // 2, SIZE - 2, SIZE - 1], (rng.integers(4), 2))
    mask[places[:, 0], places[:, 1]] = 1
    return mask


def lines(rng: np.random.Generator) -> np.ndarray:
    """Thin lines, crossing or alone, up to the edges."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for start, end in rng.integers(0, SIZE, (rng.integers(1, 4), 2, 2)).tolist():
        cv2.line(mask, start, end, 1)
    return mask


def two_parts(rng: np.random.Generator) -> np.ndarray:
    """A square of 100 between centres of pixels and a part of 9, 10 or 11, in either order."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[1:12, 1:12] = 1
    mask[14:16, 4 : 14 + rng.integers(3)] = 1
    return mask[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]


def nested(rng: np.random.Generator) -> np.ndarray:
    """A frame, perhaps along the edge of the patch, and something in it."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    edge = int(rng.integers(4))
    mask[edge : SIZE - edge, edge : SIZE - edge] = 1
    mask[edge + 1 : SIZE - edge - 1, edge + 1 : SIZE - edge - 1] = 0
    mask[8:16, 8:16] = blobs(rng)[8:16, 8:16]
    return mask


KINDS = (blobs, pixels, lines, two_parts, nested)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([None, *KINDS]))
def test_many_masks_have_the_boxes_of_each_alone(seed, count, kind):
    rng = np.random.default_rng(seed)
    kinds = [KINDS[i] for i in rng.integers(len(KINDS), size=count)] if kind is None else [kind]
    drawn = np.stack([kinds[i % len(kinds)](rng) for i in range(count)])
    corners = rng.uniform(-100, 800, (count, 2))
    windows = np.concatenate([corners, corners + rng.uniform(20, 500, (count, 2))], axis=1)
    assert_as_plainly(drawn, windows)


@pytest.mark.parametrize("threads", [1, 3])
def test_more_masks_than_one_picture_holds(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(0)
    drawn = np.stack([KINDS[i % len(KINDS)](rng) for i in range(3 * masks._IN_A_PICTURE + 1)])
    drawn[masks._IN_A_PICTURE : 2 * masks._IN_A_PICTURE] = 0
    assert_as_plainly(drawn, np.tile([30.0, 20, 330, 220], (len(drawn), 1)))


def test_no_masks_have_no_boxes():
    found = mask_boxes(torch.zeros(0, SIZE, SIZE), torch.zeros(0, 4), above=0.5)
    assert found.shape == (0, 5)


WINDOW = np.array([100.0, 60, 260, 156])
"""Of a patch of 64 x 64 pixels, each 2.5 wide and 1.5 high in the frame."""


def painted(*rectangles, on=0.6, off=0.4):
    """Probabilities on that patch: ``on`` in rectangles (left, top, right, bottom), the last two outside."""
    result = np.full((64, 64), off, np.float32)
    for left, top, right, bottom in rectangles:
        result[top:bottom, left:right] = on
    return result


def in_frame(rectangle, window=WINDOW):
    """Where a rectangle of the patch lies."""
    corners = np.array(rectangle, np.float64).reshape(2, 2) / 64
    return (window[:2] + corners * (window[2:] - window[:2])).reshape(4)


def bounds_on_a_grid(rectangle, rbbox):
    """Bounds of what a painted rectangle and a box have in common, of points a fifth of a pixel apart."""
    x, y = np.arange(100, 260, 0.2)[None], np.arange(60, 156, 0.2)[:, None]
    centre_x, centre_y, w, h, angle = rbbox
    along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
    beside = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
    left, top, right, bottom = in_frame(rectangle)
    on = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    rows, columns = np.nonzero(on & (np.abs(along) < w / 2) & (np.abs(beside) < h / 2))
    return [x[0, columns.min()], y[rows.min(), 0], x[0, columns.max()], y[rows.max(), 0]]


@pytest.mark.parametrize("angle", [0.4, -0.9, 2.0])
@pytest.mark.parametrize(
    ("rectangle", "own"),
    [
        ((2, 4, 34, 62), [2]),
        ((30, 1, 62, 60), [0]),
        ((1, 2, 63, 33), [3]),
        ((24, 30, 38, 63), [0, 1, 2]),
        ((25, 23, 39, 41), [0, 1, 2, 3]),
    ],
    ids=["left", "right", "above", "a column below", "within"],
)
def test_bounds_are_of_what_the_mask_and_the_box_have_in_common(angle, rectangle, own):
    """On its ``own`` sides the mask ends within the box; on the others the box does, to about a pixel."""
    rbbox = np.array([180.0, 108, 70, 45, angle])
    found = bounds_of_mask(painted(rectangle), WINDOW, rbbox, above=0.5)
    expected = bounds_on_a_grid(rectangle, rbbox)
    pixel = np.array([2.5, 1.5, 2.5, 1.5])
    assert (np.abs(found - expected) < 1.5 * pixel).all()
    np.testing.assert_allclose(found[own], in_frame(rectangle)[own])


def test_a_mask_that_fills_a_quarter_of_the_box_gives_its_bounds_and_less_does_not():
    """A box of 20 x 12 pixels of the patch; what lies outside of it counts nothing."""
    window = np.array([100.0, 60, 228, 188])
    left, top, right, bottom = 22, 26, 42, 38
    limits = in_frame((left, top, right, bottom), window)
    rbbox = geometry.upright(limits)
    quarter, elsewhere = (left, top, left + 5, bottom), (44, 0, 64, 64)
    for rectangles in ((quarter,), (quarter, elsewhere)):
        mask = painted(*rectangles)
        found = bounds_of_mask(mask, window, rbbox, above=0.5)
        np.testing.assert_allclose(found, in_frame(quarter, window))
        mask[top + 3, left + 2] = 0.4
        found = bounds_of_mask(mask, window, rbbox, above=0.5)
        np.testing.assert_allclose(found, limits)


def test_no_mask_in_the_box_leaves_it_its_own_bounds():
    full, slanted = painted((0, 0, 64, 64)), np.array([180.0, 108, 70, 45, 0.4])
    for mask, above in ((painted(), 0.5), (full, 0.6), (np.zeros_like(full), 0.0)):
        found = bounds_of_mask(mask, WINDOW, slanted, above)
        np.testing.assert_array_equal(found, geometry.bounds(slanted))
    outside = np.array([400.0, 300, 20, 10, 0.4])  # of the patch
    found = bounds_of_mask(full, WINDOW, outside, above=0.5)
    np.testing.assert_array_equal(found, geometry.bounds(outside))
