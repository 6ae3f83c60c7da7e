"""Boxes that people draw, and what is drawn over videos."""

from typing import Any

import cv2
import numpy as np
import pytest
from videos import shows

from bmvtrack import geometry, visualization
from bmvtrack.errors import UserError
from bmvtrack.perception import Perception
from bmvtrack.tracker import Tracker
from bmvtrack.video import overlay, selection


def test_no_display_is_said_and_windows_are_tried_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "_PROBE", "raise SystemExit(134)")
    with pytest.raises(UserError, match=r"no display.* give --box x,y,w,h"):
        selection.select_box(np.zeros((40, 60, 3), dtype=np.uint8))
    monkeypatch.setattr(selection, "_PROBE", "pass")
    assert selection.can_open_windows()


DOWN, MOVE, UP = cv2.EVENT_LBUTTONDOWN, cv2.EVENT_MOUSEMOVE, cv2.EVENT_LBUTTONUP


class Window:
    """Stands in for OpenCV's: a person who drags the mouse, and then presses a key.

    Args:
        monkeypatch: to stand in with.
        mouse: events with x and y.
        key: pressed after them; None: the window is closed.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, mouse: list[tuple[int, int, int]], key: str | None
    ) -> None:
        self.pictures: list[np.ndarray] = []
        self.destroyed = False
        self._mouse, self._key = iter(mouse), key
        self._call: Any = None
        self._open = True
        monkeypatch.setattr(selection, "can_open_windows", lambda: True)
        monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
        monkeypatch.setattr(cv2, "setMouseCallback", lambda _, call: setattr(self, "_call", call))
        monkeypatch.setattr(cv2, "imshow", lambda _, picture: self.pictures.append(picture))
        monkeypatch.setattr(cv2, "waitKey", self.wait)
        monkeypatch.setattr(cv2, "getWindowProperty", self.visible)
        monkeypatch.setattr(cv2, "destroyAllWindows", lambda: setattr(self, "destroyed", True))

    def wait(self, milliseconds: int) -> int:
        event = next(self._mouse, None)
        if event is not None:
            self._call(*event, 0, None)
            return -1
        if self._key is None:
            self._open = False
            return -1
        return ord(self._key)

    def visible(self, title: str, which: int) -> float:
        assert which == cv2.WND_PROP_VISIBLE
        if not self._open:
            raise cv2.error("NULL guiReceiver (please create a window)")  # as Qt has it
        return 1.0


DRAG = [(MOVE, 5, 5), (DOWN, 130, 70), (MOVE, 120, 60), (MOVE, 100, 50), (UP, 100, 50)]


@pytest.mark.parametrize("key", ["\r", "\n", " "])
def test_a_drawn_box_is_in_pixels_of_the_frame(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    small, large = (np.zeros((h, w, 3), dtype=np.uint8) for h, w in ((480, 640), (2160, 3840)))
    window = Window(monkeypatch, [*DRAG, (MOVE, 300, 300)], key)
    assert selection.select_box(small).tolist() == [100, 50, 30, 20]
    assert window.destroyed
    assert shows(window.pictures[-1][..., ::-1], visualization.PREDICTED_COLOUR)
    assert not shows(window.pictures[0][..., ::-1], visualization.PREDICTED_COLOUR)
    window = Window(monkeypatch, DRAG, key)
    assert selection.select_box(large).tolist() == [300, 150, 90, 60]
    assert window.pictures[0].shape == (720, 1280, 3)


def test_a_drawn_box_ends_at_the_frame_s_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    Window(monkeypatch, [(DOWN, 20, 10), (MOVE, 90, -30), (UP, 90, -30)], "\r")
    assert selection.select_box(np.zeros((40, 60, 3), dtype=np.uint8)).tolist() == [20, 0, 40, 10]


@pytest.mark.parametrize("key", ["c", "\x1b", None])
@pytest.mark.parametrize("mouse", [[], DRAG])
def test_a_closed_window_and_escape_cancel(
    monkeypatch: pytest.MonkeyPatch, mouse: list[tuple[int, int, int]], key: str | None
) -> None:
    window = Window(monkeypatch, mouse, key)
    with pytest.raises(UserError, match="no box was drawn"):
        selection.select_box(np.zeros((480, 640, 3), dtype=np.uint8))
    assert window.destroyed


def test_enter_waits_for_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(monkeypatch, [], "\r")
    keys = iter("\r\r\x1b")
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord(next(keys)))
    with pytest.raises(UserError, match="no box was drawn"):
        selection.select_box(np.zeros((480, 640, 3), dtype=np.uint8))
    assert len(window.pictures) == 3


def test_the_ellipse_is_two_standard_deviations_wide() -> None:
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    covariance = np.array([[900.0, 300.0], [300.0, 400.0]])
    visualization.draw_ellipse(image, np.array([150.0, 100.0]), covariance, (255, 140, 20))
    drawn_rows, columns = np.nonzero(image.max(axis=2) > 128)
    assert [columns.min(), columns.max()] == pytest.approx([150 - 60, 150 + 60], abs=2)
    assert [drawn_rows.min(), drawn_rows.max()] == pytest.approx([100 - 40, 100 + 40], abs=2)
    flat = np.zeros((2, 2))
    visualization.draw_ellipse(image, np.array([20.0, 20.0]), flat, (255, 140, 20))
    assert image[20, 20, 0] > 0


def test_labels_lie_beside_their_boxes_and_not_on_the_line_of_text() -> None:
    image = np.zeros((480, 640, 3), dtype=np.uint8)
    tilted = np.array([300.0, 240, 200, 60, 0.6])
    x, y = overlay.label_corner(tilted, image)
    corners = geometry.corners(tilted)
    assert (x, y) == pytest.approx(corners[corners[:, 1].argmin()])
    for outside in ([20.0, 5, 30, 20, 0], [700.0, 500, 30, 20, 0]):
        x, y = overlay.label_corner(np.array(outside), image)
        assert visualization.text_size(image) < y < 480 - visualization.text_size(image)
        assert 0 <= x < 640 - visualization.text_size(image)


def test_every_object_has_its_own_colour_from_the_first_frame_on(perception: Perception) -> None:
    frame = np.zeros((480, 640, 3), dtype=np.uint8)
    boxes = {7: np.array([180.0, 220, 120, 80, 0.3]), 9: np.array([400.0, 240, 100, 100, 0])}
    tracker = Tracker(perception)
    for object_id, box in boxes.items():
        tracker.init(frame, box, object_id)
    results = tracker.update_all(frame)
    true_box = np.array([300.0, 120, 80, 60, 0])
    given = overlay.draw_first(frame, boxes, "")
    found = overlay.draw_results(frame, results, true_box, "")
    assert not frame.any()
    for image in (given, found):
        assert shows(image, overlay.colour_of(0))
        assert shows(image, overlay.colour_of(1))
    assert [shows(image, visualization.TRUE_COLOUR) for image in (given, found)] == [False, True]
