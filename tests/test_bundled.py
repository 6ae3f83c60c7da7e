"""The weights that come with the package."""

from pathlib import Path

import numpy as np
import pytest

from agents.storage import load_actor
from agents.tracker import agent_tracker
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.iou import rotated_iou
from bmvtrack.perception import DEFAULT_WEIGHTS, Perception, weights_folder
from bmvtrack.tracking.learned import learned_tracker

MOST_BYTES = 24_000_000


def test_small_enough_and_described() -> None:
    folder = weights_folder(DEFAULT_WEIGHTS)
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("retrain.py", "data", "budget", "seed", "results", "licence"):
        assert word in card


def test_encoder_and_agent_belong_together() -> None:
    features = load_actor(weights_folder(DEFAULT_WEIGHTS)).actor.observation_space["features"]
    assert features.shape == (Perception.load().feature_count,)


@pytest.mark.parametrize("name", ["agent", "prior", "mask"])
def test_better_than_a_box_that_never_moves(name: str) -> None:
    factory = agent_tracker() if name == "agent" else learned_tracker(name)
    moved, still = [], []
    for seed in range(12):
        sequence = synthetic_sequence(950_000_000 + seed)
        tracker = factory(sequence, 0)
        tracker.init(sequence.frame(0), sequence.boxes[0])
        boxes = np.array([tracker.update(sequence.frame(t)) for t in range(1, 20)])
        moved.append(np.nanmean(rotated_iou(boxes, sequence.boxes[1:20])))
        still.append(np.nanmean(rotated_iou(sequence.boxes[:1], sequence.boxes[1:20])))
    assert np.mean(moved) > np.mean(still) + 0.05


def test_package_data_names_the_files() -> None:
    folder = weights_folder(DEFAULT_WEIGHTS)
    expected = {"config.json", "model.safetensors", "agent.json", "agent.safetensors", "README.md"}
    assert {path.name for path in Path(folder).iterdir()} == expected
