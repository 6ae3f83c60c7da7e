"""The public tracker: boxes in any form, several objects at once, mistakes said plainly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.storage import make_actor, save_actor
from bmvtrack import geometry
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.inputs import corner_and_size, rotated_box
from bmvtrack.masks import mask_in_frame
from bmvtrack.models import Template
from bmvtrack.motion import AT_REST, apply, solve
from bmvtrack.movers import move_by_both, move_by_mask, move_by_posterior
from bmvtrack.percept import Percept
from bmvtrack.perception import BoxedFrames, Perception
from bmvtrack.tracker import Result, Tracker, confidence
from bmvtrack.tracking.learned import PerceptionTracker


@pytest.fixture(scope="module")
def sequence() -> VideoSequence:
    return synthetic_sequence(8).in_memory()


@pytest.fixture
def tracker(perception: Perception) -> Tracker:
    return Tracker(perception, move_by_posterior)


def follow(tracker: Tracker, sequence: VideoSequence, count: int = 4) -> list[Result]:
    tracker.init(sequence.frame(0), sequence.boxes[0])
    return [tracker.update(sequence.frame(t)) for t in range(1, count + 1)]


def test_it_is_the_tracker_that_evaluations_judge(
    tracker: Tracker, perception: Perception, sequence: VideoSequence
) -> None:
    for same in (tracker, Tracker(perception)):
        judged = PerceptionTracker(Tracker(perception, same._mover))
        assert_judged(judged, same, sequence)


def assert_judged(judged: PerceptionTracker, same: Tracker, sequence: VideoSequence) -> None:
    judged.init(sequence.frame(0), sequence.boxes[0])
    assert np.isnan(judged.mahalanobis(sequence.boxes[0]))
    for t, result in enumerate(follow(same, sequence), start=1):
        assert (judged.update(sequence.frame(t)) == result.rbbox).all()
        assert (judged.axis_aligned(result.rbbox) == result.limits).all()
        assert (judged.mask == result.mask).all()
        true = sequence.boxes[t]
        assert judged.mahalanobis(true) == result.mahalanobis(true)


def test_a_result_says_where_and_how_sure(
    tracker: Tracker, perception: Perception, sequence: VideoSequence
) -> None:
    before, (result, *_) = sequence.boxes[0], follow(tracker, sequence)
    width, height = sequence.size
    percept = perception.look(sequence.frame(1), before)
    assert (result.previous == before).all()
    np.testing.assert_allclose(result.mean, percept.mean[0], rtol=1e-6)
    np.testing.assert_allclose(result.covariance, percept.covariance[0], rtol=1e-5)
    moved = apply(before, result.mean, width, height, "object")
    np.testing.assert_allclose(result.rbbox, geometry.clamp(moved, width, height))
    # The posterior's centre is that of the box it moves, with its covariance in pixels.
    np.testing.assert_allclose(result.centre, result.rbbox[:2])
    unit = before[2] * before[3]
    np.testing.assert_allclose(result.centre_covariance, unit * result.covariance[3:, 3:])
    expected = mask_in_frame(percept.probabilities[0], percept.windows[0], width, height)
    assert (result.mask == expected).all()
    assert result.mask.shape == (height, width)
    np.testing.assert_allclose(corner_and_size(result.limits), result.box)


def test_the_distance_of_a_box_is_that_of_its_motion_in_units_of_the_posterior(
    tracker: Tracker, sequence: VideoSequence
) -> None:
    (result, *_) = follow(tracker, sequence)
    assert result.mahalanobis(geometry.clamp(result.rbbox, *sequence.size)) < 1e-9
    true = sequence.boxes[1]
    motion = solve(result.previous, true, *sequence.size, "object")
    density = torch.distributions.MultivariateNormal(
        torch.from_numpy(result.mean).double(), torch.from_numpy(result.covariance).double()
    )
    peak, there = density.log_prob(torch.from_numpy(np.stack([result.mean, motion])))
    expected = 2 * (peak - there)
    for turns in range(-2, 4):
        same_box = geometry.relabel(true, np.array(turns))
        assert result.mahalanobis(same_box) == pytest.approx(float(expected), rel=1e-6)
    assert np.isnan(result.mahalanobis(np.full(5, np.nan)))


def test_the_score_falls_with_the_mask_and_with_the_spread(
    perception: Perception, sequence: VideoSequence
) -> None:
    percept = perception.look(sequence.frame(1), sequence.boxes[:1])
    inside = percept.probabilities[percept.probabilities > 0.5]
    variances = percept.covariance[0].diagonal()[3:]
    expected = inside.mean() * torch.exp(-variances.sum().sqrt())
    assert confidence(percept)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    without_mask = percept.geometry.clone()
    without_mask[:, 6] = 0
    object.__setattr__(percept, "geometry", without_mask)
    assert confidence(percept)[0] == 0


def test_several_objects_take_one_pass_and_do_not_disturb_each_other(
    perception: Perception, sequence: VideoSequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    see = Perception.__call__

    def counted(self: Perception, boxed: BoxedFrames, template: Template | None) -> Percept:
        passes.append(len(boxed))
        return see(self, boxed, template)

    boxes = {7: sequence.boxes[0], 3: sequence.boxes[0] + np.array([25, -12, 8, 5, 0.3])}
    alone = {}
    for object_id, box in boxes.items():
        single = Tracker(perception)
        single.init(sequence.frame(0), box)
        alone[object_id] = [single.update(sequence.frame(t)) for t in (1, 2, 3)]
    monkeypatch.setattr(Perception, "__call__", counted)
    together = Tracker(perception)
    for object_id, box in boxes.items():
        together.init(sequence.frame(0), box, object_id)
    for i, t in enumerate((1, 2, 3)):
        results = together.update_all(sequence.frame(t))
        assert list(results) == [7, 3]
        for object_id, result in results.items():
            expected = alone[object_id][i]
            np.testing.assert_allclose(result.rbbox, expected.rbbox, rtol=1e-4, atol=1e-2)
            assert result.score == pytest.approx(expected.score, abs=1e-3)
    assert passes == [2, 2, 2]
    with pytest.raises(UserError, match="2 objects are followed: call update_all"):
        together.update(sequence.frame(1))


def test_bgr_frames_are_rgb_frames_backwards(
    perception: Perception, sequence: VideoSequence
) -> None:
    expected = follow(Tracker(perception), sequence)
    tracker = Tracker(perception, colour="bgr")
    tracker.init(sequence.frame(0)[..., ::-1], sequence.boxes[0])
    for t, result in enumerate(expected, start=1):
        assert (tracker.update(sequence.frame(t)[..., ::-1]).rbbox == result.rbbox).all()
    with pytest.raises(UserError, match="'rgb', 'bgr'"):
        Tracker(perception, colour="grey")


def test_the_frame_is_left_alone(tracker: Tracker, sequence: VideoSequence) -> None:
    frame = sequence.frame(1).copy()
    frame.flags.writeable = False
    tracker.init(frame, sequence.boxes[0])
    tracker.update(frame)
    assert (frame == sequence.frame(1)).all()


def test_init_starts_anew(tracker: Tracker, sequence: VideoSequence) -> None:
    first = follow(tracker, sequence)
    second = follow(tracker, sequence)
    assert all((a.rbbox == b.rbbox).all() for a, b in zip(first, second, strict=True))
    smaller = np.ascontiguousarray(sequence.frame(0)[:-10])
    tracker.init(smaller, sequence.boxes[0])
    assert tracker.update(smaller).mask.shape == smaller.shape[:2]


def test_a_mask_starts_with_its_rotated_box(tracker: Tracker, sequence: VideoSequence) -> None:
    mask = sequence.mask(0)
    for given_mask in (mask, mask.astype(np.uint8) * 255, mask.astype(np.int64)):
        assert (rotated_box(given_mask, *sequence.size) == geometry.from_mask(mask)).all()
    tracker.init(sequence.frame(0), mask)
    assert (tracker.update(sequence.frame(1)).previous == geometry.from_mask(mask)).all()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 20), r"a mask \(H, W\), not an array of shape \(3,\)"),
        ((10, 10, 20, float("nan")), "must be finite: 10, 10, 20, nan"),
        ((10, 10, float("inf"), 20), "must be finite"),
        ((10, 10, 0, 20), "the box 10, 10, 0, 20 is less than a pixel wide or high"),
        ((10, 10, -5, 20, 0.1), "less than a pixel"),
        ((500, 10, 20, 20), "outside the frame"),
        ((-30, 10, 20, 20), "outside the frame"),
        ((100, 290, 20, 20, 0.7), "outside the frame"),
        ("here", r"a mask \(H, W\), not 'here'"),
        (None, "x, y, w, h"),
        (
            (100, 100, 20, 20, 45),
            "the angle of a box must be in radians, within one turn: 100, 100, 20, 20, 45",
        ),
        (np.zeros((240, 320), dtype=bool), "the mask is empty"),
        (np.ones((24, 32), dtype=bool), "the mask is 32×24 but the frame is 320×240"),
        (np.ones((240, 320)), "boolean or integer, not float64"),
        (np.ones((2, 2, 2)), "array of shape"),
        ([(10, 10, 20, 20), (50, 50, 9, 9)], "pass one box at a time, not 2"),
    ],
)
def test_wrong_boxes_are_refused(tracker: Tracker, box: object, message: str) -> None:
    frame = np.zeros((240, 320, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=message):
        tracker.init(frame, box)
    with pytest.raises(UserError, match="nothing to follow yet"):
        tracker.update(frame)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame[..., 0], r"\(H, W, 3\), not \(240, 320\)"),
        (lambda frame: np.dstack([frame, frame[..., :1]]), r"not \(240, 320, 4\)"),
        (lambda frame: frame[:0], r"not \(0, 320, 3\)"),
        (lambda frame: frame / 255, "uint8, 0 to 255, not float64"),
        (lambda frame: frame.tolist(), "a NumPy array, not list"),
        (lambda frame: None, "a NumPy array, not NoneType"),
    ],
)
def test_wrong_frames_are_refused(
    tracker: Tracker, spoil: Callable[[np.ndarray], object], message: str
) -> None:
    frame = np.zeros((240, 320, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=message):
        tracker.init(spoil(frame), (10, 10, 20, 20))
    tracker.init(frame, (10, 10, 20, 20))
    with pytest.raises(UserError, match=message):
        tracker.update(spoil(frame))


def test_all_frames_have_one_size(tracker: Tracker) -> None:
    frame, smaller = (np.zeros((height, 320, 3), dtype=np.uint8) for height in (240, 200))
    tracker.init(frame, (10, 10, 20, 20))
    with pytest.raises(UserError, match="320×200 but the first one was 320×240"):
        tracker.update(smaller)
    with pytest.raises(UserError, match="other objects are followed in frames of 320×240"):
        tracker.init(smaller, (10, 10, 20, 20), object_id=2)


def test_load_takes_the_agent_where_there_is_one_and_else_goes_halfway(
    perception: Perception, sequence: VideoSequence, tmp_path: Path
) -> None:
    def loaded() -> np.ndarray:
        """The box after one frame, which does not depend on the order of its channels."""
        backwards = Tracker.load(tmp_path, colour="bgr")
        backwards.init(sequence.frame(0)[..., ::-1], sequence.boxes[0])
        box = backwards.update(sequence.frame(1)[..., ::-1]).rbbox
        np.testing.assert_allclose(follow(Tracker.load(tmp_path), sequence, 1)[0].rbbox, box)
        return box

    perception.network.save_weights(tmp_path, half=False)
    halfway = follow(Tracker(perception, move_by_both), sequence, 1)[0].rbbox
    np.testing.assert_allclose(loaded(), halfway)
    torch.manual_seed(1)
    actor = make_actor("latent-prior", "object", perception.feature_count, [16])
    with torch.no_grad():
        actor.head.shift.bias.fill_(0.5)
    save_actor(actor, "latent-prior", "object", tmp_path)
    assert not np.allclose(loaded(), halfway)
    (tmp_path / "agent.safetensors").unlink()
    with pytest.raises(UserError, match=r"agent\.safetensors is missing"):
        Tracker.load(tmp_path)


def test_bundled_weights_for_video_load_by_default(sequence: VideoSequence) -> None:
    result = follow(Tracker.load(), sequence, 1)[0]
    assert 0 < result.score < 1
    with pytest.raises(UserError, match="no weights 'nowhere'"):
        Tracker.load("nowhere")


def test_halfway_lies_between_the_posterior_and_the_mask(
    perception: Perception, sequence: VideoSequence
) -> None:
    box = sequence.boxes[0]
    percept = perception.look(sequence.frame(1), box)
    boxes, rest = torch.from_numpy(box[None]), torch.tensor([AT_REST], dtype=torch.float64)
    sizes = torch.tensor([sequence.size])
    by_posterior, by_mask, by_both = (
        geometry.nearest_label(move(percept, boxes, rest, sizes), boxes)[0]
        for move in (move_by_posterior, move_by_mask, move_by_both)
    )
    assert not torch.allclose(by_posterior, by_mask)
    torch.testing.assert_close(by_both[:2], (by_posterior[:2] + by_mask[:2]) / 2)
    torch.testing.assert_close(by_both[2:4].square(), by_posterior[2:4] * by_mask[2:4])
    low, high = sorted([float(by_posterior[4]), float(by_mask[4])])
    assert low - 1e-9 <= float(by_both[4]) <= high + 1e-9


def test_what_is_done_to_a_result_does_not_move_the_tracker(
    tracker: Tracker, sequence: VideoSequence
) -> None:
    expected = [result.rbbox.copy() for result in follow(tracker, sequence)]
    tracker.init(sequence.frame(0), sequence.boxes[0])
    for t, box in enumerate(expected, start=1):
        result = tracker.update(sequence.frame(t))
        assert (result.rbbox == box).all()
        np.multiply(result.rbbox, 0.5, out=result.rbbox)


def test_an_object_that_cannot_be_started_leaves_the_others_as_they_are(
    tracker: Tracker,
    sequence: VideoSequence,
    perception: Perception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    tracker.init(sequence.frame(0), sequence.boxes[0])
    with monkeypatch.context() as patch:
        patch.setattr(perception, "remember", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            tracker.init(sequence.frame(0), sequence.boxes[0], object_id=2)
    assert tracker.update(sequence.frame(1)).rbbox.shape == (5,)


def test_a_mask_changes_a_side_by_a_quarter_at_most_and_none_changes_nothing(
    perception: Perception, sequence: VideoSequence
) -> None:
    box = sequence.boxes[:1]
    percept = perception.look(sequence.frame(1), box)
    boxes, rest = torch.from_numpy(box), torch.tensor([AT_REST], dtype=torch.float64)
    nothing, everything = (torch.full_like(percept.probabilities, x) for x in (0.0, 1.0))
    speck = nothing.clone()
    speck[:, 30:34, 30:34] = 1
    for probabilities, factor in ((nothing, 1), (everything, 1.25), (speck, 1 / 1.25)):
        seen = replace(percept, probabilities=probabilities)
        moved = move_by_mask(seen, boxes, rest, torch.tensor([sequence.size]))
        torch.testing.assert_close(moved[:, 2:4], factor * boxes[:, 2:4])
        if factor == 1:
            assert torch.equal(moved, boxes)


def test_movers_are_told_the_motion_before(perception: Perception, sequence: VideoSequence) -> None:
    told: list[np.ndarray] = []

    def mover(percept: Percept, boxes: torch.Tensor, before: torch.Tensor, _: Any) -> torch.Tensor:
        told.append(before[0].numpy())
        return boxes + torch.tensor([4.0, -2, 0, 0, 0.1])

    tracker = Tracker(perception, mover)
    follow(tracker, sequence, 2)
    follow(tracker, sequence, 1)  # anew
    unit = np.sqrt(sequence.boxes[0, 2:4].prod())
    moved = [1, 1, np.sin(0.1), 4 / unit, -2 / unit]
    np.testing.assert_allclose(told, [AT_REST, moved, AT_REST], atol=1e-6)


def test_no_mover_takes_a_box_far_out_of_the_frame(
    perception: Perception, sequence: VideoSequence
) -> None:
    tracker = Tracker(perception, lambda percept, boxes, *_: boxes + 1000)
    tracker.init(sequence.frame(0), sequence.boxes[0])
    found = tracker.update(sequence.frame(1)).rbbox
    np.testing.assert_allclose(found, geometry.clamp(sequence.boxes[0] + 1000, *sequence.size))
    np.testing.assert_allclose(found[:2], 2 * np.array(sequence.size))


def test_limits_are_cut_at_the_threshold_of_the_weights(
    tracker: Tracker, sequence: VideoSequence
) -> None:
    """Probabilities that rise along x: the first column over the threshold is where the limits begin."""
    (result,) = follow(tracker, sequence, 1)
    size = len(result.probabilities)
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size
    left, _, right, _ = result.window
    pixel = (right - left) / size
    middle = (result.rbbox[0] - left) / (right - left)
    for above in (middle - 0.05, middle, middle + 0.05):
        probabilities = np.tile(ramp, (size, 1))
        cut = replace(result, probabilities=probabilities, box_threshold=float(above))
        first = left + pixel * np.flatnonzero(ramp > above)[0]
        assert cut.limits[0] == pytest.approx(first)
        assert cut.limits[2] == pytest.approx(geometry.bounds(result.rbbox)[2], abs=1.5 * pixel)
