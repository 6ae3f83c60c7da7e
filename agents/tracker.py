"""A trained agent as a tracker."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.storage import StoredActor, load_actor
from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.motion import AT_REST
from bmvtrack.perception import DEFAULT_WEIGHTS, Percept, Perception, weights_folder
from bmvtrack.tracking.learned import PerceptionTracker
from bmvtrack.tracking.trackers import Tracker, TrackerFactory
from envs.state import checked_action, move, observe_one


class AgentTracker(PerceptionTracker):
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
        super().__init__(perception)
        self.stored = stored

    def init(self, frame: ByteArray, rbbox: FloatArray) -> None:
        """See ``Tracker``."""
        super().init(frame, rbbox)
        self._motion = np.array(AT_REST)

    def _next_box(self, percept: Percept) -> FloatArray:
        size, coordinates = self._size, self.stored.coordinates
        observation = observe_one(percept, self._box, self._motion, size, coordinates)
        action, _ = self.stored.actor.predict(observation, deterministic=True)
        box, self._motion = move(self._box, checked_action(action), *size, coordinates)
        return box


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
