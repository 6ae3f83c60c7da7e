"""Tracking what a camera sees, which comes in real time and without end."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from videos import LENGTH, embedded, interrupting, read_video, rows

from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.perception import Perception
from bmvtrack.video.options import TrackOptions
from bmvtrack.video.session import track_video


@pytest.fixture
def weights(perception: Perception, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    perception.network.save_weights(folder, half=False)
    return str(folder)


class Clock:
    """Stands in for the module ``time``, so that a test does not hang on how busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-3
        return self.now


class Camera:
    """Stands in for OpenCV's capture: a camera that says 25 frames a second, and gives 10."""

    def __init__(self, frames: list[np.ndarray], clock: Clock) -> None:
        self._frames, self._clock, self._count = frames, clock, 0

    def isOpened(self) -> bool:
        return True

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 25.0}.get(what, -1.0)

    def read(self) -> tuple[bool, np.ndarray]:
        self._clock.now += 0.1
        self._count += 1
        return True, self._frames[self._count % len(self._frames)]

    def release(self) -> None:
        self._frames = []


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = synthetic_sequence(5)
    frames = [sequence.frame(t)[..., ::-1] for t in range(LENGTH)]
    capture, clock = cv2.VideoCapture, Clock()
    monkeypatch.setattr("bmvtrack.video.session.time", clock)
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda what: Camera(frames, clock) if what == 0 else capture(what)
    )


@pytest.mark.usefixtures("camera")
def test_a_camera_s_video_lasts_as_long_as_it_was_watched(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = TrackOptions(
        "0", ("100,60,70,50",), weights=weights, out=Path("14:30"), max_frames=12, report=True
    )
    video = track_video(options)
    tmp_path = tmp_path / "14:30"
    assert len(video.frames) == 12
    assert 9 < video.fps <= 10
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
