"""Sequences of a user's own frames and boxes: refused with the frame's number, or taken as they are."""

import numpy as np
import pytest

from bmvtrack.data.bank import build_bank
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8)
BOXES = np.tile([32.0, 24, 10, 12, 0.1], (4, 1))


def of(frames=FRAMES, boxes=BOXES, mask=None):
    return VideoSequence("cup", 4, frames.__getitem__, mask, boxes)


def test_a_sequence_needs_frames_and_masks_or_boxes():
    with pytest.raises(UserError, match="no frames"):
        VideoSequence("empty", 0, FRAMES.__getitem__)
    with pytest.raises(UserError, match="neither masks nor boxes"):
        VideoSequence("bare", 1, FRAMES.__getitem__)


def test_frames_that_are_not_there_are_named():
    longer = VideoSequence("cup", 6, list(FRAMES).__getitem__, None, np.tile(BOXES[0], (6, 1)))
    with pytest.raises(UserError, match="sequence 'cup' of length 6 has no frame 4"):
        longer.check_frame_sizes()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FRAMES / 255, "uint8, 0 to 255, not float64"),
        (FRAMES[..., 0], r"\(H, W, 3\), not \(48, 64\)"),
        (np.concatenate([FRAMES, FRAMES[..., :1]], axis=-1), r"\(H, W, 3\), not \(48, 64, 4\)"),
        (FRAMES.tolist(), "a NumPy array, not list"),
    ],
    ids=["float", "grey", "four-channels", "list"],
)
def test_frames_that_are_none_are_named(frames, message):
    with pytest.raises(UserError, match=rf"sequence 'cup', frame 2: a frame .*{message}"):
        of(frames).frame(2)


def test_frames_of_opencv_turned_round_are_taken_and_others_not_copied():
    reversed_, read_only = FRAMES[..., ::-1], FRAMES.copy()
    read_only.flags.writeable = False
    for frames in (reversed_, read_only):
        frame = of(frames).frame(1)
        np.testing.assert_array_equal(frame, frames[1])
        assert frame.flags.c_contiguous
        assert frame.flags.writeable
    assert np.shares_memory(of().frame(1), FRAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda boxes: boxes[:3], r"for each of 4 frames .* not of shape \(3, 5\)"),
        (lambda boxes: boxes[:, :4], r"not of shape \(4, 4\)"),
        (
            lambda boxes: [*boxes[:3], None],
            "five numbers for each of 4 frames .*: setting an array",
        ),
        (lambda boxes: boxes * [1, 1, 0, 1, 1], "of frame 0 is invalid: sides must be positive"),
        (lambda boxes: boxes * [1, 1, -1, 1, 1], "of frame 0 is invalid"),
        (lambda boxes: np.add(boxes, [np.nan, 0, 0, 0, 0]), "of frame 0 is invalid"),
        (lambda boxes: np.add(boxes, [0, 0, 0, 0, np.inf]), "of frame 0 is invalid"),
    ],
    ids=["too-few", "no-angle", "none", "flat", "negative", "partly-missing", "infinite"],
)
def test_boxes_that_are_none_are_refused_at_once(change, message):
    with pytest.raises(UserError, match=message):
        of(boxes=change(BOXES))


def test_where_there_is_no_object_a_box_is_nan():
    boxes = BOXES.copy()
    boxes[2] = np.nan
    assert of(boxes=boxes.astype(np.float32)).present.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (FRAMES[0] > 9, r"must have the shape \(H, W\), not \(48, 64, 3\)"),
        (FRAMES[0, ..., 0] / 255, "must be boolean or integer, not float64"),
        ([[True]], "must be a NumPy array, not list"),
    ],
    ids=["channels", "float", "list"],
)
def test_masks_that_are_none_are_named(mask, message):
    with pytest.raises(UserError, match=f"sequence 'cup', frame 0: a mask {message}"):
        of(boxes=None, mask=lambda t: mask).mask(0)


def test_what_is_not_0_in_a_mask_is_object():
    mask = np.zeros((48, 64), np.uint8)
    mask[5:20, 7:30] = 255
    sequence = of(boxes=None, mask=lambda t: mask)
    np.testing.assert_array_equal(sequence.mask(0), mask > 0)
    (*_, bank) = build_bank([sequence], longest_side=32)
    assert bank.objects.max() == 1
    assert len(bank) == 4
