"""A video of one's own: sources, what is written, Ctrl-C, damage, and the page."""

import base64
import csv
import json
import re
import shutil
import signal
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bmvtrack import visualization
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.geometry import from_mask
from bmvtrack.iou import rotated_iou
from bmvtrack.perception import Perception
from bmvtrack.tracker import Tracker
from bmvtrack.video import overlay, selection
from bmvtrack.video.options import TrackOptions
from bmvtrack.video.page import page_data, report_page
from bmvtrack.video.session import track_video
from bmvtrack.video.sources import CapturedVideo, FrameFolder, open_source
from bmvtrack.video.tracks import TrackedVideo

LENGTH = 10
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def sequence() -> VideoSequence:
    return synthetic_sequence(5).in_memory()


@pytest.fixture(scope="module")
def weights(perception: Perception, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    perception.network.save_weights(folder, half=False)
    return str(folder)


@pytest.fixture(scope="module")
def clip(sequence: VideoSequence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sequence as an MP4, and as ``frames`` and ``masks`` in folders beside it."""
    folder = tmp_path_factory.mktemp("videos")
    frames = [sequence.frame(t) for t in range(LENGTH)]
    visualization.write_video(folder / "clip.mp4", frames, 20)
    for t, frame in enumerate(frames):
        write_image(folder / "frames" / f"{t}.png", frame[..., ::-1])
        write_image(folder / "masks" / f"{t}.png", sequence.mask(t).astype(np.uint8) * 255)
    return folder / "clip.mp4"


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), image)


def read_video(path: Path) -> list[np.ndarray]:
    video, frames = cv2.VideoCapture(str(path)), []
    while (answer := video.read())[0]:
        frames.append(answer[1])
    return frames


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def text_of(box: np.ndarray) -> str:
    left, top, right, bottom = np.round(box)
    return f"{left:.0f},{top:.0f},{right - left:.0f},{bottom - top:.0f}"


def numbers(row: dict[str, str], *names: str) -> list[float]:
    return [float(row[name]) for name in names]


ROTATED = ("centre_x", "centre_y", "width", "height", "angle")


def test_a_file_becomes_a_video_and_its_numbers(
    clip: Path, weights: str, sequence: VideoSequence, tmp_path: Path
) -> None:
    track_video(TrackOptions(str(clip), ("100,60,70,50",), weights=weights, out=tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"clip-tracked.mp4", "clip-tracked.csv", "clip-tracked.json"}
    frames = read_video(tmp_path / "clip-tracked.mp4")
    width, height = sequence.size
    assert [frame.shape for frame in frames] == [(height, width, 3)] * LENGTH
    written = cv2.VideoCapture(str(tmp_path / "clip-tracked.mp4"))
    assert written.get(cv2.CAP_PROP_FPS) == pytest.approx(20)
    codec = int(written.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
    assert codec in (b"avc1", b"h264")
    table = rows(tmp_path / "clip-tracked.csv")
    assert [int(row["frame"]) for row in table] == list(range(LENGTH))
    assert numbers(table[0], "x", "y", "w", "h") == [100, 60, 70, 50]
    assert [row["score"] == "" for row in table] == [True] + [False] * (LENGTH - 1)
    assert float(table[-1]["seconds"]) == pytest.approx((LENGTH - 1) / 20)


def test_a_folder_is_tracked_as_the_tracker_does(
    clip: Path, weights: str, sequence: VideoSequence, tmp_path: Path
) -> None:
    folder = str(clip.parent / "frames")
    video = track_video(TrackOptions(folder, ("100,60,70,50",), weights=weights, out=tmp_path))
    tracker = Tracker.load(weights)
    tracker.init(sequence.frame(0), (100, 60, 70, 50))
    results = [tracker.update(sequence.frame(t)) for t in range(1, LENGTH)]
    table = rows(tmp_path / "frames-tracked.csv")[1:]
    written = json.loads((tmp_path / "frames-tracked.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(video.to_dict()))
    positions = written["objects"][0]["positions"][1:]
    for result, row, position in zip(results, table, positions, strict=True):
        assert numbers(row, *ROTATED) == pytest.approx(result.rbbox, abs=1e-4)
        assert numbers(row, "x", "y", "w", "h") == pytest.approx(result.box, abs=1e-2)
        assert position["rbbox"] == result.rbbox.tolist()
        assert position["score"] == result.score
        assert position["mean"] == result.mean.tolist()
        assert position["covariance"] == result.covariance.tolist()


def test_truth_gives_the_first_box_and_scores_the_rest(
    clip: Path, weights: str, sequence: VideoSequence, tmp_path: Path
) -> None:
    folder, masks = str(clip.parent / "frames"), clip.parent / "masks"
    video = track_video(TrackOptions(folder, truth=masks, weights=weights, out=tmp_path))
    table = rows(tmp_path / "frames-tracked.csv")
    assert numbers(table[0], *ROTATED) == pytest.approx(from_mask(sequence.mask(0)), abs=1e-4)
    predicted = np.array([numbers(row, *ROTATED) for row in table[1:]])
    expected = rotated_iou(predicted, sequence.boxes[1:LENGTH])
    ious = np.array([float(row["iou_rotated"]) for row in table[1:]])
    assert ious == pytest.approx(expected, abs=1e-3)
    assert video.mean_iou().rotated == pytest.approx(ious.mean(), abs=1e-4)


def test_several_boxes_are_several_objects(clip: Path, weights: str, tmp_path: Path) -> None:
    boxes = ("100,60,70,50", "20,20,40,40", "150,90,30,60")
    alone = track_video(TrackOptions(str(clip), boxes[1:2], weights=weights, out=tmp_path / "one"))
    video = track_video(TrackOptions(str(clip), boxes, weights=weights, out=tmp_path / "three"))
    assert list(video.objects) == [1, 2, 3]
    table = rows(tmp_path / "three" / "clip-tracked.csv")
    assert [int(row["object"]) for row in table] == [1, 2, 3] * LENGTH
    for position, single in zip(video.objects[2], alone.objects[1], strict=True):
        assert position.rbbox == pytest.approx(single.rbbox, rel=1e-3, abs=0.05)


def test_damaged_frames_of_a_folder_are_skipped_and_counted(
    clip: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(clip.parent / "frames", tmp_path / "damaged")
    (folder / "3.png").write_bytes(b"no image")
    write_image(folder / "6.png", np.zeros((20, 30, 3), dtype=np.uint8))
    (folder / "notes.txt").write_text("no frame")
    options = TrackOptions(str(folder), ("100,60,70,50",), weights=weights, out=tmp_path / "out")
    video = track_video(options)
    assert video.skipped == [3, 6]
    assert video.frames == [0, 1, 2, 4, 5, 7, 8, 9]
    assert len(read_video(tmp_path / "out" / "damaged-tracked.mp4")) == 8
    assert "2 damaged frames skipped" in capsys.readouterr().out


def test_damaged_frames_of_a_file_are_skipped_and_counted(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    frames = (np.roll(cv2.resize(noise, (160, 120)), 3 * t, axis=1) for t in range(120))
    visualization.write_video(tmp_path / "clip.mp4", frames, 25)
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 6000] = bytes(6000)
    (tmp_path / "clip.mp4").write_bytes(data)
    source = CapturedVideo(tmp_path / "clip.mp4")
    read = [number for number, _ in source]
    assert source.skipped
    assert sorted(read + source.skipped) == list(range(120))


def test_images_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for t in (10, 9, 100, 1):
        write_image(tmp_path / f"shot{t}.png", np.full((8, 8, 3), t, dtype=np.uint8))
    source = FrameFolder(tmp_path, fps=12)
    assert [int(frame[0, 0, 0]) for _, frame in source] == [1, 9, 10, 100]
    assert (source.length, source.fps, source.name) == (4, 12, tmp_path.name)


def test_a_file_s_frames_are_rgb(tmp_path: Path) -> None:
    red = np.full((32, 32, 3), (200, 30, 10), dtype=np.uint8)
    visualization.write_video(tmp_path / "red.mp4", [red] * 3, 10)
    source = open_source(str(tmp_path / "red.mp4"))
    assert (source.length, source.fps) == (3, 10)
    (_, frame), *_ = source
    assert frame.mean(axis=(0, 1)) == pytest.approx([200, 30, 10], abs=6)


def interrupting(monkeypatch: pytest.MonkeyPatch, calls: tuple[int, ...]) -> None:
    """Ctrl-C while the tracker is at work for the n-th time."""
    update, count = Tracker.update_all, 0

    def update_all(tracker: Tracker, frame: Any) -> Any:
        nonlocal count
        count += 1
        for _ in range(calls.count(count)):
            signal.raise_signal(signal.SIGINT)
        return update(tracker, frame)

    monkeypatch.setattr(Tracker, "update_all", update_all)


def test_ctrl_c_leaves_whole_files(
    clip: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, (3,))
    options = TrackOptions(str(clip), ("100,60,70,50",), weights=weights, out=tmp_path, report=True)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        track_video(options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(read_video(tmp_path / "clip-tracked.mp4")) == 4
    assert len(rows(tmp_path / "clip-tracked.csv")) == 4
    assert len(embedded(tmp_path / "clip-tracked.html")["frames"]) == 4


def test_a_second_ctrl_c_leaves_nothing(
    clip: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, (3, 3))
    with pytest.raises(KeyboardInterrupt):
        track_video(TrackOptions(str(clip), ("9,9,70,50",), weights=weights, out=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": "nowhere.mp4"}, "no video nowhere.mp4"),
        ({"box": ()}, "no object: give its --box"),
        ({"box": ("1,2,3",)}, "--box 1,2,3: four numbers"),
        ({"box": ("1,2,3,x",)}, "four numbers"),
        ({"box": ("1,2,nan,4",)}, "must be finite"),
        ({"box": ("1000,2,30,40",)}, "outside the frame"),
        ({"select": True}, "give one of them"),
        ({"max_frames": 1}, "--max-frames must be at least 2"),
        ({"fps": 0.0}, "--fps must be above 0"),
        ({"weights": "nowhere"}, "no weights 'nowhere'"),
        ({"truth": Path("nowhere")}, "no folder nowhere"),
        ({"box": ("1,2,30,40",) * 2, "truth": Path()}, "--truth is of one object"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    clip: Path, weights: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values = {"video": str(clip), "box": ("9,9,70,50",), "weights": weights, **changes}
    with pytest.raises(UserError, match=message):
        track_video(TrackOptions(**values, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


class Camera:
    """Stands in for OpenCV's capture: a camera that says 25 frames a second, and gives 10."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        self._frames, self._count = frames, 0

    def isOpened(self) -> bool:
        return True

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 25.0}.get(what, -1.0)

    def read(self) -> tuple[bool, np.ndarray]:
        time.sleep(0.1)
        self._count += 1
        return True, self._frames[self._count % len(self._frames)]

    def release(self) -> None:
        self._frames = []


@pytest.fixture
def camera(sequence: VideoSequence, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [sequence.frame(t)[..., ::-1] for t in range(LENGTH)]
    capture = cv2.VideoCapture
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda what: Camera(frames) if what == 0 else capture(what)
    )


@pytest.mark.usefixtures("camera")
def test_a_camera_s_video_lasts_as_long_as_it_was_watched(weights: str, tmp_path: Path) -> None:
    options = TrackOptions(
        "0", ("100,60,70,50",), weights=weights, out=tmp_path, max_frames=12, report=True
    )
    video = track_video(options)
    assert len(video.frames) == 12
    assert 5 < video.fps <= 10
    written = cv2.VideoCapture(str(tmp_path / "camera-0-tracked.mp4"))
    assert written.get(cv2.CAP_PROP_FPS) == pytest.approx(video.fps, rel=0.02)
    assert len(read_video(tmp_path / "camera-0-tracked.mp4")) == 12
    table = rows(tmp_path / "camera-0-tracked.csv")
    assert float(table[-1]["seconds"]) == pytest.approx(11 / video.fps, abs=1e-3)
    data = embedded(tmp_path / "camera-0-tracked.html")
    assert data["fps"] == pytest.approx(video.fps, rel=1e-3)
    (tmp_path / "patches.mp4").write_bytes(base64.b64decode(data["objects"][0]["patches"]))
    patches = cv2.VideoCapture(str(tmp_path / "patches.mp4"))
    assert patches.get(cv2.CAP_PROP_FPS) == pytest.approx(video.fps, rel=0.02)


@pytest.mark.usefixtures("camera")
def test_ctrl_c_is_how_a_camera_ends(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, (3,))
    box = ("100,60,70,50",)
    video = track_video(TrackOptions("0", box, weights=weights, out=tmp_path, fps=25))
    assert len(video.frames) == 4
    assert video.fps == 25
    written = cv2.VideoCapture(str(tmp_path / "camera-0-tracked.mp4"))
    assert written.get(cv2.CAP_PROP_FPS) == pytest.approx(25)


def test_what_is_no_video_is_refused(clip: Path, weights: str, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"cannot read .*notes\.mp4 as a video"):
        open_source(str(tmp_path / "notes.mp4"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="cannot open camera 98765"):
        open_source("98765")
    (tmp_path / "empty" / "1.jpg").write_bytes(b"")
    values = {"box": ("9,9,70,50",), "weights": weights, "out": tmp_path / "out"}
    with pytest.raises(UserError, match=r"no frame of .*empty can be decoded"):
        track_video(TrackOptions(str(tmp_path / "empty"), **values))
    shutil.copy(clip.parent / "frames" / "0.png", tmp_path / "empty")
    with pytest.raises(UserError, match="only one frame of empty can be decoded"):
        track_video(TrackOptions(str(tmp_path / "empty"), **values))
    assert list((tmp_path / "out").iterdir()) == []


def test_truth_must_fit_the_video(clip: Path, weights: str, tmp_path: Path) -> None:
    masks = shutil.copytree(clip.parent / "masks", tmp_path / "masks")
    options = TrackOptions(str(clip), truth=masks, weights=weights, out=tmp_path / "out")
    size = cv2.imread(str(masks / "0.png")).shape[:2]
    write_image(masks / "4.png", np.zeros((20, 30), dtype=np.uint8))
    with pytest.raises(UserError, match=r"4\.png is 30×20 but the frame is"):
        track_video(options)
    write_image(masks / "0.png", np.zeros(size, dtype=np.uint8))
    with pytest.raises(UserError, match="the mask is empty"):
        track_video(options)
    (masks / "9.png").unlink()
    with pytest.raises(UserError, match=r"9 \.png masks, but clip has 10 frames"):
        track_video(options)


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


def shows(image: np.ndarray, colour: visualization.Colour) -> bool:
    """Whether a pixel has a colour, but for the smoothing of lines."""
    return bool(np.abs(image.astype(int) - colour).sum(axis=2).min() < 40)


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


class Page(HTMLParser):
    """What a page links to, the text of its scripts by id, and the attributes of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.texts: dict[str, str] = {}
        self.attributes: dict[str, dict[str, str | None]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("src", "href", "action") if name in values]
        self._open.append(values.get("id") or tag)
        self.attributes[self._open[-1]] = values

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()


def embedded(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Page(path.read_text(encoding="utf-8")).texts["data"])
    return data


@pytest.fixture(scope="module")
def reported(
    clip: Path, weights: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrackedVideo, Path]:
    """A video with truth and its page."""
    out = tmp_path_factory.mktemp("page")
    folder, masks = str(clip.parent / "frames"), clip.parent / "masks"
    options = TrackOptions(folder, truth=masks, weights=weights, out=out, report=True)
    return track_video(options), out / "frames-tracked.html"


def test_the_page_holds_everything_and_loads_nothing(
    reported: tuple[TrackedVideo, Path], tmp_path: Path
) -> None:
    video, path = reported
    text, data = path.read_text(encoding="utf-8"), embedded(path)
    assert Page(text).links == ["data:,"]
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}
    clip, patches = data.pop("clip"), data["objects"][0].pop("patches")
    assert data == page_data(video)
    assert base64.b64decode(clip) == path.with_suffix(".mp4").read_bytes()
    (tmp_path / "patches.mp4").write_bytes(base64.b64decode(patches))
    shapes = [frame.shape for frame in read_video(tmp_path / "patches.mp4")]
    assert shapes == [(256, 512, 3)] * LENGTH
    shown, positions = data["objects"][0], video.objects[1]
    assert shown["score"][0] is None
    assert shown["score"][1:] == pytest.approx([p.score for p in positions[1:]], rel=1e-4)
    assert shown["iou"][1:] == pytest.approx([p.iou.rotated for p in positions[1:]], rel=1e-4)
    deviations = [[np.sqrt(p.covariance[k][k]) for p in positions[1:]] for k in range(5)]
    assert [row[1:] for row in shown["sigma"]] == [pytest.approx(d, rel=1e-4) for d in deviations]


def test_no_name_breaks_the_page(reported: tuple[TrackedVideo, Path]) -> None:
    video, path = reported
    name = '</script><b title="x">&amp;'
    renamed = TrackedVideo(name, video.size, video.fps, name, video.objects)
    clip = path.with_suffix(".mp4")
    page = Page(report_page(renamed, clip, [clip]))
    assert json.loads(page.texts["data"])["name"] == name
    assert page.texts["h1"] == name
    assert "b" not in page.attributes


def test_the_slider_is_a_labelled_range(reported: tuple[TrackedVideo, Path]) -> None:
    page = Page(reported[1].read_text(encoding="utf-8"))
    assert page.attributes["frame"]["type"] == "range"
    assert 'for="frame"' in reported[1].read_text(encoding="utf-8")


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_the_slider_moves_the_numbers_in_a_browser(
    reported: tuple[TrackedVideo, Path], tmp_path: Path
) -> None:
    video, path = reported
    text = path.read_text(encoding="utf-8")
    listen = (
        "<script>onerror = message => { document.documentElement.dataset.error = message }</script>"
    )
    act = "<script>slider.value = 5; slider.dispatchEvent(new Event('input'))</script>"
    text = text.replace("<body>", f"<body>{listen}").replace("</body>", f"{act}</body>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", profile]
    done = subprocess.run(
        [CHROMIUM, *flags, (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    page = Page(done.stdout)
    assert "data-error" not in page.attributes["html"]
    score = video.objects[1][5].score
    assert page.texts["where"] == f"5, {5 / video.fps:.2f} s, score {score:.2f}"
    assert page.attributes["frame"]["aria-valuetext"] == f"frame {page.texts['where']}"
    assert done.stdout.count("<svg ") == 6
    assert "NaN" not in done.stdout.split('id="data"')[0]
