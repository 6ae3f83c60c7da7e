"""Boxes of many masks at once, beside those of one mask after the other."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bmvtrack import geometry, masks
from bmvtrack.data import patches
from bmvtrack.masks import mask_boxes

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
