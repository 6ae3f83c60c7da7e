"""``BMVTrack-v0`` as Gymnasium, Stable-Baselines3 and a user with odd actions see it."""

import math
import subprocess
import sys
from functools import partial
from multiprocessing import get_all_start_methods
from pathlib import Path
from textwrap import dedent

import gymnasium as gym
import numpy as np
import pytest
from environments import true_motion
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation, RecordVideo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import bmvtrack  # noqa: F401  (registers the environment)
from bmvtrack import geometry
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence, synthetic_sequences
from bmvtrack.errors import UserError
from bmvtrack.iou import bounds_iou, rotated_iou
from bmvtrack.motion import AT_REST, COORDINATES, Coordinates, apply, solve
from bmvtrack.perception import Perception
from envs import WhitenedActions
from envs.bmvtrack_env import BMVTrackEnv
from envs.state import ACTION_BOUNDS, action_space, move


@pytest.fixture(scope="module")
def sequences() -> list[VideoSequence]:
    return [sequence.in_memory() for sequence in synthetic_sequences(3, seed=77)]


@pytest.fixture
def env(sequences: list[VideoSequence], perception: Perception) -> BMVTrackEnv:
    return BMVTrackEnv(sequences, perception, clip_length=6, render_mode="rgb_array")


def vanishing(length: int = 8, present: tuple[int, ...] = (0, 1)) -> VideoSequence:
    """A square that is there in some frames only."""

    def frame(t: int) -> np.ndarray:
        return np.full((60, 80, 3), 90, np.uint8)

    def mask(t: int) -> np.ndarray:
        result = np.zeros((60, 80), bool)
        if t in present:
            result[20:40, 30:50] = True
        return result

    return VideoSequence("vanishing", length, frame, mask)


def test_importing_bmvtrack_does_not_import_torch() -> None:
    code = "import sys, bmvtrack; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_checkers_of_gymnasium_and_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # human mode is checked as well
    bare = gym.make("BMVTrack-v0", render_mode="rgb_array").unwrapped
    check_env(bare)
    check_env_sb3(bare)


def test_same_seed_same_clip(perception: Perception) -> None:
    def rollout() -> list[float]:
        env = gym.make("BMVTrack-v0", weights=perception)
        observation, _ = env.reset(seed=5)
        env.action_space.seed(5)
        values = [float(v) for v in observation["prior_mean"]]
        for _ in range(5):
            observation, reward, *_ = env.step(env.action_space.sample())
            values += [reward, *map(float, observation["features"])]
        return values

    assert rollout() == rollout()


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="processes cannot be forked")
def test_forked_environments_do_not_wait_for_threads_of_their_parent() -> None:
    """And forked processes keep their threads as long as no encoder is loaded."""
    program = f"""
        import os, gymnasium as gym, torch, bmvtrack, envs.bmvtrack_env
        torch.set_num_threads(2)
        child = os.fork()
        if not child:
            os._exit(torch.get_num_threads())
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        many = gym.make_vec(
            "BMVTrack-v0", 2, "async", weights={DEFAULT_WEIGHTS!r}, vector_kwargs={{"context": "fork"}}
        )
        many.reset_async(seed=0)
        many.reset_wait(timeout=100)
        many.close()
    """
    command = [sys.executable, "-c", dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


def test_bare_environment_makes_new_sequences(perception: Perception) -> None:
    env = BMVTrackEnv(weights=perception)
    names = {env.reset(seed=1 if i == 0 else None)[1]["sequence"] for i in range(3)}
    assert len(names) == 3


def test_a_sequence_is_chosen_by_index_or_name_and_a_new_one_by_its_seed(
    env: BMVTrackEnv, sequences: list[VideoSequence], perception: Perception
) -> None:
    for i, sequence in enumerate(sequences):
        for wanted in (i, sequence.name):
            _, info = env.reset(options={"sequence": wanted, "start": 3})
            assert (info["sequence"], info["frame"]) == (sequence.name, 3)
    new = BMVTrackEnv(weights=perception)
    assert new.reset(options={"sequence": 77})[1]["sequence"] == synthetic_sequence(77).name
    with pytest.raises(UserError, match=r"by number \(the seed\), not by name"):
        new.reset(options={"sequence": sequences[0].name})


@pytest.mark.parametrize("coordinates", ["frame", "object"])
def test_true_motion_has_reward_one(
    sequences: list[VideoSequence], perception: Perception, coordinates: str
) -> None:
    env = BMVTrackEnv(sequences, perception, coordinates=coordinates, clip_length=10)
    env.reset(seed=0, options={"sequence": 0, "start": 0})
    low, high = ACTION_BOUNDS[coordinates]
    for _ in range(10):
        action = true_motion(env)
        assert (action > low).all()
        assert (action < high).all()
        *_, info = env.step(action.astype(np.float32))
        assert info["iou"] > 0.999


@pytest.mark.parametrize("reward", ["rotated", "axis_aligned"])
def test_reward_is_the_iou_named(
    sequences: list[VideoSequence], perception: Perception, reward: str
) -> None:
    env = BMVTrackEnv(sequences, perception, reward=reward)
    observation, _ = env.reset(seed=2)
    _, value, _, _, info = env.step(observation["prior_mean"])
    expected = {
        "rotated": rotated_iou(info["rbbox"], info["truth"]),
        "axis_aligned": bounds_iou(geometry.bounds(info["rbbox"]), geometry.bounds(info["truth"])),
    }
    assert value == pytest.approx(float(expected[reward]))


def test_clip_is_truncated_at_its_length_and_at_the_end(env: BMVTrackEnv) -> None:
    env.reset(seed=0, options={"sequence": 1, "start": 0})
    ends = [env.step(true_motion(env))[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(False, True)]
    env.reset(options={"sequence": 1, "start": len(env.source.sequences[1]) - 2})
    assert env.step(true_motion(env))[2:4] == (False, True)


def test_lost_for_good_terminates(sequences: list[VideoSequence], perception: Perception) -> None:
    env = BMVTrackEnv(sequences, perception, lost_after=3)
    env.reset(seed=0, options={"sequence": 0, "start": 0})
    away = np.array([0.1, 0.1, 0, 0.9, 1.4], np.float32)
    ends = [env.step(away)[2] for _ in range(3)]
    assert ends == [False, False, True]


def test_a_frame_without_object_is_not_scored(perception: Perception) -> None:
    env = BMVTrackEnv([vanishing()], perception, lost_after=1)
    env.reset(seed=0, options={"sequence": 0, "start": 1})
    for _ in range(6):
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
        assert (reward, terminated) == (0.0, False)
        assert np.isnan(info["iou"])
        assert all(np.isfinite(value).all() for value in observation.values())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays(np.float32, (4, 5), elements=st.floats(width=32, allow_nan=False)))
def test_any_action_gives_finite_values(env: BMVTrackEnv, actions: np.ndarray) -> None:
    env.reset(seed=0)
    for action in actions:
        observation, reward, *_ = env.step(action)
        assert env.observation_space.contains(observation)
        assert all(np.isfinite(value).all() for value in observation.values())
        assert 0 <= reward <= 1


def test_nan_is_refused_by_name(env: BMVTrackEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match="NaN in sin θ"):
        env.step(np.array([1, 1, np.nan, 0, 0], np.float32))
    with pytest.raises(ValueError, match="five numbers"):
        env.step(np.zeros(4, np.float32))


def test_step_needs_a_reset(env: BMVTrackEnv) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.ones(5, np.float32))


def test_rendering_shows_the_frame_and_boxes(env: BMVTrackEnv) -> None:
    env.reset(seed=0)
    observation, *_ = env.step(true_motion(env))
    picture = env.render()
    frame = env.sequence.frame(env.frame_index)
    assert picture.shape == frame.shape
    assert picture.dtype == np.uint8
    assert 0.005 < (picture != frame).any(axis=-1).mean() < 0.9
    assert observation["prior_mean"].shape == (5,)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_record_video(env: BMVTrackEnv, tmp_path: Path) -> None:
    recorded = RecordVideo(env, str(tmp_path), episode_trigger=lambda _: True)
    recorded.reset(seed=0)
    for _ in range(6):
        recorded.step(true_motion(env))
    recorded.close()
    assert [path.suffix for path in tmp_path.glob("*.mp4")] == [".mp4"]


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_actions_are_clipped_to_the_bounds(coordinates: Coordinates) -> None:
    """Each parameter on either side: the box is one that no bound takes too far out of the frame."""
    box = np.array([25.0, 25.0, 20.0, 12.0, 0.1])
    bounds, space = ACTION_BOUNDS[coordinates], action_space(coordinates)
    np.testing.assert_allclose([space.low, space.high], bounds, rtol=1e-6)
    for limits, beyond in zip(bounds, (-10, 10), strict=True):
        for i, limit in enumerate(limits):
            action = np.array(AT_REST)  # the same in either coordinates
            action[i] = limit
            expected = apply(box, action, 80, 60, coordinates)
            for further in (0, beyond, math.copysign(math.inf, beyond)):
                action[i] = limit + further
                found, told = move(box, action, 80, 60, coordinates)
                np.testing.assert_allclose(found, expected, rtol=1e-12)
                unclipped = solve(box, expected, 80, 60, "object")
                np.testing.assert_allclose(told, unclipped, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinates": "polar"}, "coordinates must be one of"),
        ({"reward": "giou"}, "reward must be one of"),
        ({"clip_length": 0}, "clip_length must be at least 1"),
        ({"clip_length": 2.5}, "clip_length must be at least 1 and an integer, not 2.5"),
        ({"sequences": 3}, "a list of VideoSequence, or data by name, .* not int"),
        ({"lost_after": 1.5}, "lost_after must be at least 1 and an integer, not 1.5"),
        ({"render_mode": "ascii"}, "render_mode must be one of"),
        ({"sequences": "nothing:here"}, "unknown data"),
        ({"sequences": []}, "nothing to track"),
        ({"sequences": Path("DAVIS")}, "data by name, like davis16:FOLDER, not PosixPath"),
        ({"sequences": [np.zeros((2, 9, 9, 3))]}, "a list of VideoSequence, or data by name"),
        ({"weights": "no-such-weights"}, "no weights"),
    ],
)
def test_bad_arguments_are_refused(
    perception: Perception, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        BMVTrackEnv(**({"weights": perception} | arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence": 9}, "no sequence 9"),
        ({"sequence": 0, "start": 29}, "cannot start"),
        ({"seq": 0}, "unknown options of reset: seq; it takes sequence and start"),
        ({"start": 2.0}, "the option start of reset must be an integer, not 2.0"),
        ({"start": True}, "must be an integer, not True"),
        ({"sequence": [1]}, r"the option sequence of reset must be an integer, not \[1\]"),
    ],
)
def test_bad_reset_options_are_refused(
    env: BMVTrackEnv, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        env.reset(options=options)


def test_frames_of_another_size_are_refused(perception: Perception) -> None:
    def growing(t: int) -> np.ndarray:
        return np.zeros((60 * (1 + t), 80 * (1 + t), 3), np.uint8)

    boxes = np.tile([40.0, 30, 20, 10, 0], (3, 1))
    env = BMVTrackEnv([VideoSequence("odd", 3, growing, given_boxes=boxes)], perception)
    with pytest.raises(UserError, match="sequence 'odd', frame 1: it is 160×120"):
        env.reset(seed=0)


def test_sequences_that_cannot_be_started(perception: Perception) -> None:
    env = BMVTrackEnv([vanishing(present=())], perception)
    with pytest.raises(UserError, match="no sequence has an object"):
        env.reset(seed=0)


def test_make_by_name_with_arguments(perception: Perception) -> None:
    make = partial(gym.make, "BMVTrack-v0", weights=perception)
    translations = {"frame": (0.9, 1.4), "object": (1.8, 0.9)}  # as the docstring says
    for coordinates, most in translations.items():
        space = make(coordinates=coordinates).action_space
        assert space.high == pytest.approx([4.6, 4.6, 0.8, *most])
        assert space.low == pytest.approx([0.1, 0.1, -0.8, *(-m for m in most)])
    assert make(clip_length=3).unwrapped.source.length == 3


def test_nothing_moves_after_the_last_frame(env: BMVTrackEnv) -> None:
    env.reset(options={"sequence": 0, "start": 28})
    env.step(np.array(AT_REST, np.float32))
    before = env.rbbox.copy()
    with pytest.raises(gym.error.ResetNeeded, match="the sequence has ended"):
        env.step(np.array([1, 1, 0, 0.2, 0.2], np.float32))
    assert (env.rbbox == before).all()


def test_windows_are_closed_each_for_itself(
    sequences: list[VideoSequence], perception: Perception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    first, second = (BMVTrackEnv(sequences, perception, render_mode="human") for _ in range(2))
    for env in (first, second):
        env.reset(seed=0)
    first.close()
    second.step(np.array(AT_REST, np.float32))
    second.close()


@pytest.mark.parametrize("coordinates", ["frame", "object"])
def test_whitened_actions_are_in_units_of_the_prior(
    sequences: list[VideoSequence], perception: Perception, coordinates: str
) -> None:
    make = partial(gym.make, "BMVTrack-v0", sequences=sequences, weights=perception)
    plain, whitened = make(coordinates=coordinates), WhitenedActions(make(coordinates=coordinates))
    observation, _ = plain.reset(seed=3)
    same, _ = whitened.reset(seed=3)
    rng = np.random.default_rng(0)
    for u in (np.zeros(5), *rng.normal(size=(3, 5))):
        factor = np.zeros((5, 5))
        factor[np.tril_indices(5)] = observation["prior_cholesky"]
        motion = (observation["prior_mean"] + factor @ u).astype(np.float32)
        observation, reward, *_ = plain.step(motion)
        same, other, *_ = whitened.step(u.astype(np.float32))
        assert other == pytest.approx(reward, abs=1e-4)
        np.testing.assert_allclose(same["box"], observation["box"], atol=1e-4)


def test_whitened_actions_are_kept_in_their_bounds(env: BMVTrackEnv) -> None:
    whitened = WhitenedActions(env, reach=2)
    boxes = []
    for u in (2.0, 100.0):
        observation, _ = whitened.reset(seed=0)
        observation["prior_mean"][:] = np.nan  # the caller's own
        boxes.append(whitened.step(np.full(5, u, np.float32))[4]["rbbox"])
    np.testing.assert_array_equal(*boxes)
    for wrong in (np.zeros(4), np.zeros((1, 5)), np.full(5, np.nan)):
        with pytest.raises(ValueError, match=r"five numbers|is NaN in"):
            whitened.step(wrong.astype(np.float32))


def test_a_target_may_never_be_lost(sequences: list[VideoSequence], perception: Perception) -> None:
    env = BMVTrackEnv(iter(sequences), perception, lost_after=math.inf, clip_length=4)
    env.reset(seed=0)
    assert not any(env.step(np.float32([1, 1, 0, 0.9, 1.4]))[2] for _ in range(4))


def test_whitened_actions_need_the_prior(env: BMVTrackEnv) -> None:
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        WhitenedActions(env).step(np.zeros(5, np.float32))
    with pytest.raises(UserError, match="put WhitenedActions around BMVTrack-v0 itself"):
        WhitenedActions(FlattenObservation(env))
    with pytest.raises(UserError, match="reach must be positive, not 0"):
        WhitenedActions(env, reach=0)
    assert WhitenedActions(env, reach=2).action_space.high == pytest.approx([2] * 5)
