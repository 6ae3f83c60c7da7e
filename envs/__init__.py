"""Gymnasium environments: ``BMVTrack-v0``, one clip or many at a time."""

from envs.bmvtrack_env import BMVTrackEnv
from envs.vector_env import BMVTrackVectorEnv
from envs.wrappers import ToNumpy, WhitenedActions

__all__ = ["BMVTrackEnv", "BMVTrackVectorEnv", "ToNumpy", "WhitenedActions"]
