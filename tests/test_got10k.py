"""The tracker inside the GOT-10k toolkit."""

import inspect
import json

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image

from bmvtrack.data.sequence import read_image
from bmvtrack.data.synthetic import synthetic_sequences
from bmvtrack.errors import UserError
from bmvtrack.got10k import ToolkitTracker
from bmvtrack.inputs import corner_and_size
from bmvtrack.tracker import Tracker

LENGTH = 8
FROM_ONE = np.array([1, 1, 0, 0])
NAMES = ("GOT-10k_Val_000001", "GOT-10k_Val_000002")


@pytest.fixture(scope="module")
def sequences():
    return [sequence.in_memory() for sequence in synthetic_sequences(len(NAMES), seed=900)]


@pytest.fixture(scope="module")
def got10k_folder(tmp_path_factory, sequences):
    """Synthetic sequences in the layout of GOT-10k's validation set."""
    root = tmp_path_factory.mktemp("GOT-10k")
    for name, sequence in zip(NAMES, sequences, strict=True):
        folder = root / "val" / name
        folder.mkdir(parents=True)
        for t in range(LENGTH):
            bgr = sequence.frame(t)[..., ::-1]
            cv2.imwrite(str(folder / f"{t + 1:08}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
        boxes = corner_and_size(sequence.mask_bounds[:LENGTH]) + FROM_ONE
        np.savetxt(folder / "groundtruth.txt", boxes, fmt="%.4f", delimiter=",")
        for label, value in (("absence", 0), ("cover", 8), ("cut_by_image", 0)):
            np.savetxt(folder / f"{label}.label", np.full(LENGTH, value), fmt="%d")
        width, height = sequence.size
        (folder / "meta_info.ini").write_text(f"[METAINFO]\nresolution: ({width}, {height})\n")
    (root / "val" / "list.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture(scope="module")
def tracker():
    return ToolkitTracker()


def files_of(folder):
    return sorted(str(path) for path in folder.glob("*.jpg"))


def test_boxes_are_those_of_the_tracker_counted_from_one(got10k_folder, tracker):
    folder = got10k_folder / "val" / NAMES[0]
    first = np.loadtxt(folder / "groundtruth.txt", delimiter=",")[0]
    boxes, seconds = tracker.track(files_of(folder), first)
    assert boxes.shape == (LENGTH, 4)
    assert boxes[0] == pytest.approx(first)
    assert seconds.shape == (LENGTH,)
    assert (seconds > 0).all()
    plain = Tracker.load(colour="bgr")
    for i, path in enumerate(files_of(folder)):
        frame = cv2.imread(path)
        if i == 0:
            plain.init(frame, first - FROM_ONE)
        else:
            x, y, w, h = plain.update(frame).box
            assert boxes[i] == pytest.approx([x + 1, y + 1, w, h], abs=1e-3)


def test_grey_images_and_lists_of_numbers_will_do(tracker):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8))
    tracker.init(image, [20, 20, 30, 20])
    assert np.isfinite(tracker.update(image)).all()


def test_files_of_sixteen_bits_are_read_as_elsewhere(tracker, tmp_path, monkeypatch):
    ramp = np.linspace(0, 65535, 60 * 80).reshape(60, 80).astype(np.uint16)
    paths = [tmp_path / f"{t}.png" for t in range(2)]
    for path in paths:
        cv2.imwrite(str(path), ramp)
    seen = []
    monkeypatch.setattr(tracker, "init", lambda image, box: seen.append(np.asarray(image)))
    monkeypatch.setattr(tracker, "update", lambda image: np.zeros(4))
    tracker.track(paths, [20, 20, 30, 20])
    assert (seen[0] == read_image(paths[0])).all()
    assert 100 < seen[0].mean() < 150


def test_bad_input_is_named(tracker):
    with pytest.raises(UserError, match="outside the frame"):
        tracker.init(Image.new("RGB", (80, 60)), [200, 200, 20, 20])
    with pytest.raises(UserError, match="no weights 'nowhere'"):
        ToolkitTracker("nowhere")


def test_the_toolkit_evaluates_it(got10k_folder, sequences, tracker, tmp_path, monkeypatch):
    reason = "needs the GOT-10k toolkit: pip install 'bmvtrack[got10k]'"
    matplotlib.use("Agg")
    experiments = pytest.importorskip("got10k.experiments", reason=reason)
    monkeypatch.chdir(tmp_path)
    folders = {"result_dir": "results", "report_dir": "reports"}
    experiment = experiments.ExperimentGOT10k(str(got10k_folder), subset="val", **folders)
    experiment.run(tracker)
    performance = experiment.report([tracker.name])["bmvtrack"]["overall"]
    ious = []
    for name, sequence in zip(NAMES, sequences, strict=True):
        folder = tmp_path / "results" / "GOT-10k" / "bmvtrack" / name
        assert not (folder / f"{name}_002.txt").exists()  # deterministic: no repetitions
        boxes = np.loadtxt(folder / f"{name}_001.txt", delimiter=",") - FROM_ONE
        truth = corner_and_size(sequence.mask_bounds[:LENGTH])
        ious += [overlap(a, b, sequence.size) for a, b in zip(boxes[1:], truth[1:], strict=True)]
    assert performance["ao"] == pytest.approx(np.mean(ious), abs=2e-3)
    assert performance["speed_fps"] > 0
    report = tmp_path / "reports" / "GOT-10k" / "bmvtrack" / "performance.json"
    assert json.loads(report.read_text())["bmvtrack"]["overall"]["ao"] == performance["ao"]


def test_it_has_what_the_toolkit_s_own_base_class_has(tracker):
    trackers = pytest.importorskip("got10k.trackers", reason="needs bmvtrack[got10k]")
    base = trackers.Tracker(name="any")
    assert set(vars(base)) <= set(dir(tracker))
    for name in ("init", "update", "track"):
        expected = list(inspect.signature(getattr(base, name)).parameters)
        assert list(inspect.signature(getattr(tracker, name)).parameters) == expected


def overlap(a, b, size):
    """IoU of two boxes x, y, w, h inside the frame, by hand."""
    a, b = (np.clip([*box[:2], *(box[:2] + box[2:])], 0, [*size, *size]) for box in (a, b))
    w, h = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = max(w, 0) * max(h, 0)
    return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)
