"""A trained agent as a tracker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from agents.storage import StoredActor, load_actor
from bmvtrack import geometry
from bmvtrack.arrays import BoolArray, ByteArray, FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.perception import DEFAULT_WEIGHTS, Percept, Perception, mask_in_frame, weights_folder
from bmvtrack.tracking.learned import bounds_of_mask
from bmvtrack.tracking.trackers import Tracker, TrackerFactory
from envs.state import move, observe

_AT_REST = np.array([1.0, 1.0, 0.0, 0.0, 0.0])


class AgentTracker(Tracker):
    """Moves the box by the agent's mean action: what the environment does, without the truth.

    Args:
        perception: the encoder the agent was trained with.
        stored: the agent.

    Raises:
        UserError: if encoder and agent do not fit.
    """

    name = "agent"

    def __init__(self, perception: Perception, stored: StoredActor) -> None:
        expected = stored.actor.observation_space["features"].shape[0]  # type: ignore[index]
        if expected != perception.feature_count:
            raise UserError(
                f"the agent was trained on an encoder with {expected} features, not "
                f"{perception.feature_count}; give the weights that belong together"
            )
        self.perception, self.stored = perception, stored

    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """See ``Tracker``."""
        self._box: FloatArray = np.asarray(rbbox, dtype=np.float64)
        self._motion = _AT_REST
        self._percept: Percept | None = None
        self._size = frame.shape[1], frame.shape[0]

    @torch.inference_mode()
    def update(self, frame: ByteArray) -> FloatArray:
        """See ``Tracker``."""
        width, height = self._size
        coordinates = self.stored.coordinates
        self._percept = self.perception.look(frame, self._box)
        observation = observe(self._percept, self._box, self._motion, width, height, coordinates)
        action, _ = self.stored.actor.predict(observation, deterministic=True)
        self._box, self._motion = move(self._box, action, width, height, coordinates)
        return self._box.copy()

    def axis_aligned(self, rbbox: FloatArray) -> FloatArray:
        """See ``Tracker``: those of the mask within the box."""
        return (
            geometry.bounds(rbbox)
            if self._percept is None
            else bounds_of_mask(self._percept, rbbox)
        )

    @property
    def mask(self) -> BoolArray | None:
        """The mask predicted in the last frame, ``(H, W)``; None before the first update."""
        if self._percept is None:
            return None
        return mask_in_frame(self._percept.probabilities[0], self._percept.windows[0], *self._size)


def agent_tracker(weights: str | Path = DEFAULT_WEIGHTS, device: str = "cpu") -> TrackerFactory:
    """A factory of :class:`AgentTracker`.

    Args:
        weights: a folder with encoder and agent, or bundled weights by name.
        device: of the encoder.

    Raises:
        UserError: if weights are missing or do not fit each other.
    """
    folder = weights_folder(weights)
    tracker = AgentTracker(Perception.load(folder, device), load_actor(folder))

    def factory(sequence: VideoSequence, start: int) -> Tracker:
        return tracker

    return factory
