"""Where a track breaks, and the pages that show it."""

import dataclasses
import json
import re

import cv2
import numpy as np
import pytest
from folders import write_tree
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bmvtrack import geometry
from bmvtrack.data.davis import load_davis16
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.tracking.evaluation import evaluate
from bmvtrack.tracking.failure_atlas import (
    SHOWN,
    FailureAtlas,
    draw_strip,
    remove_atlas,
    shown_indices,
)
from bmvtrack.tracking.failures import Failure, breaking_index, find_failure
from bmvtrack.tracking.protocols import one_pass
from bmvtrack.tracking.trackers import OracleTracker, StaticTracker, static_tracker

NAN = np.nan


@pytest.mark.parametrize(
    ("iou", "index"),
    [
        ([NAN, 0.9, 0.8, 0.1, 0.0], 3),
        ([NAN, 0.9, 0.4, 0.9, 0.1, 0.1, 0.1], 4),  # a dip that passes
        ([NAN, 0.9, 0.1, 0.1, 0.1, 0.6, 0.1], 2),  # a late touch
        ([NAN, 0.9, 0.0, 0.0, 0.8, 0.9, 0.9, 0.1], 7),  # found again for longer than it was lost
        ([NAN, 0.1, 0.1], 1),  # never on it
        ([NAN, 0.9, NAN, NAN, 0.1], 4),  # away where it wasn't scored
        ([NAN, 0.9, 0.5, 0.1], 2),  # of equal surplus the first
        ([NAN, 0.9, 0.4, 0.9], None),
    ],
)
def test_a_track_breaks_where_its_surplus_is_greatest(iou, index):
    assert breaking_index(np.array(iou)) == index


@given(arrays.arrays(float, st.integers(1, 30), elements=st.integers(0, 16).map(lambda n: n / 16)))
def test_stretches_before_the_break_are_above_a_half_and_after_it_below(iou):
    index = breaking_index(iou)
    if index is None:
        index = len(iou)
        assert iou.mean() > 0.5
    assert all(iou[start:index].mean() > 0.5 for start in range(index))
    assert all(iou[index : end + 1].mean() <= 0.5 for end in range(index, len(iou)))


class Leaving(StaticTracker):
    """Sees the true mask until frame 3, and then nothing but its own box, which stays behind."""

    name = "leaving"

    def __init__(self, sequence: VideoSequence, start: int) -> None:
        self._sequence, self._t = sequence, start

    def update(self, frame):
        self._t += 1
        if self._t < 3:
            self._rbbox = np.array(self._sequence.boxes[self._t])
        return super().update(frame)

    @property
    def mask(self):
        return self._sequence.mask(min(self._t, 2)) if self._t else None


@pytest.fixture
def sequence(tmp_path):
    """Sixteen frames of a bar that moves by a third of its length a frame."""
    (sequence,) = load_davis16(write_tree(tmp_path, ("ant",), 16))
    return sequence


def test_a_failure_has_the_numbers_that_tell_why(sequence):
    failure = find_failure("leaving", one_pass(Leaving, sequence, keep_masks=True), sequence)
    assert failure is not None
    assert list(failure.overlaps) == ["rotated", "axis-aligned", "mask", "box and mask"]
    assert failure.average_overlap == min(s.ao for s in failure.run.scores.values()) < 0.5
    assert 3 <= failure.frame == failure.index < 8
    assert failure.overlaps["mask"][[1, 2]] == pytest.approx([1, 1])
    assert failure.overlaps["mask"][-1] < 0.1
    assert failure.overlaps["box and mask"][1:] == pytest.approx(1, abs=1e-6)
    assert np.isnan([values[0] for values in failure.overlaps.values()]).all()
    assert shown_indices(failure)[0] == 0
    assert failure.index in shown_indices(failure)
    assert len(shown_indices(failure)) <= len(SHOWN)


def test_trackers_without_masks_have_none_of_their_numbers(sequence):
    failure = find_failure("static", one_pass(static_tracker, sequence, keep_masks=True), sequence)
    assert failure is not None
    assert list(failure.overlaps) == ["rotated", "axis-aligned"]
    assert find_failure("oracle", one_pass(OracleTracker, sequence), sequence) is None


def test_data_without_masks_will_do(sequence):
    boxes_only = VideoSequence("ant", len(sequence), sequence.frame, given_boxes=sequence.boxes)
    run = one_pass(Leaving, sequence, keep_masks=True)
    failure = find_failure("leaving", run, boxes_only)
    assert failure is not None
    assert list(failure.overlaps) == ["rotated", "axis-aligned", "box and mask"]
    assert failure.geometry == "rotated"


class Narrow(OracleTracker):
    """Knows the true box, and says that the object is a tenth of it."""

    def axis_aligned(self, rbbox):
        return geometry.bounds(rbbox * [1, 1, 0.3, 0.3, 1])


def test_without_masks_the_bounds_of_tilted_boxes_are_no_truth(sequence):
    boxes_only = VideoSequence("ant", len(sequence), sequence.frame, given_boxes=sequence.boxes)
    run = one_pass(Narrow, sequence)
    failure = find_failure("narrow", run, sequence)
    assert failure is not None
    assert failure.geometry == "axis_aligned"
    assert find_failure("narrow", one_pass(Narrow, boxes_only), boxes_only) is None


def test_a_strip_shows_the_frames_cut_to_the_boxes(sequence):
    failure = find_failure("leaving", one_pass(Leaving, sequence, keep_masks=True), sequence)
    assert failure is not None
    strip = draw_strip(failure, sequence)
    assert strip.shape[1] == 3 * 480
    assert strip.dtype == np.uint8
    assert len(np.unique(strip.astype(int) @ (1, 2**8, 2**16))) > 100  # colours


def test_a_pole_is_shown_with_something_beside_it(sequence):
    """Cut to the pole alone its strip would be too high for any picture format."""
    boxes = np.tile([300.0, 250, 2, 490, 0], (len(sequence), 1))
    image = np.zeros((500, 600, 3), np.uint8)
    pole = VideoSequence("pole", len(sequence), lambda t: image, given_boxes=boxes)
    run = one_pass(static_tracker, pole)
    lost = dataclasses.replace(run, boxes=run.boxes + np.array([4, 0, 0, 0, 0]))
    strip = draw_strip(Failure("static", lost, "rotated", 1, {}), pole)
    assert strip.shape[0] < 5 * strip.shape[1]


def test_the_atlas_has_a_page_and_two_pictures_of_each_failure(tmp_path):
    sequences = [synthetic_sequence(seed) for seed in (1, 2)]
    atlas = FailureAtlas(tmp_path)
    results = evaluate({"still": static_tracker}, sequences, watchers=[atlas.add])
    failed = [r for r in results["still"] if min(s.ao for s in r.scores.values()) < 0.5]
    assert failed
    page = atlas.write("two sequences", "none").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((.*)\)", page)
    assert len(pictures) == 2 * len(failed)
    for name in pictures:
        image = cv2.imread(str(tmp_path / name))
        assert image is not None
        assert image.shape[1] > 1000
    assert sorted(pictures) == sorted(
        path.relative_to(tmp_path).as_posix()
        for suffix in ("png", "jpg")
        for path in tmp_path.rglob(f"*.{suffix}")
    )
    for run in failed:
        assert f"## {run.sequence}\n\n### still: breaks in frame " in page


@pytest.mark.parametrize(
    "name", ["ant", "my clip (1)", "cost_$5_to_$9", "ä%20", "not \udcfe UTF-8"]
)
def test_an_atlas_is_removed_with_its_pictures_and_nothing_else(tmp_path, name):
    atlas = FailureAtlas(tmp_path / "failures")
    sequence = dataclasses.replace(synthetic_sequence(1), name=name)
    evaluate({"still": static_tracker}, [sequence], watchers=[atlas.add])
    page = atlas.write("one sequence", "none").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((.*)\)", page):
        assert re.fullmatch(r"[\w/.%-]+", link, re.ASCII)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3
    mine = tmp_path / "failures" / "strips" / "mine.jpg"
    mine.write_text("mine")
    remove_atlas(tmp_path / "failures")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    (tmp_path / "failures" / "failures.md").write_text("# My failures\n\n![](strips/mine.jpg)\n")
    remove_atlas(tmp_path / "failures")
    remove_atlas(tmp_path)
    assert mine.is_file()


def test_an_overlap_of_a_half_but_for_rounding_is_none(sequence):
    iou = np.array([np.nan, 0.08, 0.03, 0.08, 0.63, 0.97, 0.89, 0.53, 0.79])
    assert iou[1:].mean() < 0.5
    assert breaking_index(iou) is None
    run = one_pass(static_tracker, sequence)
    overlaps = dict.fromkeys(run.overlaps, dataclasses.replace(run.overlaps["rotated"], iou=iou))
    assert find_failure("static", dataclasses.replace(run, overlaps=overlaps), sequence) is None


def test_the_committed_picture_has_nothing_of_the_frames(sequence, tmp_path):
    """The schematic is the same whatever the frames show."""
    run = one_pass(Leaving, sequence, keep_masks=True)
    dark = VideoSequence(
        "ant", len(sequence), lambda t: np.zeros_like(sequence.frame(t)), sequence.mask
    )
    for name, seen in (("bright", sequence), ("dark", dark)):
        FailureAtlas(tmp_path / name).add("leaving", run, seen)
    path = "images/failures/leaving-ant.png"
    bright, dark_picture = (cv2.imread(str(tmp_path / name / path)) for name in ("bright", "dark"))
    assert (bright == dark_picture).all()


def test_the_script_writes_the_page(run_script, tmp_path):
    davis, out = write_tree(tmp_path / "davis", length=12), tmp_path / "out"
    arguments = ("--root", davis, "--trackers", "static", "oracle", "--out", out, "--failures")
    done = run_script("evaluate_davis16.py", *arguments)
    assert done.status == 0, done.errors
    page = (out / "failures" / "failures.md").read_text(encoding="utf-8")
    summary = json.loads((out / "summary.json").read_text())["trackers"]["static"]["per_sequence"]
    lost = [name for name, ao in summary.items() if min(ao.values()) < 0.5]
    assert lost
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == lost
    assert "### oracle" not in page
    assert not (out / "videos").exists()


def test_where_nothing_is_lost_the_page_says_so(tmp_path):
    assert "There are none." in FailureAtlas(tmp_path).write("x", "y").read_text(encoding="utf-8")
