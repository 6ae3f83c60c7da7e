"""A video of one's own: sources, what is written, Ctrl-C and damage."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console
from videos import LENGTH, embedded, interrupting, read_video, rows, write_clip, write_image

from bmvtrack import visualization
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.geometry import from_mask
from bmvtrack.iou import rotated_iou
from bmvtrack.perception import Perception
from bmvtrack.tracker import Tracker
from bmvtrack.video.options import TrackOptions
from bmvtrack.video.session import track_video
from bmvtrack.video.sources import CapturedVideo, FrameFolder, open_source


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
    return write_clip(tmp_path_factory.mktemp("videos"), sequence)


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
    assert [row["mahalanobis"] for row in table[:1]] == [""]
    distances = [p.mahalanobis for p in video.objects[1][1:]]
    written = [float(row["mahalanobis"]) for row in table[1:]]
    assert written == pytest.approx(distances, abs=1e-4)
    tracker = Tracker.load(weights)
    tracker.init(sequence.frame(0), sequence.boxes[0])
    first = tracker.update(sequence.frame(1)).mahalanobis(sequence.boxes[1])
    assert distances[0] == pytest.approx(first, rel=0.01)


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
    (folder / "7.png").unlink()
    (folder / "7.png").symlink_to(tmp_path / "gone.png")
    (folder / "notes.txt").write_text("no frame")
    (folder / "._4.png").write_bytes(b"what macOS leaves beside each file")
    options = TrackOptions(str(folder), ("100,60,70,50",), weights=weights, out=tmp_path / "out")
    video = track_video(options)
    assert video.skipped == [3, 6, 7]
    assert video.frames == [0, 1, 2, 4, 5, 8, 9]
    assert len(read_video(tmp_path / "out" / "damaged-tracked.mp4")) == 7
    assert "3 frames skipped (damaged, or not the size of the first)" in capsys.readouterr().out


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


def test_no_page_of_another_track_stays_beside_a_new_one(
    clip: Path, weights: str, tmp_path: Path
) -> None:
    options = TrackOptions(
        str(clip), ("100,60,70,50",), weights=weights, out=tmp_path, max_frames=3
    )
    track_video(replace(options, report=True))
    assert (tmp_path / "clip-tracked.html").is_file()
    track_video(replace(options, box=("9,9,70,50",)))
    assert not (tmp_path / "clip-tracked.html").exists()


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
        ({"box": ("1,2,3",)}, "--box 1,2,3: give four numbers"),
        ({"box": ("1,2,3,x",)}, "four numbers"),
        ({"box": ("1,2,nan,4",)}, "must be finite"),
        ({"box": ("1000,2,30,40",)}, "outside the frame"),
        ({"select": True}, "give one of them"),
        ({"max_frames": 1}, "--max-frames must be at least 2"),
        ({"fps": 0.0}, "--fps must be above 0"),
        ({"weights": "nowhere"}, "no weights 'nowhere'"),
        ({"truth": Path("nowhere")}, "no folder nowhere"),
        ({"box": ("1,2,30,40",) * 2, "truth": Path()}, "--truth scores a single object"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    clip: Path, weights: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values = {"video": str(clip), "box": ("9,9,70,50",), "weights": weights, **changes}
    with pytest.raises(UserError, match=message):
        track_video(TrackOptions(**values, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_no_video_is_refused(clip: Path, weights: str, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"cannot read .*notes\.mp4 as a video"):
        open_source(str(tmp_path / "notes.mp4"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="cannot open camera 98"):
        open_source("98")
    for name in ("20261127", "99999999999999999999"):
        with pytest.raises(UserError, match=f"no video {name}: it is not a file"):
            open_source(name)
    (tmp_path / "empty" / "1.jpg").write_bytes(b"")
    values = {"box": ("9,9,70,50",), "weights": weights, "out": tmp_path / "out"}
    with pytest.raises(UserError, match=r"no frame of .*empty can be decoded"):
        track_video(TrackOptions(str(tmp_path / "empty"), **values))
    (tmp_path / "empty" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 1\.jpg and another image of that name \(1 such"):
        open_source(str(tmp_path / "empty"))
    (tmp_path / "empty" / "1.png").unlink()
    shutil.copy(clip.parent / "frames" / "0.png", tmp_path / "empty")
    with pytest.raises(UserError, match="only one frame of empty can be decoded"):
        track_video(TrackOptions(str(tmp_path / "empty"), **values))
    assert not (tmp_path / "out").exists()


def test_truth_must_fit_the_video(clip: Path, weights: str, tmp_path: Path) -> None:
    masks = shutil.copytree(clip.parent / "masks", tmp_path / "masks")
    options = TrackOptions(str(clip), truth=masks, weights=weights, out=tmp_path / "out")
    size = cv2.imread(str(masks / "0.png")).shape[:2]
    write_image(masks / "4.png", np.zeros((20, 30), dtype=np.uint8))
    with pytest.raises(UserError, match=r"4\.png is 30×20 but the frame is"):
        track_video(options)
    write_image(masks / "0.png", np.zeros(size, dtype=np.uint8))
    with pytest.raises(UserError, match=r"masks: the mask of the first frame is empty; give"):
        track_video(options)
    (masks / "9.png").unlink()  # how long a video file is, nobody knows before
    shutil.copy(clip.parent / "masks" / "0.png", masks)
    shutil.copy(clip.parent / "masks" / "4.png", masks)
    console = Console(record=True, width=200)
    (positions,) = track_video(options, console).objects.values()
    assert [p.frame for p in positions if p.iou is None] == [0, 9]
    assert "1 frame not scored: there are fewer true masks" in console.export_text()
    (masks / "3.png").rename(tmp_path / "3.png")
    with pytest.raises(
        UserError, match=r"after .*2\.png comes 4\.png; of a video file, there must"
    ):
        track_video(options)
    (tmp_path / "3.png").rename(masks / "3.png")
    frames = TrackOptions(
        str(clip.parent / "frames"), truth=masks, weights=weights, out=tmp_path / "out"
    )
    with pytest.raises(UserError, match=r"9 \.png masks, but frames has 10 frames"):
        track_video(frames)
    shutil.copy(clip.parent / "masks" / "9.png", masks / "10.png")
    with pytest.raises(UserError, match=r"10\.png would be the mask of 9\.png"):
        track_video(frames)
    for mask in masks.iterdir():
        mask.rename(mask.with_stem(f"{mask.stem}_obj1"))
    with pytest.raises(UserError, match=r"10_obj1\.png would be the mask of 9\.png"):
        track_video(frames)
    (masks / "10_obj1.png").rename(masks / "9_obj1.png")
    shutil.copy(clip.parent / "masks" / "0.png", masks / "0_obj1.png")
    shutil.copy(clip.parent / "masks" / "4.png", masks / "4_obj1.png")
    assert track_video(frames).mean_iou() is not None
