"""Boxes as people give them: four numbers, a mask, or one of OpenCV's rectangles."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmvtrack import geometry
from bmvtrack.data.annotations import annotated_box
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.inputs import can_start, corner_and_size, rotated_box
from bmvtrack.iou import rotated_iou


@given(
    x=st.integers(-40, 300),
    y=st.integers(-40, 200),
    w=st.integers(1, 200),
    h=st.integers(1, 200),
)
@settings(max_examples=50)
def test_corner_and_size_come_back(x: int, y: int, w: int, h: int) -> None:
    if x + w < 1 or y + h < 1:
        with pytest.raises(UserError, match="outside the frame, which is 320×240"):
            rotated_box((x, y, w, h), 320, 240)
        return
    rbbox = rotated_box((x, y, w, h), 320, 240)
    assert corner_and_size(geometry.bounds(rbbox)) == pytest.approx([x, y, w, h])


def test_a_box_that_covers_a_mask_s_pixels_is_its_bounds() -> None:
    mask = np.zeros((240, 320), dtype=bool)
    mask[40:70, 100:180] = True
    box = rotated_box((100, 40, 80, 30), 320, 240)
    assert (geometry.bounds(box) == geometry.mask_bounds(mask)).all()


def test_opencv_s_rectangle_is_taken_as_it_is() -> None:
    sequence = synthetic_sequence(8)
    mask = sequence.mask(0)
    points = np.argwhere(mask)[:, ::-1].astype(np.float32)
    rectangle = cv2.minAreaRect(points)
    box = rotated_box(rectangle, *sequence.size)
    assert (
        rotated_iou(box, np.array([*rectangle[0], *rectangle[1], np.deg2rad(rectangle[2])])) > 0.999
    )
    corners = geometry.corners(box).astype(np.float32)
    distances = [cv2.pointPolygonTest(corners, (float(x), float(y)), True) for x, y in points]
    assert min(distances) > -0.01


def test_a_box_out_of_all_proportion_is_refused() -> None:
    with pytest.raises(UserError, match=r"too large to be followed .* may be at most 256 pixels"):
        rotated_box((0, 0, 1e6, 20), 64, 48)
    assert not can_start(np.array([20.0, 20, 1000, 10, 0]), 64, 48)
    assert can_start(np.array([20.0, 20, 200, 10, 0]), 64, 48)


def test_the_sides_of_a_box_are_kept_to_the_last_bit() -> None:
    """So that what an annotation widens to one pixel is not less than one, wherever it is."""
    for x, y in np.random.default_rng(0).uniform(0, 2, (100, 2)).round(2):
        box = annotated_box(np.array([x, y, 0.5, 12.7]))
        assert box[2:].tolist() == [1, 12.7, 0]
        assert can_start(box, 64, 48)


def test_the_one_box_of_select_rois_is_a_box() -> None:
    several = np.array([[3, 4, 20, 10]])
    assert (rotated_box(several, 64, 48) == rotated_box(several[0], 64, 48)).all()
    with pytest.raises(UserError, match="a box must be"):
        rotated_box(np.array([1, 2, 3, 4 + 1j]), 64, 48)
