"""The page about a tracked video: all in one file, for any name, for screen readers, in a browser."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from videos import LENGTH, Page, embedded, read_video, write_clip

from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.perception import Perception
from bmvtrack.video.options import TrackOptions
from bmvtrack.video.page import page_data, report_page
from bmvtrack.video.session import track_video
from bmvtrack.video.tracks import TrackedVideo

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def reported(
    perception: Perception, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrackedVideo, Path]:
    """A video with truth and its page."""
    weights, videos, out = map(tmp_path_factory.mktemp, ("weights", "videos", "page"))
    perception.network.save_weights(weights, half=False)
    write_clip(videos, synthetic_sequence(5))
    folder, masks = str(videos / "frames"), videos / "masks"
    options = TrackOptions(folder, truth=masks, weights=str(weights), out=out, report=True)
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
    name = '</script><b title="x">&amp;@DATA@'
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
