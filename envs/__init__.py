"""Gymnasium environments: ``BMVTrack-v0``."""

from envs.bmvtrack_env import BMVTrackEnv

__all__ = ["BMVTrackEnv"]
