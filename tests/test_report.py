"""From runs to summary, tables, files and pictures; and the script that makes them."""

import json
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from folders import write_tree
from rich.console import Console

from bmvtrack import visualization
from bmvtrack.data.davis import load_davis16
from bmvtrack.errors import UserError
from bmvtrack.tracking import report
from bmvtrack.tracking.evaluation import evaluate
from bmvtrack.tracking.plots import write_plots
from bmvtrack.tracking.trackers import OracleTracker, static_tracker

METRICS = {"ao", "sr50", "sr75", "auc", "precision20"}
FACTORIES = {"static": static_tracker, "oracle": OracleTracker}


@pytest.fixture
def davis(tmp_path):
    return write_tree(tmp_path / "davis")


@pytest.fixture
def results(davis):
    return evaluate(FACTORIES, load_davis16(davis))


@pytest.fixture
def run(run_script):
    return partial(run_script, "evaluate_davis16.py")


def test_summary_has_the_structure_that_is_promised(results):
    summary = report.build_summary("small", "ope", results)
    assert set(summary) == {"dataset", "protocol", "trackers"}
    assert list(summary["trackers"]) == ["static", "oracle"]
    for tracker in summary["trackers"].values():
        assert set(tracker) == {"axis_aligned", "rotated", "fps", "frames", "per_sequence"}
        assert set(tracker["axis_aligned"]) == set(tracker["rotated"]) == METRICS
        assert list(tracker["per_sequence"]) == ["ant", "bee"]
        assert tracker["frames"] == 12
        assert tracker["fps"] > 0
        for geometry in ("axis_aligned", "rotated"):
            overlaps = [s[geometry] for s in tracker["per_sequence"].values()]
            assert tracker[geometry]["ao"] == pytest.approx(np.mean(overlaps))
    assert summary["trackers"]["oracle"]["rotated"]["ao"] == pytest.approx(1, abs=1e-6)
    assert summary["trackers"]["static"]["rotated"]["ao"] < 0.8


def test_robustness_protocols_add_intervals_and_paired_differences(davis):
    runs = evaluate(FACTORIES, load_davis16(davis), "tre", segments=3)
    summary = report.build_summary("small", "tre", runs, seed=1)
    assert summary == report.build_summary("small", "tre", runs, seed=1)
    static, oracle = summary["trackers"].values()
    assert "ao_above_first" not in static
    for geometry in ("axis_aligned", "rotated"):
        low, high = static["ao_interval"][geometry]
        assert low <= static[geometry]["ao"] <= high
        mean, low, high = oracle["ao_above_first"][geometry]
        assert low <= mean <= high
        assert mean == pytest.approx(oracle[geometry]["ao"] - static[geometry]["ao"])
    assert text_of(report.interval_table(summary)).count("[") == 6


class Gaussian(OracleTracker):
    """Its Gaussian is right: distances are draws from χ² with five degrees of freedom."""

    draws = np.random.default_rng(0)

    def mahalanobis(self, rbbox):
        return float(self.draws.chisquare(5))


def test_coverage_counts_frames_that_are_on_track(davis):
    factories = {**FACTORIES, "gaussian": Gaussian}
    results = evaluate(factories, load_davis16(davis), "tre", segments=3)
    summary = report.build_summary("small", "tre", results)
    assert "coverage" not in summary["trackers"]["oracle"]
    assert report.covered(results["oracle"]) is None
    runs = results["gaussian"]
    shares = summary["trackers"]["gaussian"]["coverage"]
    assert shares["frames"] == sum(len(run) - 1 for run in runs)
    inside = np.concatenate([run.distances[1:] for run in runs]) <= 9.2364  # the 90 % quantile
    assert shares["90"] == pytest.approx(inside.mean())
    text = text_of(report.coverage_table({"gaussian": shares}))
    assert "gaussian" in text
    assert f"{shares['90']:.2f}" in text
    lost = [replace(run, overlaps=results["static"][i].overlaps) for i, run in enumerate(runs)]
    counted = sum((run.overlaps["rotated"].iou > 0.5).sum() for run in lost)
    assert report.covered(lost)["frames"] == counted < shares["frames"]
    assert report.run_csv(runs[0]).splitlines()[3].endswith(f",{runs[0].distances[2]:.6f}")


def test_averages_go_over_runs_first(davis):
    sequences = load_davis16(davis)
    runs = evaluate({"static": static_tracker}, sequences, "tre", segments=3)["static"]
    lone = runs[:3] + runs[3:4]  # three runs of the first sequence, one of the second
    overlaps = [run.scores["rotated"].ao for run in lone]
    expected = (np.mean(overlaps[:3]) + overlaps[3]) / 2
    assert report.overall(lone, "rotated").ao == pytest.approx(expected)


def test_csv_has_a_line_a_frame_and_its_mean_is_the_overlap(results):
    run = results["static"][0]
    lines = report.run_csv(run).splitlines()
    assert lines[0] == (
        "frame,centre_x,centre_y,width,height,angle,iou_rotated,iou_axis_aligned,mahalanobis"
    )
    rows = [line.split(",") for line in lines[1:]]
    assert [int(row[0]) for row in rows] == list(range(6))
    assert rows[0][6:] == ["", "", ""]
    assert {row[8] for row in rows} == {""}
    for column, geometry in ((6, "rotated"), (7, "axis_aligned")):
        mean = np.mean([float(row[column]) for row in rows[1:]])
        assert mean == pytest.approx(run.scores[geometry].ao, abs=1e-6)
    assert [float(v) for v in rows[2][1:6]] == pytest.approx(run.boxes[2], abs=1e-4)


def text_of(table: object) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_tables_hold_the_numbers(results):
    summary = report.build_summary("small", "ope", results)
    text = text_of(report.summary_table(summary))
    assert f"{summary['trackers']['static']['rotated']['ao']:.3f}" in text
    assert "small, OPE" in text
    per_sequence = text_of(report.sequence_table(summary))
    assert "bee" in per_sequence
    assert "/ 1.00" in per_sequence


def test_names_in_brackets_are_shown(results):
    runs = [replace(run, sequence=f"{run.sequence}[red]") for run in results["static"]]
    summary = report.build_summary("data[old]", "ope", {"static": runs})
    assert "data[old], OPE" in text_of(report.summary_table(summary))
    assert "bee[red]" in text_of(report.sequence_table(summary))


def test_plots_are_pictures(results, tmp_path):
    write_plots(tmp_path / "plots", results)
    for name in ("success.png", "precision.png"):
        image = cv2.imread(str(tmp_path / "plots" / name))
        assert image is not None
        assert len(np.unique(image.astype(int) @ (1, 2**8, 2**16))) > 20  # colours


def test_overlay_draws_on_a_copy():
    frame = np.full((360, 480, 3), 128, dtype=np.uint8)
    box, nothing = np.array([240.0, 180, 180, 120, 0.2]), np.full(5, np.nan)
    plain = visualization.draw_overlay(frame, nothing, nothing)
    assert (plain == frame).all()
    assert plain is not frame
    mask = np.zeros((360, 480), dtype=bool)
    mask[300:, :] = True
    other = box + np.array([30, 15, 0, 0, 0])
    image = visualization.draw_overlay(frame, box, other, mask, "IoU 0.50")
    assert (frame == 128).all()
    colours = {tuple(colour) for colour in image.reshape(-1, 3)}
    assert {visualization.TRUE_COLOUR, visualization.PREDICTED_COLOUR} <= colours
    assert (image[330, :, 2] > 128).all()
    assert (image[:40, :160] == 255).any()


def test_videos_can_be_read_and_odd_sizes_are_padded(tmp_path):
    frames = (np.full((61, 81, 3), 20 * i, dtype=np.uint8) for i in range(5))
    visualization.write_video(tmp_path / "new" / "clip.mp4", frames, 10)
    video = cv2.VideoCapture(str(tmp_path / "new" / "clip.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (82, 62)
    read = []
    while (answer := video.read())[0]:
        read.append(answer[1].mean())
    assert read == pytest.approx([0, 20, 40, 60, 80], abs=4)


def test_a_video_that_fails_leaves_nothing(tmp_path):
    def frames():
        yield np.zeros((60, 80, 3), dtype=np.uint8)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        visualization.write_video(tmp_path / "clip.mp4", frames(), 10)
    assert list(tmp_path.iterdir()) == []


def test_the_script_writes_what_it_says(run, davis, tmp_path):
    out = tmp_path / "out"
    done = run("--root", davis, "--trackers", "static", "oracle", "--out", out, "--video")
    assert done.status == 0, done.errors
    assert "axis-aligned" in done.printed
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    per_run = [f"{t}/{s}" for t in ("oracle", "static") for s in ("ant", "bee")]
    expected = ["precision.png", "success.png", "summary.json"]
    expected += [f"results/{name}.csv" for name in per_run]
    expected += [f"videos/{name}.mp4" for name in per_run]
    assert files == sorted(expected)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["dataset"] == "davis"
    assert summary["trackers"]["oracle"]["rotated"]["ao"] > 0.999


def break_nothing(root: Path) -> None:
    """The fault is in the options."""


def remove_masks(root: Path) -> None:
    for mask in (root / "Annotations/480p/bee").iterdir():
        mask.unlink()


def resize_mask(root: Path) -> None:
    cv2.imwrite(str(root / "Annotations/480p/bee/00003.png"), np.full((30, 40), 255, np.uint8))


def spoil_frame(root: Path) -> None:
    (root / "JPEGImages/480p/bee/00004.jpg").write_bytes(b"not a picture")


def empty_first_mask(root: Path) -> None:
    cv2.imwrite(str(root / "Annotations/480p/bee/00000.png"), np.zeros((61, 81), np.uint8))


def link_frame(root):
    frame = root / "JPEGImages/480p/bee/00003.jpg"
    frame.unlink()
    frame.symlink_to(root / "gone.jpg")


def test_a_link_to_no_folder_is_refused_before_tracking(run, davis, tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    for out in (tmp_path / "runs", tmp_path / "runs" / "deeper"):
        status, _, error = run("--root", davis, "--trackers", "static", "--out", out)
        assert status == 2
        assert f"runs is a link to {tmp_path / 'gone'}, which does not exist" in error


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (break_nothing, ("--root", "nowhere"), "no folder nowhere"),
        (break_nothing, ("--sequences", "cat"), "no sequence cat"),
        (break_nothing, ("--split", "val"), "no split 'val'"),
        (break_nothing, ("--segments", "0"), "--segments must be at least 1"),
        (break_nothing, ("--segments", "3"), "--segments is for --protocol tre"),
        (break_nothing, ("--synthetic-count", "3"), "omit --root and --data"),
        (break_nothing, ("--out", __file__), "is a file; give a folder"),
        (break_nothing, ("--trackers",), "no trackers"),
        (link_frame, (), "cannot read the image"),
        (remove_masks, (), "'bee' lacks 6 of 6 masks"),
        (resize_mask, (), "'bee', frame 3: the mask is 40×30 but the frame is 81×61"),
        (spoil_frame, (), "cannot read the image"),
        (empty_first_mask, (), "'bee': the mask of its first frame is empty"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    spoil, options, message, run, davis, tmp_path
):
    spoil(davis)
    out = tmp_path / "out"
    status, _, error = run("--root", davis, "--trackers", "static", "--out", out, *options)
    assert status == 2
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert message in error
    assert not out.exists()


def test_stills_are_refused(run, tmp_path):
    status, _, error = run("--data", "duts:x", "--trackers", "static", "--out", tmp_path / "out")
    assert status == 2
    assert error == "error: --data duts:x: stills have no motion; give videos, or cutouts:FOLDER\n"
    assert not (tmp_path / "out").exists()


def test_unknown_trackers_are_refused(run, davis, tmp_path):
    status, _, error = run("--root", davis, "--trackers", "sort", "--out", tmp_path / "out")
    assert status == 2
    assert "sort" in error
    assert not (tmp_path / "out").exists()


def test_results_of_an_evaluation_before_are_replaced(results, tmp_path):
    tmp_path = tmp_path / "out"
    summary = report.build_summary("a", "ope", results, 0)
    report.write_report(tmp_path, summary, results)
    thesis = tmp_path / "results" / "thesis.txt"
    thesis.write_text("mine")
    (name, runs), *_ = results.items()
    first = {name: runs[:1]}
    report.write_report(tmp_path, report.build_summary("b", "ope", first, 0), first)
    files = [path.name for path in (tmp_path / "results" / name).iterdir()]
    assert files == [f"{runs[0].name}.csv"]
    assert thesis.read_text() == "mine"


def test_an_evaluation_forgets_the_one_before_and_nothing_else(run, davis, tmp_path):
    out = tmp_path / "out"
    options = "--root", davis, "--out", out, "--trackers"
    assert run(*options, "static", "oracle", "--video").status == 0
    thesis = out / "videos" / "static" / "thesis.mp4"
    thesis.write_text("mine")
    assert run(*options, "static", "--sequences", "bee").status == 0
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    plots = ["precision.png", "results/static/bee.csv", "success.png", "summary.json"]
    assert files == [*plots, "videos/static/thesis.mp4"]


def test_an_evaluation_forgets_an_interrupted_one_too(run, davis, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = "--root", davis, "--out", out, "--trackers", "static"
    with monkeypatch.context() as patch:
        patch.setattr("agents.evaluation.build_summary", Mock(side_effect=KeyboardInterrupt))
        assert run(*options, "--video", "--failures").status == 130
    page = (out / "failures" / "failures.md").read_text(encoding="utf-8")
    assert "data that are not all tracked yet" in page
    thesis = out / "videos" / "static" / "thesis.mp4"
    thesis.write_text("mine")
    assert len(list(out.rglob("*ant.*"))) == 3
    assert run(*options, "--sequences", "bee").status == 0
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    plots = ["precision.png", "results/static/bee.csv", "success.png", "summary.json"]
    assert files == [*plots, "videos/static/thesis.mp4"]


@pytest.mark.parametrize("summary", ["[]", '{"trackers": {"..": {"per_sequence": {"x": 1}}}}', "{"])
def test_a_strange_summary_removes_nothing(summary, tmp_path):
    (tmp_path / "out" / "results").mkdir(parents=True)
    (tmp_path / "out" / "summary.json").write_text(summary)
    (tmp_path / "x.mp4").write_text("mine")
    report.remove_previous(tmp_path / "out")
    assert (tmp_path / "out" / "results").is_dir()
    assert (tmp_path / "x.mp4").is_file()


@pytest.mark.parametrize("count", [3, 300])
def test_a_video_that_a_full_disk_cuts_short_is_not_written(count, tmp_path):
    """ffmpeg holds back the few frames of a short one until it is closed, and nobody asks how it ended."""
    (tmp_path / "clip.mp4").write_text("the one before")
    noise = np.random.default_rng(0).integers(256, size=(128, 160, 3), dtype=np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"could not write all of .*clip\.mp4"):
            visualization.write_video(
                tmp_path / "clip.mp4", (np.roll(noise, i) for i in range(count)), 10
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_text() == "the one before"


def test_frames_too_large_for_a_video_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"frames of 17000×16 are too large for a video"):
        visualization.write_video(tmp_path / "wide.mp4", [np.zeros((16, 17000, 3), np.uint8)], 10)
    assert list(tmp_path.iterdir()) == []
