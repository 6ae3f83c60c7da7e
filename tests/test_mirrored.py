"""Mirrored sequences: their boxes are those of their pictures."""

import numpy as np
import pytest

from bmvtrack import geometry, motion
from bmvtrack.data.mirrored import mirrored_views, upside_down
from bmvtrack.data.scene import SceneOptions
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.iou import rotated_iou


@pytest.fixture(scope="module")
def sequence():
    return synthetic_sequence(3, SceneOptions(width=96, height=72, length=5)).in_memory()


def test_eight_views_with_names_of_their_own(sequence):
    views = mirrored_views(sequence)
    assert views[0] is sequence
    assert len({view.name for view in views}) == 8
    frames = [view.frame(1).tobytes() for view in views]
    assert len(set(frames)) == 8


def test_one_may_ask_for_those_that_are_upside_down_or_for_none(sequence):
    views = mirrored_views(sequence, "upside-down")
    assert [view.name.split("~")[1] for view in views] == ["y", "yt", "xy", "xyt"]
    assert mirrored_views(sequence, "none") == [sequence]


def test_boxes_are_those_of_the_mirrored_masks(sequence):
    for view in mirrored_views(sequence)[1:]:
        _, marks = view.name.split("~")
        for t in range(5):
            original = 4 - t if "t" in marks else t
            frame, mask = sequence.frame(original), sequence.mask(original)
            if "x" in marks:
                frame, mask = frame[:, ::-1], mask[:, ::-1]
            if "y" in marks:
                frame, mask = frame[::-1], mask[::-1]
            np.testing.assert_array_equal(view.frame(t), frame)
            np.testing.assert_array_equal(view.mask(t), mask)
            expected = geometry.from_mask(np.ascontiguousarray(mask))
            assert rotated_iou(view.boxes[t], expected) > 0.98  # ties of minAreaRect aside


def test_motion_is_mirrored_with_the_boxes(sequence):
    boxes = sequence.boxes
    steps = motion.solve(boxes[:-1], boxes[1:], 96, 72, "object")
    for view in mirrored_views(sequence):
        marks = view.name.partition("~")[2]
        if "t" in marks:
            continue
        mirrored = motion.solve(view.boxes[:-1], view.boxes[1:], 96, 72, "object")
        signs = [1, 1, -1 if ("x" in marks) != ("y" in marks) else 1]
        signs += [-1 if "x" in marks else 1, -1 if "y" in marks else 1]
        np.testing.assert_allclose(mirrored, steps * signs, atol=1e-9)


def test_frames_without_object_stay_so(sequence):
    boxes = sequence.boxes.copy()
    boxes[2] = np.nan
    gap = type(sequence)("gap", 5, sequence.frame, given_boxes=boxes)
    for view in mirrored_views(gap):
        missing = np.flatnonzero(~view.present)
        assert missing.tolist() == [2]


def test_upside_down_is_the_view_that_is_mirrored_in_nothing_else(sequence):
    turned = upside_down(sequence)
    np.testing.assert_array_equal(turned.frame(4), sequence.frame(4)[::-1])
    left, top, right, bottom = sequence.mask_bounds.T
    expected = np.stack([left, 71 - bottom, right, 71 - top], axis=1)
    np.testing.assert_allclose(turned.mask_bounds, expected)


def test_without_masks_there_are_none_to_mirror(sequence):
    bare = type(sequence)("bare", 5, sequence.frame, given_boxes=sequence.boxes)
    assert upside_down(bare).read_mask is None
