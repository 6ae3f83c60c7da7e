"""The vector environment under Stable-Baselines3: its own API, wrappers and callbacks."""

from functools import partial

import numpy as np
import pytest
from environments import AWAY
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import TransformReward
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from agents.policy import StateExtractor
from agents.sb3_env import StableBaselinesEnv
from bmvtrack.data.scene import SceneOptions
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from envs import BMVTrackEnv, BMVTrackVectorEnv
from envs.clips import ClipSource


@pytest.fixture(scope="module")
def sequences():
    options = SceneOptions(width=96, height=72, length=8)
    return [synthetic_sequence(seed, options).in_memory() for seed in (1, 2)]


def adapted(sequences, perception, count=3, **arguments):
    return StableBaselinesEnv(BMVTrackVectorEnv(count, sequences, perception, **arguments))


def test_steps_are_those_of_the_environment(sequences, perception):
    ours, plain = (BMVTrackVectorEnv(3, sequences, perception, clip_length=3) for _ in range(2))
    ours = StableBaselinesEnv(ours)
    ours.seed(4)
    observations = ours.reset()
    expected, _ = plain.reset(seed=4)
    ends = 0
    for _ in range(9):
        for name, value in expected.items():
            np.testing.assert_array_equal(observations[name], value.numpy())
        action = observations["prior_mean"]
        observations, rewards, dones, infos = ours.step(action)
        expected, reward, terminated, truncated, info = plain.step(action)
        np.testing.assert_array_equal(rewards, reward.numpy())
        np.testing.assert_array_equal(dones, (terminated | truncated).numpy())
        for i in range(3):
            if dones[i]:
                ends += 1
                assert infos[i]["TimeLimit.truncated"]
                for name, value in infos[i]["terminal_observation"].items():
                    np.testing.assert_array_equal(value, info["final_obs"][name][i].numpy())
                assert infos[i]["iou"] == info["final_info"]["iou"][i]
            else:
                assert "terminal_observation" not in infos[i]
                assert infos[i]["frame"] == info["frame"][i]
    assert ends >= 9


def test_a_lost_target_is_no_time_limit(sequences, perception):
    lost = adapted(sequences, perception, lost_after=1, clip_length=7)
    lost.seed(0)
    lost.reset()
    away = np.tile(np.float32(AWAY), (3, 1))
    for _ in range(3):
        _, _, dones, infos = lost.step(away)
        if dones.any():
            break
    assert dones.any()
    assert not infos[int(np.flatnonzero(dones)[0])]["TimeLimit.truncated"]


def test_a_target_lost_in_the_last_step_of_a_clip_is_no_time_limit(sequences, perception):
    lost = adapted(sequences, perception, lost_after=2, clip_length=2)
    lost.seed(0)
    lost.reset()
    for _ in range(2):
        _, _, dones, infos = lost.step(np.tile(np.float32(AWAY), (3, 1)))
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [False] * 3


def test_works_under_monitor_normalisation_and_evaluation(sequences, perception, tmp_path):
    environment = VecNormalize(VecMonitor(adapted(sequences, perception, clip_length=3)))
    clips = ClipSource(sequences, 3).spread(4)
    evaluation = VecNormalize(
        VecMonitor(StableBaselinesEnv(BMVTrackVectorEnv(2, weights=perception, clips=clips))),
        training=False,
        norm_reward=False,
    )
    callback = EvalCallback(evaluation, n_eval_episodes=4, eval_freq=4, log_path=str(tmp_path))
    model = SAC(
        "MultiInputPolicy",
        environment,
        buffer_size=60,
        learning_starts=6,
        batch_size=8,
        policy_kwargs={"net_arch": [8], "features_extractor_class": StateExtractor},
        device="cpu",
    )
    model.learn(24, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")
    assert results["results"].shape == (2, 4)
    assert (results["ep_lengths"] <= 3).all()
    assert 0 < results["results"].mean() <= 3


def test_the_same_clips_in_every_evaluation(sequences, perception):
    clips = ClipSource(sequences, 3).spread(4)
    environment = StableBaselinesEnv(BMVTrackVectorEnv(2, weights=perception, clips=clips))
    first, second = (environment.reset() for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_the_environments_are_addressed_together(sequences, perception):
    environment = adapted(sequences, perception)
    environment.reset()
    assert environment.get_attr("lost_after") == [10, 10, 10]
    assert environment.get_attr("lost_after", [1]) == [10]
    environment.set_attr("lost_after", 4)
    assert environment.get_attr("lost_after", 0) == [4]
    assert environment.env_method("true_motion")[0].shape == (3, 5)
    assert environment.env_is_wrapped(VecMonitor) == [False] * 3
    with pytest.raises(ValueError, match="only all can be addressed"):
        environment.set_attr("lost_after", 4, [0])
    with pytest.raises(ValueError, match="only all can be addressed"):
        environment.env_method("true_motion", indices=[0, 1])


def test_an_evaluation_plays_every_clip_once(sequences, perception):
    clips = ClipSource(sequences, 2).spread(5)
    played = []

    def record(variables, _):
        if variables["done"]:
            played.append((variables["info"]["sequence"], variables["info"]["frame"]))

    environment = VecMonitor(adapted(None, perception, 2, clips=clips))
    model = SAC("MultiInputPolicy", environment, buffer_size=10)
    for _ in range(2):
        played.clear()
        evaluate_policy(model, environment, len(clips), callback=record)
        assert sorted(played) == sorted((clip.sequence.name, clip.last) for clip in clips)


def test_only_what_is_there_is_there(sequences, perception):
    environment = adapted(sequences, perception)
    assert environment.has_attr("lost_after")
    assert not environment.has_attr("anything")


def test_options_of_any_environment_are_refused(sequences, perception):
    environment = adapted(sequences, perception)
    environment.set_options([{}, {"start": 1}, {}])
    with pytest.raises(UserError, match="unknown options of reset: start"):
        environment.reset()


def test_single_environments_are_refused(sequences, perception):
    single = partial(BMVTrackEnv, sequences, perception)
    for environment in (single(), SyncVectorEnv([single, single])):
        with pytest.raises(UserError, match="pass single environments to Stable-Baselines3 dir"):
            StableBaselinesEnv(environment)


def test_wrappers_that_keep_tensors_may_lie_between(sequences, perception):
    many = BMVTrackVectorEnv(2, sequences, perception)
    environment = StableBaselinesEnv(TransformReward(many, lambda reward: 2 * reward))
    observations = environment.reset()
    _, rewards, _, infos = environment.step(observations["prior_mean"])
    np.testing.assert_allclose(rewards, [2 * info["iou"] for info in infos], rtol=1e-6)
