"""One environment beside many, step by step."""

import numpy as np
import pytest
import torch

from bmvtrack import geometry, motion
from bmvtrack.data.scene import SceneOptions
from bmvtrack.data.synthetic import synthetic_sequence

TOLERANCE = 1e-4
AWAY = (1.0, 1.0, 0.0, 0.9, 1.4)
"""An action, in either coordinates, after which no object is in the box."""


def sequence(seed, width=96, height=72, length=9):
    options = SceneOptions(width=width, height=height, length=length)
    return synthetic_sequence(seed, options).in_memory()


def true_motion(environment):
    """The action ``(5,)`` that moves the current box of one environment to the true one."""
    sequence, t = environment.sequence, environment.frame_index
    truth = geometry.nearest_label(sequence.boxes[t + 1], environment.rbbox)
    return motion.solve(environment.rbbox, truth, *sequence.size, environment.coordinates)


def assert_same(single, batched, i=0):
    for name, value in single.items():
        np.testing.assert_allclose(batched[name][i].numpy(), value, atol=TOLERANCE, err_msg=name)


def follow(environment, many, rng, steps, i=0, always=None):
    """Step one environment and the i-th of many with equal actions; every number must agree.

    Actions are around the prior's mean, or ``always`` the same. Returns how often a clip ended, and how
    often by a lost target.
    """
    ends, losses = 0, 0
    observation, _ = environment.reset(seed=5 + i)
    together, _ = many.reset(seed=5)
    assert_same(observation, together, i)
    for _ in range(steps):
        action = observation["prior_mean"] + 0.1 * rng.standard_normal(5).astype(np.float32)
        action = action if always is None else np.float32(always)
        actions = together["prior_mean"].clone()
        actions[i] = torch.from_numpy(action)
        observation, reward, terminated, truncated, info = environment.step(action)
        together, rewards, lost, late, infos = many.step(actions)
        assert float(rewards[i]) == pytest.approx(reward, abs=TOLERANCE)
        assert (bool(lost[i]), bool(late[i])) == (terminated, truncated)
        over = (lost | late).numpy()
        np.testing.assert_array_equal(infos.get("_final_obs", np.zeros_like(over)), over)
        if terminated or truncated:
            ends += 1
            losses += terminated
            assert_same(observation, infos["final_obs"], i)
            final = infos["final_info"]
            np.testing.assert_allclose(final["rbbox"][i].numpy(), info["rbbox"], rtol=1e-5)
            np.testing.assert_allclose(final["truth"][i].numpy(), info["truth"])
            observation, info = environment.reset()
        assert infos["sequence"][i] == info["sequence"]
        assert infos["frame"][i] == info["frame"]
        assert_same(observation, together, i)
    return ends, losses


def of_three_sizes():
    """Sequences of different sizes and lengths."""
    return [sequence(1), sequence(2, 128, 96, 6), sequence(3, 80, 100, 12)]
