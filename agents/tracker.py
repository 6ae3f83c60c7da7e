"""A trained agent as a tracker: it moves boxes as the environment does, without the ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from agents.storage import StoredActor, load_actor
from bmvtrack.bundled import DEFAULT_WEIGHTS, weights_folder
from bmvtrack.errors import UserError
from bmvtrack.movers import Mover
from bmvtrack.percept import Percept
from bmvtrack.perception import Perception
from bmvtrack.tracker import Tracker
from bmvtrack.tracking.learned import PerceptionTracker
from bmvtrack.tracking.trackers import TrackerFactory, always
from envs.state import checked_action, moved, observe


class AgentMover:
    """A :data:`~bmvtrack.movers.Mover` that moves boxes by an agent's mean actions.

    Args:
        perception: the encoder that the agent was trained with.
        stored: the agent.

    Raises:
        UserError: if encoder and agent do not match.
    """

    def __init__(self, perception: Perception, stored: StoredActor) -> None:
        self.actor, self.coordinates = stored.actor, stored.coordinates
        expected = self.actor.observation_space["features"].shape[0]  # type: ignore[index]
        if expected != perception.feature_count:
            raise UserError(
                f"the agent was trained on an encoder with {expected} features, not "
                f"{perception.feature_count}; give an encoder and an agent that belong together"
            )

    @torch.inference_mode()
    def __call__(
        self,
        percept: Percept,
        boxes: torch.Tensor,
        previous_motion: torch.Tensor,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        """Boxes t+1."""
        state = observe(percept, boxes, previous_motion, sizes, self.coordinates)
        # As in the actor's predict, but without the conversion of observations to NumPy.
        on_host = {name: value.cpu() for name, value in state.items()}
        scaled = self.actor(on_host, deterministic=True)
        actions = [checked_action(action) for action in self.actor.unscale_action(scaled.numpy())]
        width, height = sizes.to(boxes).unbind(-1)
        taken = torch.as_tensor(np.stack(actions)).to(boxes)
        after: torch.Tensor = moved(boxes, taken, width, height, self.coordinates)
        return after


def load_agent_mover(folder: Path, perception: Perception) -> Mover:
    """The :class:`AgentMover` of the agent in a folder.

    Raises:
        UserError: if there is no agent, or it does not match the encoder.
    """
    return AgentMover(perception, load_actor(folder))


def agent_tracker(weights: str | Path = DEFAULT_WEIGHTS, device: str = "cpu") -> TrackerFactory:
    """The factory of a tracker that is moved by an agent.

    Args:
        weights: a folder with encoder and agent, or the name of bundled weights.
        device: device of the encoder.

    Raises:
        UserError: if weights are missing or do not match.
    """
    folder = weights_folder(weights)
    perception = Perception.load(folder, device)
    return always(PerceptionTracker(Tracker(perception, load_agent_mover(folder, perception))))
