"""bmvtrack: a visual tracker whose actions are drawn from an encoder's latent Gaussian.

Importing this package only registers ``BMVTrack-v0`` with Gymnasium; torch is imported when it is
first needed.
"""

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"

if "BMVTrack-v0" not in registry:
    register(
        id="BMVTrack-v0",
        entry_point="envs.bmvtrack_env:BMVTrackEnv",
        vector_entry_point="envs.vector_env:BMVTrackVectorEnv",
    )
