"""OTB and VOT on disk, and the evaluation of trackers on them."""

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.evaluation import EvaluationOptions, load_sequences, run_evaluation
from bmvtrack import geometry
from bmvtrack.data import sources
from bmvtrack.data.otb import load_otb
from bmvtrack.data.vot import load_vot, polygon_box
from bmvtrack.errors import UserError, run_script
from bmvtrack.tracking.protocols import check_sequence

SIZE = (48, 64)  # height, width
COVERED = (slice(20, 30), slice(11, 31))  # rows and columns of an object


def write_frames(folder, count, suffix="jpg", first=1):
    """Frames whose grey value is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for t in range(first, first + count):
        cv2.imwrite(str(folder / f"{t:08}.{suffix}"), np.full((*SIZE, 3), t % 256, np.uint8))


def write_otb(
    root, name="Ball", lines=("12,21,20,10",) * 3, file="groundtruth_rect.txt", count=None
):
    write_frames(root / name / "img", len(lines) if count is None else count)
    (root / name / file).write_text("\n".join(lines) + "\n")
    return root


def write_vot(root, name="ball", lines=("11,20,20,10",) * 3, frames="color"):
    write_frames(root / name / frames, len(lines))
    (root / name / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    return root


def true_box():
    mask = np.zeros(SIZE, dtype=bool)
    mask[COVERED] = True
    return geometry.upright(geometry.mask_bounds(mask))


@pytest.mark.parametrize("separator", [",", "\t", " ", "  ", ", ", ";"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_otb_boxes_cover_their_pixels_counted_from_one(tmp_path, separator, ending):
    write_otb(tmp_path)
    line = separator.join(("12", "21", "20", "10"))
    path = tmp_path / "Ball" / "groundtruth_rect.txt"
    path.write_bytes((ending.join([line] * 3) + ending * 2).encode())
    (sequence,) = load_otb(tmp_path)
    assert (sequence.name, len(sequence), sequence.size) == ("Ball", 3, (64, 48))
    assert sequence.boxes == pytest.approx(np.stack([true_box()] * 3))
    assert sequence.mask_bounds[0] == pytest.approx([10.5, 19.5, 30.5, 29.5])
    assert sequence.frame(2).mean() == pytest.approx(3, abs=1)
    check_sequence(sequence)


def test_otb_sequences_with_several_objects(tmp_path):
    write_otb(tmp_path, "Jogging", file="groundtruth_rect.1.txt")
    write_otb(tmp_path, "Jogging", ("30 21 20 10",) * 3, file="groundtruth_rect.2.txt")
    write_otb(tmp_path, "Human4", file="groundtruth_rect.2.txt")
    (tmp_path / "Human4" / "groundtruth_rect.1.txt").write_text("\n")
    (tmp_path / "results").mkdir()
    sequences = load_otb(tmp_path)
    assert [s.name for s in sequences] == ["Human4", "Jogging.1", "Jogging.2"]
    assert sequences[2].boxes[0, 0] - sequences[1].boxes[0, 0] == pytest.approx(18)
    assert [s.name for s in load_otb(tmp_path / "Jogging")] == ["Jogging.1", "Jogging.2"]


def test_otb_frames_that_are_not_annotated_are_left_out(tmp_path):
    write_otb(tmp_path, "Diving", ("12,21,20,10",) * 215, count=218)
    (sequence,) = load_otb(tmp_path)
    assert len(sequence) == 215
    assert sequence.frame(0).mean() == pytest.approx(1, abs=1)


@pytest.mark.parametrize("line", ["NaN,NaN,NaN,NaN", "0,0,0,0", "12 21 0 10"])
def test_otb_frames_without_object(tmp_path, line):
    write_otb(tmp_path, lines=("12,21,20,10", line, "12,21,20,10"))
    (sequence,) = load_otb(tmp_path)
    assert sequence.present.tolist() == [True, False, True]
    check_sequence(sequence)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("12,21,20,10", "12,21,20"), "box 2: it has 3 numbers"),
        (("12,21,20,10", "12,21,20,wide"), "line 2: '12,21,20,wide' must hold numbers only"),
    ],
)
def test_otb_lines_that_are_no_boxes_are_named(tmp_path, lines, message):
    write_otb(tmp_path, lines=lines)
    with pytest.raises(UserError, match=message) as error:
        load_otb(tmp_path)
    assert "groundtruth_rect.txt" in str(error.value)


def test_frames_and_lines_must_go_together(tmp_path):
    write_otb(tmp_path / "otb", count=5)
    with pytest.raises(UserError, match="'Ball' has 5 frames but 3 lines of ground truth"):
        load_otb(tmp_path / "otb")
    write_vot(tmp_path / "vot")
    (tmp_path / "vot" / "ball" / "color" / "00000002.jpg").unlink()
    with pytest.raises(UserError, match="'ball' has 2 frames but 3 lines"):
        load_vot(tmp_path / "vot")


@pytest.mark.parametrize("load", [load_otb, load_vot])
def test_folders_without_sequences_are_named(tmp_path, load):
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"is not an? (OTB|VOT) folder"):
        load(tmp_path)


@pytest.mark.parametrize("frames", ["color", "."])
def test_vot_boxes_cover_their_pixels_counted_from_zero(tmp_path, frames):
    write_vot(tmp_path, frames=frames)
    (sequence,) = load_vot(tmp_path)
    assert (sequence.name, len(sequence)) == ("ball", 3)
    assert sequence.boxes == pytest.approx(np.stack([true_box()] * 3))
    check_sequence(sequence)


@given(
    st.floats(20, 600), st.floats(20, 400), st.floats(4, 200), st.floats(4, 200), st.floats(-1.5, 3)
)
@settings(max_examples=50)
def test_vot_polygons_that_are_rectangles_keep_their_corners(x, y, w, h, angle):
    corners = geometry.corners(np.array([x, y, w, h, angle]))
    found = geometry.corners(polygon_box(corners.reshape(8)))
    distances = np.linalg.norm(corners[:, None] - found, axis=-1)
    assert distances.min(axis=1).max() < 0.01  # cv2.minAreaRect counts in float32


def test_vot_polygons_that_are_no_rectangles_lie_in_their_box(tmp_path):
    polygon = np.array([[10.0, 10], [40, 14], [38, 30], [12, 24]])
    write_vot(tmp_path, lines=(",".join(map(str, polygon.ravel())),) * 2)
    (sequence,) = load_vot(tmp_path)
    corners = geometry.corners(sequence.boxes[0]).astype(np.float32)
    assert all(cv2.pointPolygonTest(corners, tuple(p), True) > -1e-3 for p in polygon)
    expected = cv2.minAreaRect(polygon.astype(np.float32))[1]
    assert sorted(sequence.boxes[0, 2:4]) == pytest.approx(sorted(expected), abs=1e-3)


@pytest.mark.parametrize(
    "line", ["nan,nan,nan,nan", "NaN," * 7 + "NaN", "0", "5,5,5,5,5,5,5,5", "0,0,0,0"]
)
def test_vot_frames_without_object(tmp_path, line):
    write_vot(tmp_path, lines=("11,20,20,10", line, "10,10,40,10,40,30,10,30"))
    (sequence,) = load_vot(tmp_path)
    assert sequence.present.tolist() == [True, False, True]
    assert sequence.mask_bounds[2] == pytest.approx([10, 10, 40, 30])
    check_sequence(sequence)


def test_vot_masks_are_refused(tmp_path):
    write_vot(tmp_path, lines=("m10,12,4,4,0,16",) * 2)
    with pytest.raises(UserError, match="holds masks"):
        load_vot(tmp_path)


def test_a_vot_sequence_of_nothing_is_named(tmp_path):
    write_vot(tmp_path, lines=())
    with pytest.raises(UserError, match="'ball'"):
        load_vot(tmp_path)


def test_a_list_chooses_vot_sequences(tmp_path):
    for name in ("bag", "ball", "unlisted"):
        write_vot(tmp_path, name)
    (tmp_path / "list.txt").write_text("ball\nbag\n")
    assert [s.name for s in load_vot(tmp_path)] == ["bag", "ball"]
    (tmp_path / "list.txt").write_text("ball\nbook\n")
    with pytest.raises(UserError, match=r"lacks sequences that .*list\.txt names: book"):
        load_vot(tmp_path)


def test_sources_know_both(tmp_path):
    write_otb(tmp_path / "otb")
    write_vot(tmp_path / "vot")
    assert [s.name for s in sources.load_sequences(f"otb:{tmp_path / 'otb'}")] == ["Ball"]
    assert [s.name for s in sources.load_sequences(f"vot:{tmp_path / 'vot'}")] == ["ball"]
    with pytest.raises(UserError, match="needs a folder: otb:FOLDER"):
        sources.load_sequences("otb")


@pytest.mark.parametrize("kind", ["otb", "vot"])
def test_the_evaluation_runs_on_both(tmp_path, capsys, kind):
    steps = [(11 + 2 * t, 20, 20, 10) for t in range(4)]
    if kind == "otb":
        write_otb(tmp_path, "moves", [f"{x + 1},{y + 1},{w},{h}" for x, y, w, h in steps])
        write_otb(tmp_path, "rests")
    else:
        write_vot(tmp_path, "moves", [",".join(map(str, step)) for step in steps])
        write_vot(tmp_path, "rests")
    out = tmp_path / "out"
    arguments = ["--data", f"{kind}:{tmp_path}", "--trackers", "static", "oracle"]
    run_evaluation(tyro.cli(EvaluationOptions, args=[*arguments, "--out", str(out)]))
    assert "oracle" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["dataset"] == f"{kind} {tmp_path.name}"
    oracle, static = summary["trackers"]["oracle"], summary["trackers"]["static"]
    assert oracle["axis_aligned"]["ao"] > 0.999
    # The box of 20 is left behind by 2, 4 and 6 pixels.
    expected = np.mean([(20 - d) / (20 + d) for d in (2, 4, 6)])
    assert static["per_sequence"]["moves"]["axis_aligned"] == pytest.approx(expected, abs=1e-6)
    assert static["per_sequence"]["rests"]["axis_aligned"] == pytest.approx(1)


def test_sequences_can_be_chosen(tmp_path):
    for name in ("a", "b", "c"):
        write_otb(tmp_path, name)
    options = EvaluationOptions(data=f"otb:{tmp_path}", sequences=("c", "a"))
    assert [s.name for s in load_sequences(options)] == ["a", "c"]
    turned = replace(options, upside_down=True)
    assert [s.name for s in load_sequences(turned)] == ["a~y", "c~y"]
    assert turned.dataset == f"otb {tmp_path.name}, upside down"
    with pytest.raises(UserError, match="no sequence d in otb:"):
        load_sequences(EvaluationOptions(data=f"otb:{tmp_path}", sequences=("d",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "otb:nowhere"], "no folder nowhere"),
        (["--data", "otb"], "needs a folder"),
        (["--data", "otb:x", "--root", "y"], "give one of them"),
        (["--data", "otb:x", "--split", "val"], "give --root"),
        (["--sequences", "x"], "give --root or --data"),
    ],
)
def test_mistakes_get_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--trackers", "static", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: run_evaluation(tyro.cli(EvaluationOptions)))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    write_otb(tmp_path, lines=["12,21,20,10"] * 12)
    for path in (tmp_path / "Ball" / "img").iterdir():
        path.rename(path.with_stem(str(int(path.stem))))  # 1, 10, 11, 12, 2, …
    (sequence,) = load_otb(tmp_path)
    grey = [sequence.frame(t)[0, 0, 0] for t in range(12)]
    assert np.abs(np.array(grey) - np.arange(1, 13)).max() <= 1


def test_links_to_sequences_have_names_of_their_own(tmp_path):
    write_otb(tmp_path / "data" / "a", "frames")
    write_otb(tmp_path / "data" / "b", "frames")
    (tmp_path / "links").mkdir()
    for name in "ab":
        (tmp_path / "links" / name).symlink_to(tmp_path / "data" / name / "frames")
    assert [sequence.name for sequence in load_otb(tmp_path / "links")] == ["a", "b"]
    assert [sequence.name for sequence in load_otb(tmp_path / "data" / "a" / "frames")] == [
        "frames"
    ]
