"""Many clips stepped together: the same as one at a time, and what a vector environment promises."""

from dataclasses import replace

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import AWAY, follow, of_three_sizes, sequence, true_motion
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector

import bmvtrack  # noqa: F401
from bmvtrack import geometry
from bmvtrack.data import frame_cache
from bmvtrack.data.davis import load_davis16
from bmvtrack.data.frame_cache import FrameCache, make_frame_cache
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.motion import AT_REST
from envs import BMVTrackEnv, BMVTrackVectorEnv, ToNumpy
from envs.clips import ClipSource


@pytest.fixture(scope="module")
def sequences():
    return of_three_sizes()


@pytest.mark.parametrize("coordinates", ["frame", "object"])
@pytest.mark.parametrize("reward", ["rotated", "axis_aligned"])
def test_one_equals_the_single_environment(sequences, perception, coordinates, reward):
    arguments = {
        "sequences": sequences,
        "weights": perception,
        "clip_length": 7,
        "coordinates": coordinates,
        "reward": reward,
        "lost_after": 3,
    }
    rng = np.random.default_rng(0)
    ends, _ = follow(BMVTrackEnv(**arguments), BMVTrackVectorEnv(1, **arguments), rng, 30)
    assert ends > 3


def test_one_equals_the_single_environment_on_real_frames(shared_data, perception):
    sequences = load_davis16(shared_data / "davis16-train-360p", "train")[:3]
    arguments = {"sequences": sequences, "weights": perception, "clip_length": 6}
    rng = np.random.default_rng(0)
    ends, _ = follow(BMVTrackEnv(**arguments), BMVTrackVectorEnv(1, **arguments), rng, 14)
    assert ends > 1


def test_each_of_many_equals_the_single_environment(sequences, perception):
    arguments = {"sequences": sequences, "weights": perception, "clip_length": 5}
    rng = np.random.default_rng(1)
    follow(BMVTrackEnv(**arguments), BMVTrackVectorEnv(4, **arguments), rng, 12, i=2)


@pytest.mark.parametrize("clip_length", [3, 8], ids=["cut-short", "lost"])
def test_losses_are_counted_as_by_the_single_environment(sequences, perception, clip_length):
    """Frames without object neither count nor start the count anew; a new clip does."""
    hidden = [replace(s, given_boxes=s.boxes.copy(), read_mask=None) for s in sequences]
    for each in hidden:
        each.given_boxes[2::3] = np.nan
    arguments = {"sequences": hidden, "weights": perception, "lost_after": 4}
    arguments["clip_length"] = clip_length
    rng = np.random.default_rng(2)
    single, many = BMVTrackEnv(**arguments), BMVTrackVectorEnv(3, **arguments)
    ends, losses = follow(single, many, rng, 24, i=1, always=AWAY)
    assert ends > 3
    assert (losses > 0) == (clip_length == 8)


def test_made_by_gymnasium_on_synthetic_sequences():
    many = gym.make_vec(
        "BMVTrack-v0", num_envs=2, vectorization_mode="vector_entry_point", clip_length=2
    )
    assert many.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    observations, _ = many.reset(seed=0)
    first = observations["prior_mean"].clone()
    names = set()
    for _ in range(4):
        observations, rewards, _, _, info = many.step(observations["prior_mean"])
        names.update(info["sequence"])
        assert rewards.shape == (2,)
    assert len(names) > 3, "each clip is of a new sequence"
    assert torch.equal(many.reset(seed=0)[0]["prior_mean"], first)


def test_observations_lie_in_their_space(sequences, perception):
    many = BMVTrackVectorEnv(2, sequences, perception)
    observations, _ = many.reset(seed=0)
    arrays = {name: value.numpy() for name, value in observations.items()}
    assert many.observation_space.contains(arrays)


def test_what_was_handed_out_does_not_change(sequences, perception):
    many = BMVTrackVectorEnv(3, sequences, perception, clip_length=2)
    observations, info = many.reset(seed=0)
    kept = {name: value.clone() for name, value in (observations | {"b": info["rbbox"]}).items()}
    for _ in range(5):
        many.step(observations["prior_mean"])
    for name, value in (observations | {"b": info["rbbox"]}).items():
        assert torch.equal(value, kept[name]), name


def test_true_motion_follows_the_object(sequences, perception):
    many = BMVTrackVectorEnv(4, sequences, perception, clip_length=5, coordinates="object")
    many.reset(seed=0)
    for _ in range(8):
        action = many.true_motion()
        there = action.isfinite().all(dim=1)
        rewards = many.step(action.nan_to_num())[1]
        assert (rewards[there] > 0.98).all()  # all but what the bounds of the action clip


@pytest.mark.parametrize("coordinates", ["frame", "object"])
def test_true_motion_is_to_the_nearest_label_as_in_the_single_environment(
    sequences, perception, coordinates
):
    """Boxes that turn on and on: labels come to lie one quarter turn away, then two."""
    arguments = {"weights": perception, "coordinates": coordinates}
    clips = ClipSource(sequences, 5).spread(3)
    many = BMVTrackVectorEnv(3, clips=clips, **arguments)
    singles = [BMVTrackEnv([clip.sequence], **arguments) for clip in clips]
    many.reset()
    for single, clip in zip(singles, clips, strict=True):
        single.reset(options={"start": clip.start})
    turn = np.float32([1, 1, 0.75, 0, 0])
    quarters = set()
    for _ in range(4):
        expected = np.stack([true_motion(single) for single in singles])
        np.testing.assert_allclose(many.true_motion().numpy(), expected, rtol=1e-6, atol=1e-6)
        for single in singles:
            truth = single.sequence.boxes[single.frame_index + 1]
            near = geometry.nearest_label(truth, single.rbbox)
            quarters.add(round((near[4] - truth[4]) / geometry.QUARTER_TURN))
            single.step(turn)
        many.step(np.tile(turn, (3, 1)))
    assert {0, 1, 2} <= quarters


def test_fixed_clips_are_played_in_turn_after_each_reset(sequences, perception):
    clips = ClipSource(sequences, 2).spread(6)
    many = BMVTrackVectorEnv(2, weights=perception, clips=clips)
    for _ in range(2):
        observations, info = many.reset()
        played = [list(info["sequence"])]
        while len(played) < 3:
            observations, _, _, truncated, info = many.step(observations["prior_mean"])
            if truncated.all():
                played.append(list(info["sequence"]))
        names = [clip.sequence.name for clip in clips]
        assert played == [names[0::3], names[1::3], names[2::3]]


def test_fewer_clips_than_sequences_come_from_all_over_the_list(sequences):
    clips = ClipSource([sequences[0]] * 3 + [sequences[1]] * 3, 4).spread(2)
    assert [clip.sequence.name for clip in clips] == [s.name for s in sequences[:2]]
    assert len({clip.start for clip in clips}) == 1


def test_clips_are_not_spread_over_sequences_that_are_made_as_one_goes():
    with pytest.raises(UserError, match="None means new ones for each clip: give a list"):
        ClipSource(None, 3).spread(2)


def test_actions_that_diverged_are_refused_and_nothing_moves(sequences, perception):
    many = BMVTrackVectorEnv(3, sequences, perception)
    observations, info = many.reset(seed=0)
    actions = observations["prior_mean"].clone()
    actions[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"environments \[1\] contain NaN"):
        many.step(actions)
    moved = many.step(observations["prior_mean"])[4]
    assert (moved["frame"] == info["frame"] + 1).all()
    with pytest.raises(ValueError, match=r"are \(3, 5\) numbers, not of shape \(2, 5\)"):
        many.step(observations["prior_mean"][:2])


def test_gradients_stop_at_the_environment(sequences, perception):
    """Actions may carry some, and what is learned from observations may need some."""
    many = BMVTrackVectorEnv(2, sequences, perception)
    observations, _ = many.reset(seed=0)
    layers = {name: torch.nn.Linear(v.shape[1], 5) for name, v in observations.items()}
    for _ in range(2):
        actions = sum(layers[name](value) for name, value in observations.items())
        observations, *_ = many.step(actions)
        assert not any(value.requires_grad for value in observations.values())
    actions.sum().backward()
    assert all(layer.weight.grad is not None for layer in layers.values())


def test_sequences_of_one_name_show_their_own_frames(sequences, perception):
    namesakes = [replace(s, name="same") for s in sequences[:2]]
    clips = ClipSource(namesakes, 3).spread(2)
    together = BMVTrackVectorEnv(2, weights=perception, clips=clips).reset()[0]["features"]
    for clip, features in zip(clips, together, strict=True):
        alone = BMVTrackVectorEnv(1, weights=perception, clips=[clip]).reset()[0]["features"][0]
        torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-4)


def test_infinite_actions_give_finite_observations(sequences, perception):
    many = BMVTrackVectorEnv(2, sequences, perception, lost_after=2)
    many.reset(seed=0)
    for value in (np.inf, -np.inf) * 3:
        observations, rewards, *_ = many.step(np.full((2, 5), value))
        assert rewards.isfinite().all()
        assert all(value.isfinite().all() for value in observations.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"num_envs": 2, "device": "cuda:7"}, "no CUDA device|cuda:7"),
        ({"num_envs": 2, "coordinates": "polar"}, "coordinates must be one of"),
        ({"num_envs": 2, "reward": "money"}, "reward must be one of"),
        ({"num_envs": 2, "lost_after": 0}, "lost_after must be at least 1"),
        ({"num_envs": 2, "clip_length": 0}, "clip_length must be at least 1"),
        ({"num_envs": 4, "cache_bytes": 100_000}, r"a cache of 100,000 bytes is too small"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        BMVTrackVectorEnv(**arguments)


def test_memory_is_taken_for_the_sequences_there_are(sequences, perception):
    endless = BMVTrackVectorEnv(2, sequences, perception, clip_length=10**12)
    endless.reset(seed=0)
    assert endless.step(np.tile(AT_REST, (2, 1)))[1].shape == (2,)


def test_bad_sequences_and_resets(sequences, perception):
    with pytest.raises(UserError, match="or the clips themselves, not both"):
        BMVTrackVectorEnv(1, sequences, perception, clips=ClipSource(sequences, 2).spread(3))
    with pytest.raises(UserError, match="no sequence has two frames"):
        BMVTrackVectorEnv(2, [sequence(4, length=1)], perception)
    with pytest.raises(UserError, match="3 clips for 4 environments: each plays at least one"):
        BMVTrackVectorEnv(4, weights=perception, clips=ClipSource(sequences, 2).spread(3))
    many = BMVTrackVectorEnv(2, sequences, perception)
    with pytest.raises(gym.error.ResetNeeded):
        many.step(np.zeros((2, 5)))
    with pytest.raises(UserError, match="3 seeds for 2"):
        many.reset(seed=[1, 2, 3])
    with pytest.raises(UserError, match="unknown options of reset: start"):
        many.reset(options={"start": 3})


@pytest.mark.parametrize(
    ("device", "free", "kept"), [("cpu", 10**12, 4), ("cuda", 10**9, 4), ("cuda", 32 * 2**30, 8)]
)
def test_a_cache_takes_what_is_usual(monkeypatch, device, free, kept):
    """4 GiB, and of a large GPU a quarter of what is free."""
    taken = []
    monkeypatch.setattr(frame_cache, "FrameCache", lambda slots, *_: taken.append(slots))
    monkeypatch.setattr(frame_cache, "free_memory", lambda device: free)
    frame = np.zeros((2**9, 2**10, 3), np.uint8)
    long = VideoSequence("long", 10**6, lambda t: frame, None, np.full((10**6, 5), np.nan))
    make_frame_cache([long], 2, None, torch.device(device))
    assert taken == [kept * 2**30 // frame.nbytes]


def test_the_cache_keeps_what_was_used_last_within_its_bytes(sequences):
    frame_bytes = 128 * 100 * 3
    cache = make_frame_cache(sequences, 2, 4 * frame_bytes + 5, torch.device("cpu"))
    assert cache.frames.nbytes == 4 * frame_bytes
    assert cache.nbytes == cache.frames.nbytes + cache.means.nbytes
    reads = []

    def counted(t):
        reads.append(t)
        return sequences[0].frame(t)

    watched = VideoSequence("watched", 9, counted, given_boxes=sequences[0].boxes)
    assert watched.size == (96, 72)
    reads.clear()
    for t in (0, 1, 2, 3, 0, 4, 0, 1):  # 4 takes the room of 1, the one not used for longest
        (slot,) = cache.slots([(watched, t)])
        frame = watched.frame(t)
        reads.pop()
        np.testing.assert_array_equal(cache.frames[slot, :72, :96].numpy(), frame)
        np.testing.assert_allclose(cache.means[slot].numpy(), frame.mean((0, 1)), rtol=1e-5)
    assert reads == [0, 1, 2, 3, 4, 1]


def test_frames_of_one_request_never_displace_each_other(sequences):
    cache = FrameCache(3, 96, 72, torch.device("cpu"))
    first = sequences[0]
    cache.slots([(first, 0), (first, 1), (first, 2)])
    slots = cache.slots([(first, 5), (first, 6), (first, 0)])
    assert len(set(slots)) == 3
    for slot, t in zip(slots, (5, 6, 0), strict=True):
        np.testing.assert_array_equal(cache.frames[slot].numpy(), first.frame(t))


def test_a_frame_larger_than_the_others_of_its_sequence():
    def growing(t):
        return np.zeros((72 + t, 96, 3), np.uint8)

    odd = VideoSequence("odd", 3, growing, given_boxes=np.tile([40.0, 30, 20, 10, 0], (3, 1)))
    cache = make_frame_cache([odd], 1, 10**6, torch.device("cpu"))
    with pytest.raises(UserError, match="sequence 'odd', frame 1: it is 96×73"):
        cache.slots([(odd, 1)])


def test_a_frame_smaller_than_the_others_of_its_sequence():
    """Its slot would show what lay there before beside it."""
    odd = VideoSequence(
        "odd",
        2,
        lambda t: np.zeros((72 - t, 96, 3), np.uint8),
        given_boxes=np.tile([40.0, 30, 20, 10, 0], (2, 1)),
    )
    cache = make_frame_cache([odd], 1, float("inf"), torch.device("cpu"))
    with pytest.raises(UserError, match="frame 1: it is 96×71 but the first frame is 96×72"):
        cache.slots([(odd, 1)])


def test_boxes_in_infos_can_be_written_to(sequences, perception):
    many = BMVTrackVectorEnv(2, sequences, perception, clip_length=4)
    rest = torch.tensor(AT_REST).expand(2, 5)
    many.reset(seed=0)
    expected = many.step(rest)[4]["rbbox"].clone()
    _, info = many.reset(seed=0)
    info["rbbox"] += 100
    assert torch.equal(many.step(rest)[4]["rbbox"], expected)


def test_gymnasium_s_wrappers_work_on_arrays(sequences, perception):
    environment = ToNumpy(BMVTrackVectorEnv(2, sequences, perception, clip_length=3))
    counted = vector.RecordEpisodeStatistics(environment)
    observations, _ = counted.reset(seed=0)
    total, ends = np.zeros(2), 0
    for _ in range(7):
        observations, reward, _, _, info = counted.step(observations["prior_mean"])
        total += reward
        for i in np.flatnonzero(info.get("_episode", False)):
            assert info["episode"]["r"][i] == pytest.approx(total[i], rel=1e-5)
            total[i], ends = 0, ends + 1
    assert ends >= 4
    scaled = vector.NormalizeReward(environment)
    observations, _ = scaled.reset(seed=0)
    *_, last = (scaled.step(observations["prior_mean"])[1] for _ in range(3))
    assert isinstance(last, np.ndarray)
    listed = vector.DictInfoToList(environment)
    listed.reset(seed=0)
    (first, _) = listed.step(observations["prior_mean"])[4]
    assert first["rbbox"].shape == (5,)


def test_arrays_are_not_what_the_environment_goes_on_from(sequences, perception):
    environment = ToNumpy(BMVTrackVectorEnv(2, sequences, perception, clip_length=3))
    action = environment.reset(seed=0)[0]["prior_mean"].copy()
    expected = environment.step(action)[0]["box"]
    observations, _ = environment.reset(seed=0)
    for value in observations.values():
        value += 9
    np.testing.assert_array_equal(environment.step(action)[0]["box"], expected)


def test_seeds_and_actions_come_in_any_form(sequences, perception):
    many = BMVTrackVectorEnv(2, sequences, perception, clip_length=4)
    with pytest.raises(gym.error.ResetNeeded):
        many.true_motion()
    expected = many.reset(seed=[7, 8])[0]["box"]
    for seed in (7, np.int64(7), np.array([7, 8]), (7, 8)):
        assert torch.equal(many.reset(seed=seed)[0]["box"], expected)
    actions = np.tile(AT_REST, (2, 1)).astype(np.float32)
    after = many.step(actions)[4]["rbbox"]
    many.reset(seed=7)
    backwards = np.ascontiguousarray(actions[:, ::-1])[:, ::-1]
    assert torch.equal(many.step(backwards)[4]["rbbox"], after)


def test_without_a_seed_the_random_numbers_of_an_environment_go_on(sequences, perception):
    """As in Gymnasium: None is no seed."""
    found = []
    for _ in range(2):
        many = BMVTrackVectorEnv(2, sequences, perception, clip_length=4)
        many.reset(seed=0)
        found.append(many.reset(seed=[None, 5])[0]["box"])
    assert torch.equal(found[0], found[1])
    many.reset(seed=0)
    assert torch.equal(many.reset()[0]["box"][0], found[0][0])
    assert torch.equal(many.reset(seed=[9, 5])[0]["box"][1], found[0][1])


@pytest.mark.filterwarnings("error:.*itertools:DeprecationWarning")  # an error as of Python 3.14
@pytest.mark.parametrize("fixed", [False, True])
def test_it_survives_pickling(sequences, perception, fixed):
    clips = {"clips": ClipSource(sequences, 4).spread(3)} if fixed else {"sequences": sequences}
    many = BMVTrackVectorEnv(2, weights=perception, clip_length=4, **clips)
    expected, _ = many.reset(seed=3)
    copy = cloudpickle.loads(cloudpickle.dumps(many))
    found, _ = copy.reset(seed=3)
    assert torch.equal(found["box"], expected["box"])
    assert torch.equal(copy.step(found["prior_mean"])[1], many.step(expected["prior_mean"])[1])
