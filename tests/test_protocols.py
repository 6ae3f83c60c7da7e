"""Protocols, and the bootstrap that gives their results an interval."""

import time

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmvtrack import geometry
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.inputs import rotated_box, upright_box
from bmvtrack.iou import rotated_iou
from bmvtrack.tracking.bootstrap import bootstrap_mean, paired_difference
from bmvtrack.tracking.protocols import (
    check_sequence,
    first_box,
    one_pass,
    one_thread,
    run_protocol,
    spatial_boxes,
    temporal_starts,
)
from bmvtrack.tracking.trackers import BoxTracker, OracleTracker, StaticTracker, static_tracker

FRAME = np.zeros((120, 160, 3), dtype=np.uint8)


def moving(length: int = 10, absent: tuple[int, ...] = ()) -> VideoSequence:
    boxes = np.array([[40.0 + 4 * (t % 25), 50, 20, 10, 0.2] for t in range(length)])
    boxes[list(absent)] = np.nan
    return VideoSequence("moving", length, lambda t: FRAME, given_boxes=boxes)


class Masked(StaticTracker):
    mask = np.ones((120, 160), dtype=bool)


class Upright(StaticTracker):
    upright = True


class KnowsBounds(StaticTracker):
    def axis_aligned(self, rbbox):
        return np.array([1.0, 2, 3, 4])


def test_one_pass_takes_the_true_box_and_runs_to_the_end():
    sequence = moving()
    run = one_pass(static_tracker, sequence, start=3)
    assert (run.start, len(run), run.name) == (3, 7, "moving")
    assert (run.boxes == sequence.boxes[3]).all()
    assert run.limits == pytest.approx(geometry.bounds(run.boxes))
    iou = run.overlaps["rotated"].iou
    assert np.isnan(iou[0])
    assert np.all(np.diff(iou[1:]) < 0)
    assert run.masks == ()


class Clock:
    """In the place of the real one; it stands still but for what is said to take time."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def tracker(self, init=0.0, update=0.0, bounds=0.0):
        """A factory of trackers that take so many seconds."""
        clock = self

        class Timed(StaticTracker):
            def init(self, frame, rbbox):
                clock.now += init
                super().init(frame, rbbox)

            def update(self, frame):
                clock.now += update
                return super().update(frame)

            def axis_aligned(self, rbbox):
                clock.now += bounds
                return super().axis_aligned(rbbox)

        return lambda sequence, start: Timed()


def test_only_the_tracker_is_timed(monkeypatch):
    clock = Clock(monkeypatch)

    def frame(t: int) -> np.ndarray:
        clock.now += 1000
        return FRAME

    slow_reading = VideoSequence("slow", 10, frame, given_boxes=moving().boxes)
    assert one_pass(clock.tracker(), slow_reading).seconds == 0
    assert one_pass(clock.tracker(init=2, update=0.25), slow_reading).seconds == 2 + 9 * 0.25


def test_masks_are_kept_if_wanted():
    run = one_pass(lambda s, t: Masked(), moving(), keep_masks=True)
    assert len(run.masks) == 10
    assert run.masks[0].all()
    assert run.without_masks().masks == ()
    assert one_pass(static_tracker, moving(), keep_masks=True).masks == (None,) * 10


class Certain(StaticTracker):
    def mahalanobis(self, rbbox):
        return float(rbbox[0])


def test_distances_are_those_of_the_true_boxes_from_what_the_tracker_expects():
    sequence = moving(absent=(6,))
    run = one_pass(lambda s, t: Certain(), sequence, start=2)
    np.testing.assert_array_equal(run.distances, sequence.boxes[2:, 0])
    assert np.isnan(one_pass(static_tracker, sequence).distances).all()


def test_upright_trackers_start_from_the_bounds_of_the_mask():
    mask = np.zeros((120, 160), dtype=np.uint8)
    cv2.fillPoly(mask, [np.array([[20, 20], [100, 60], [90, 80], [10, 40]])], 1)
    sequence = VideoSequence("mask", 3, lambda t: FRAME, lambda t: mask != 0)
    upright = one_pass(lambda s, t: Upright(), sequence)
    assert upright.limits[0] == pytest.approx(geometry.mask_bounds(mask))
    assert upright.scores["axis_aligned"].ao == pytest.approx(1)
    assert upright.scores["rotated"].ao < 0.9
    rotated = one_pass(static_tracker, sequence)
    assert rotated.scores["rotated"].ao == pytest.approx(1)
    assert rotated.scores["axis_aligned"].ao < 1


def test_a_tracker_may_know_better_bounds_than_those_of_its_box():
    run = one_pass(lambda s, t: KnowsBounds(), moving())
    assert (run.limits == [1, 2, 3, 4]).all()


@settings(max_examples=50)
@given(
    st.lists(st.booleans(), min_size=3, max_size=40).filter(lambda p: sum(p) >= 2),
    st.integers(1, 50),
)
def test_temporal_starts_can_all_be_run(present, segments):
    absent = tuple(t for t, here in enumerate(present) if not here)
    sequence = moving(len(present), absent)
    starts = temporal_starts(sequence, segments)
    assert 1 <= len(starts) <= segments
    assert starts == sorted(set(starts))
    for start in starts:
        assert sequence.present[start]
        assert sequence.present[start + 1 :].any()


def test_temporal_starts_are_spread_evenly():
    assert temporal_starts(moving(100), 10) == list(range(0, 100, 10))
    assert temporal_starts(moving(100), 1) == [0]
    assert temporal_starts(moving(4), 20) == [0, 1, 2]
    assert temporal_starts(moving(100, tuple(range(18, 24))), 5) == [0, 17, 40, 60, 80]


def test_temporal_starts_refuse_what_cannot_be():
    with pytest.raises(UserError, match="at least 1 segment"):
        temporal_starts(moving(), 0)
    with pytest.raises(UserError, match="no frame to start from"):
        temporal_starts(moving(4, (1, 2, 3)), 3)


def test_spatial_boxes_are_those_of_the_benchmark():
    box = np.array([100.0, 50, 40, 20, 0])
    boxes = spatial_boxes(box, 200, 120)
    shifts = {tuple(b[:2] - box[:2]) for n, b in boxes.items() if n.startswith("shift")}
    assert shifts == {(u, v) for u in (-4, 0, 4) for v in (-2, 0, 2)} - {(0, 0)}
    scaled = [b for n, b in boxes.items() if n.startswith("scale")]
    assert [b[2] / 40 for b in scaled] == pytest.approx([0.8, 0.9, 1.1, 1.2])
    assert [b[3] / 20 for b in scaled] == pytest.approx([0.8, 0.9, 1.1, 1.2])
    assert all((b[:2] == box[:2]).all() for b in scaled)
    assert len(boxes) == 12


def test_spatial_shifts_go_along_the_boxes_own_axes():
    boxes = spatial_boxes(np.array([100.0, 50, 40, 20, np.pi / 2]), 200, 120)
    assert boxes["shift-right"] == pytest.approx([100, 54, 40, 20, np.pi / 2])
    assert boxes["shift-down"] == pytest.approx([98, 50, 40, 20, np.pi / 2])


def annotated(*boxes: tuple[float, ...]) -> VideoSequence:
    """A sequence whose boxes are given, as in OTB: they may lie anywhere."""
    given = np.array([upright_box(np.array(box, dtype=float)) for box in boxes])
    return VideoSequence("given", len(boxes), lambda t: FRAME, given_boxes=given)


def test_what_a_tracker_would_refuse_is_no_start():
    inside, outside, thin = (20, 20, 30, 20), (165, 20, 30, 20), (20, 20, 0.5, 20)
    sequence = annotated(inside, outside, thin, inside, inside)
    check_sequence(sequence)
    assert temporal_starts(sequence, 5) == [0, 3]
    reasons = {outside: "lies outside the frame", thin: "is less than a pixel wide or high;"}
    for first, reason in reasons.items():
        with pytest.raises(UserError, match=f"'given': the box of its first frame {reason}"):
            check_sequence(annotated(first, inside))


def test_what_turns_and_turns_can_be_started_from():
    boxes = np.array([[80.0, 60, 40, 20, 0.5 * t] for t in range(40)])
    spinning = VideoSequence("spinning", 40, lambda t: FRAME, given_boxes=boxes)
    for start in (0, 13, 39):
        box = first_box(spinning, start, upright=False)
        assert rotated_iou(rotated_box(box, 160, 120), boxes[start]) > 0.999


@pytest.mark.parametrize("box", [(20, 20, 1, 20), (150, 20, 30, 20), (-29, 20, 30, 20)])
def test_spatial_boxes_can_all_be_started_from(box):
    first = upright_box(np.array(box, dtype=float))
    boxes = spatial_boxes(first, 160, 120)
    assert len(boxes) == 12
    for started in boxes.values():
        rotated_box(started, 160, 120)
    assert sum((started == first).all() for started in boxes.values()) < 12


def test_protocols_run_what_they_say():
    sequence = moving(20)
    assert [r.name for r in run_protocol("ope", OracleTracker, sequence)] == ["moving"]
    temporal = run_protocol("tre", OracleTracker, sequence, segments=4)
    assert [r.start for r in temporal] == [0, 5, 10, 15]
    assert temporal[1].name == "moving-from-00005"
    assert all(r.scores["rotated"].ao > 0.999 for r in temporal)
    spatial = run_protocol("sre", OracleTracker, sequence, keep_masks=True)
    assert len({r.name for r in spatial}) == 12
    assert all(0.5 < r.scores["rotated"].ao < 0.95 for r in spatial)
    assert [bool(r.masks) for r in spatial] == [True] + [False] * 11


def test_one_thread_restores_what_was():
    def now() -> tuple[int, int]:
        return cv2.getNumThreads(), torch.get_num_threads()

    before = now()
    with one_thread():
        cv2.setNumThreads(2)
        torch.set_num_threads(2)
        with one_thread():
            assert now() == (1, 1)
        assert now() == (2, 2)
    assert now() == before


def test_a_sequence_is_checked_before_it_is_run():
    check_sequence(moving())
    with pytest.raises(UserError, match="mask of its first frame is empty"):
        check_sequence(moving(5, (0,)))
    with pytest.raises(UserError, match="nothing to score"):
        check_sequence(moving(3, (1, 2)))
    mixed = VideoSequence("mixed", 5, lambda t: FRAME[: 120 - t], given_boxes=moving(5).boxes)
    with pytest.raises(UserError, match="'mixed', frame 1: it is 160×119"):
        check_sequence(mixed)


def test_every_tracker_must_say_how_it_starts_and_goes_on():
    with pytest.raises(TypeError, match="abstract"):
        BoxTracker()


def test_the_mean_is_over_runs_then_sequences():
    estimate = bootstrap_mean([np.array([0.0, 1.0, 0.5]), np.array([1.0])])
    assert estimate.mean == pytest.approx(0.75)
    assert estimate.low <= estimate.mean <= estimate.high


def test_bootstrap_is_a_function_of_the_seed():
    scores = [np.random.default_rng(i).random(5) for i in range(8)]
    assert bootstrap_mean(scores, 1) == bootstrap_mean(scores, 1)
    assert bootstrap_mean(scores, 1) != bootstrap_mean(scores, 2)


def test_bootstrap_of_equal_scores_has_no_width():
    estimate = bootstrap_mean([np.full(3, 0.4), np.full(5, 0.4)])
    assert (estimate.low, estimate.high) == pytest.approx((0.4, 0.4))


def test_bootstrap_has_the_spread_of_the_mean_over_sequences():
    """One run each: the plain bootstrap, whose width is about ±1.96 σ/√n."""
    scores = [np.array([x]) for x in np.random.default_rng(0).normal(size=100)]
    estimate = bootstrap_mean(scores)
    expected = 2 * 1.96 * np.std([s[0] for s in scores]) / 10
    assert estimate.high - estimate.low == pytest.approx(expected, rel=0.1)


def test_bootstrap_also_has_the_spread_of_runs():
    """Sequences alike, runs not: resampling sequences alone would promise certainty."""
    runs = np.tile([0.0, 1.0], 5)
    estimate = bootstrap_mean([runs] * 4)
    expected = 2 * 1.96 * 0.5 / np.sqrt(40)
    assert estimate.high - estimate.low == pytest.approx(expected, rel=0.15)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        levels = generator.normal(0.5, 0.1, size=20)
        scores = [level + generator.normal(0, 0.1, size=6) for level in levels]
        estimate = bootstrap_mean(scores, trial)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 85 <= covered <= 100


def test_paired_differences():
    generator = np.random.default_rng(0)
    first = [generator.random(4) for _ in range(6)]
    same = paired_difference(first, first)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    # What makes a run hard for both cancels.
    shifted = paired_difference(first, [runs - 0.1 for runs in first])
    assert (shifted.mean, shifted.low, shifted.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="same runs"):
        paired_difference(first, first[:-1])


def test_bootstrap_needs_runs():
    with pytest.raises(ValueError, match="at least one sequence"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="a run in each"):
        bootstrap_mean([np.array([1.0]), np.array([])])


def test_what_turned_an_odd_number_of_quarters_keeps_its_sides():
    boxes = np.array([[80.0, 60, 40, 20, 0.5 * t] for t in range(40)])
    spinning = VideoSequence("spinning", 40, lambda t: FRAME, given_boxes=boxes)
    for start in range(40):
        box = first_box(spinning, start, upright=False)
        assert rotated_iou(box, boxes[start]) > 0.999


def test_limits_are_compared_with_those_of_the_same_frames():
    scores = one_pass(OracleTracker, moving(), start=3).scores
    assert scores["axis_aligned"].ao == pytest.approx(1)


def test_upright_trackers_are_started_upright_in_sre():
    mask = np.zeros((120, 160), dtype=np.uint8)
    cv2.fillPoly(mask, [np.array([[20, 20], [100, 60], [90, 80], [10, 40]])], 1)
    sequence = VideoSequence("mask", 2, lambda t: FRAME, lambda t: mask != 0)
    runs = run_protocol("sre", lambda s, t: Upright(), sequence)
    assert all(run.boxes[0, 4] == 0 for run in runs)


def test_what_a_tracker_does_for_its_bounds_is_timed(monkeypatch):
    clock = Clock(monkeypatch)
    assert one_pass(clock.tracker(bounds=0.5), moving()).seconds == 10 * 0.5


def test_masks_are_kept_as_they_were():
    class Overwriting(StaticTracker):
        mask = np.zeros((120, 160), dtype=bool)

        def update(self, frame):
            self.mask[:] = True
            return super().update(frame)

    run = one_pass(lambda s, t: Overwriting(), moving(), keep_masks=True)
    assert not run.masks[0].any()
    assert run.masks[1].all()
