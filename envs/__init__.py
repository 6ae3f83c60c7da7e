"""Gymnasium environments: ``BMVTrack-v0``, for one clip or for many clips in parallel."""

from envs.bmvtrack_env import BMVTrackEnv
from envs.vector_env import BMVTrackVectorEnv
from envs.wrappers import ToNumpy, WhitenedActions

__all__ = ["BMVTrackEnv", "BMVTrackVectorEnv", "ToNumpy", "WhitenedActions"]
