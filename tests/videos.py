"""Videos for tests: written from sequences, read back, what their pictures and pages show."""

import csv
import json
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bmvtrack import visualization
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.tracker import Tracker

LENGTH = 10


def write_clip(folder: Path, sequence: VideoSequence) -> Path:
    """The sequence as an MP4, and as ``frames`` and ``masks`` in folders beside it."""
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


def shows(image: np.ndarray, colour: visualization.Colour) -> bool:
    """Whether a pixel has a colour, but for the smoothing of lines."""
    return bool(np.abs(image.astype(int) - colour).sum(axis=2).min() < 40)


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


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


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
