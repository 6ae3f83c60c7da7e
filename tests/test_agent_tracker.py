"""An agent as a tracker: what its actions are, without the environment."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import full_disk

from agents.storage import StoredActor, load_actor, make_actor, save_actor
from agents.tracker import AgentMover, agent_tracker
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.geometry import nearest_label
from bmvtrack.motion import AT_REST
from bmvtrack.movers import move_by_posterior
from bmvtrack.perception import Perception
from bmvtrack.tracker import Tracker
from bmvtrack.tracking.learned import PerceptionTracker
from envs.state import move, observe


def test_agent_of_another_encoder_is_refused(perception: Perception, tmp_path: Path) -> None:
    save_actor(make_actor("latent-prior", "frame", 6, []), "latent-prior", "frame", tmp_path)
    with pytest.raises(UserError, match="belong together"):
        AgentMover(perception, load_actor(tmp_path))


def test_an_agent_for_which_the_disk_is_too_full_is_not_written(tmp_path: Path) -> None:
    actor = make_actor("latent-prior", "frame", 6, [16])
    with full_disk(), pytest.raises(OSError, match="File too large"):
        save_actor(actor, "latent-prior", "frame", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("coordinates", ["frame", "object"])
def test_untrained_agent_tracks_like_the_posterior_mean(
    perception: Perception, tmp_path: Path, coordinates: str
) -> None:
    perception.network.save_weights(tmp_path, half=False)
    actor = make_actor("latent-prior", coordinates, perception.feature_count, [16])
    save_actor(actor, "latent-prior", coordinates, tmp_path)
    sequence = synthetic_sequence(8)
    agent = agent_tracker(tmp_path)(sequence, 0)
    posterior = PerceptionTracker(Tracker(perception, move_by_posterior))
    for tracker in (agent, posterior):
        tracker.init(sequence.frame(0), sequence.boxes[0])
    for t in range(1, 6):
        first, second = agent.update(sequence.frame(t)), posterior.update(sequence.frame(t))
        np.testing.assert_allclose(nearest_label(first, second), second, rtol=1e-3, atol=0.05)
    assert agent.mask.shape == sequence.frame(0).shape[:2]


@pytest.mark.parametrize("coordinates", ["frame", "object"])
@pytest.mark.parametrize("policy", ["latent-prior", "plain"])
def test_boxes_move_by_what_stable_baselines_would_predict(
    perception: Perception, policy: str, coordinates: str
) -> None:
    torch.manual_seed(0)
    actor = make_actor(policy, coordinates, perception.feature_count, [16])
    for parameter in actor.parameters():
        parameter.data.normal_(std=0.2)
    actor.set_training_mode(False)
    sequence = synthetic_sequence(8)
    boxes = torch.from_numpy(
        sequence.boxes[:1] + np.array([[0.0, 0, 0, 0, 0], [9.0, -5, 4, 6, 0.2]])
    )
    percept = perception.look(sequence.frame(1), boxes.numpy())
    rest, sizes = torch.tensor([AT_REST] * 2), torch.tensor([sequence.size] * 2)
    found = AgentMover(perception, StoredActor(actor, coordinates))(percept, boxes, rest, sizes)
    state = observe(percept, boxes, rest, sizes, coordinates)
    observations = {name: value.numpy() for name, value in state.items()}
    actions, _ = actor.predict(observations, deterministic=True)
    width, height = sizes.to(boxes).unbind(-1)
    actions = torch.from_numpy(actions).to(boxes)
    expected, _ = move(boxes, actions, width, height, coordinates)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    assert (found - boxes).abs().max() > 0.1


def test_a_tracker_goes_to_another_process_as_it_is() -> None:
    sequence = synthetic_sequence(8)
    tracker = Tracker.load()
    tracker.init(sequence.frame(0), sequence.boxes[0])
    copy = pickle.loads(pickle.dumps(tracker))
    for t in (1, 2):
        first, second = (each.update(sequence.frame(t)) for each in (tracker, copy))
        np.testing.assert_array_equal(first.rbbox, second.rbbox)
