"""Trackers: static, oracle, OpenCV's."""

import cv2
import numpy as np
import pytest

from bmvtrack import geometry
from bmvtrack.data.davis import load_davis16
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.tracking import opencv
from bmvtrack.tracking.opencv import PEERS, opencv_tracker
from bmvtrack.tracking.protocols import one_pass
from bmvtrack.tracking.trackers import OracleTracker, StaticTracker, static_tracker

FRAME = np.zeros((120, 160, 3), dtype=np.uint8)


def box_sequence(boxes: list[list[float]]) -> VideoSequence:
    given = np.array(boxes, dtype=float)
    return VideoSequence("boxes", len(given), lambda t: FRAME, given_boxes=given)


def square_sequence(length: int = 12) -> VideoSequence:
    """A textured square of 30 pixels that moves right by two pixels a frame, over noise."""
    generator = np.random.default_rng(0)
    background = generator.integers(0, 60, (120, 160, 3), dtype=np.uint8)
    texture = cv2.resize(generator.integers(90, 255, (6, 6, 3), dtype=np.uint8), (30, 30))

    def frame(t: int) -> np.ndarray:
        image = background.copy()
        image[40:70, 30 + 2 * t : 60 + 2 * t] = texture
        return image

    def mask(t: int) -> np.ndarray:
        result = np.zeros((120, 160), dtype=bool)
        result[40:70, 30 + 2 * t : 60 + 2 * t] = True
        return result

    return VideoSequence("square", length, frame, mask)


def test_static_never_moves_and_keeps_its_own_box():
    tracker, box = StaticTracker(), np.array([50.0, 40, 20, 10, 0.3])
    tracker.init(FRAME, box)
    box[0] = 0
    first = tracker.update(FRAME)
    first[1] = 0
    assert tracker.update(FRAME).tolist() == [50, 40, 20, 10, 0.3]
    assert tracker.mask is None
    assert tracker.axis_aligned(tracker.update(FRAME)) == pytest.approx(
        geometry.bounds(np.array([50.0, 40, 20, 10, 0.3]))
    )


def test_oracle_follows_the_truth_and_rests_while_there_is_none():
    gone = [np.nan] * 5
    true = [
        [50, 40, 20, 10, 0.3],
        [55, 42, 22, 9, 0.6],
        gone,
        gone,
        [80, 30, 30, 12, 0.1],
        gone,
        [70, 30, 10, 1, -0.3],
    ]
    run = one_pass(OracleTracker, box_sequence(true))
    expected = [true[0], true[1], true[1], true[1], true[4], true[4], true[6]]
    assert run.boxes == pytest.approx(np.array(expected), rel=1e-9)
    assert run.scores["rotated"].ao == pytest.approx(1, abs=1e-6)
    assert run.scores["axis_aligned"].ao == pytest.approx(1, abs=1e-6)


def test_oracle_starts_where_it_is_told_to():
    true = [[50.0 + 3 * t, 40, 20, 10, 0.1 * t] for t in range(8)]
    run = one_pass(OracleTracker, box_sequence(true), start=5)
    assert run.boxes == pytest.approx(np.array(true[5:]))


def test_oracle_moves_its_own_box():
    true = [[50.0 + 3 * t, 40, 20, 10, 0] for t in range(4)]
    first = np.array([52.0, 40, 20, 10, 0])
    run = one_pass(OracleTracker, box_sequence(true), box=first)
    assert run.boxes == pytest.approx(np.array(true) + np.array([2, 0, 0, 0, 0]))


def test_oracle_is_perfect_on_davis(shared_data):
    sequences = load_davis16(shared_data / "davis16-dev")
    overlaps = []
    for sequence in sequences:
        boxes_only = box_sequence(sequence.boxes.tolist())
        boxes_only.size = sequence.size
        overlaps.append(one_pass(OracleTracker, boxes_only).scores["rotated"].ao)
    assert min(overlaps) >= 0.999


@pytest.mark.parametrize("name", PEERS)
def test_opencv_follows_a_textured_square(name):
    try:
        factory = opencv_tracker(name)
    except UserError as error:
        pytest.skip(str(error))
    run = one_pass(factory, square_sequence())
    assert run.scores["axis_aligned"].ao > 0.8
    assert (run.boxes[:, 4] == 0).all()
    # It was given the bounds of the mask, and returns whole pixels.
    assert run.limits[0].tolist() == [29.5, 39.5, 59.5, 69.5]


def test_a_missing_peer_says_what_to_install(monkeypatch):
    monkeypatch.delattr(cv2, "TrackerCSRT_create", raising=False)
    monkeypatch.delattr(cv2, "legacy", raising=False)
    with pytest.raises(UserError, match=r"pip install 'bmvtrack\[peers\]'"):
        opencv_tracker("csrt")


class FakeTracker:
    """Stands for one of OpenCV's: finds, loses, fails, finds."""

    def __init__(self) -> None:
        self.answers = [(True, (10, 20, 30, 40)), (False, (0, 0, 0, 0)), None, (True, (1, 2, 3, 4))]

    def init(self, frame, rectangle):
        self.frame, self.rectangle = frame, rectangle

    def update(self, frame):
        answer = self.answers.pop(0)
        if answer is None:
            raise cv2.error("window outside the frame")
        return answer


def test_a_lost_box_rests_where_it_was():
    tracker = opencv.OpenCVTracker(FakeTracker)
    tracker.init(FRAME, np.array([50.0, 40, 20, 10, 0]))
    boxes = np.array([tracker.update(FRAME) for _ in range(4)])
    assert geometry.bounds(boxes[0]).tolist() == [9.5, 19.5, 39.5, 59.5]
    assert (boxes[1:3] == boxes[0]).all()
    assert geometry.bounds(boxes[3]).tolist() == [0.5, 1.5, 3.5, 5.5]


@pytest.mark.parametrize("box", [[50, 50, 1, 1, 0], [80, 60, 400, 300, 0], [80, 60, 158, 118, 0]])
@pytest.mark.parametrize("name", PEERS)
def test_opencv_outlives_boxes_that_it_cannot_start_from(name, box):
    """MIL never comes back from 4×4 pixels, and has nothing to learn from where the box is the frame."""
    try:
        tracker = opencv_tracker(name)(square_sequence(), 0)
    except UserError as error:
        pytest.skip(str(error))
    noise = np.random.default_rng(0).integers(256, size=FRAME.shape, dtype=np.uint8)
    tracker.init(noise, np.array(box, dtype=float))
    assert np.isfinite(tracker.update(noise)).all()


@pytest.mark.parametrize(
    ("box", "rectangle"),
    [
        ([49.5, 39.5, 20, 10, 0], (40, 35, 20, 10)),
        ([49.5, 39.5, 20, 10, np.pi / 2], (45, 30, 10, 20)),
        ([-0.5, -0.5, 20, 10, 0], (0, 0, 10, 5)),  # clipped
        ([159, 119, 1, 1, 0], (155, 115, 5, 5)),  # too small
        ([-500, 900, 5, 5, 1], (0, 115, 5, 5)),  # outside
    ],
)
def test_opencv_gets_whole_pixels_within_the_frame(box, rectangle):
    tracker = opencv.OpenCVTracker(FakeTracker)
    frame = FRAME.copy()
    frame[0, 0] = [1, 2, 3]
    tracker.init(frame, np.array(box, dtype=float))
    assert tracker._tracker.rectangle == rectangle
    assert tracker._tracker.frame[0, 0].tolist() == [3, 2, 1]  # BGR


def test_static_factory_makes_a_new_tracker_each_time():
    sequence = square_sequence()
    assert static_tracker(sequence, 0) is not static_tracker(sequence, 0)
