"""The weights that come with the package."""

import re

import numpy as np
import pytest

from agents.storage import load_actor
from agents.tracker import agent_tracker
from bmvtrack.bundled import ACCURATE_WEIGHTS, DEFAULT_WEIGHTS, MASK_WEIGHTS, weights_folder
from bmvtrack.data.scene import SceneOptions
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.iou import rotated_iou
from bmvtrack.perception import Perception
from bmvtrack.segmentation.protocols import encode, honest, load_segmenter
from bmvtrack.segmentation.views import view_objects
from bmvtrack.tracking.learned import learned_tracker

MOST_BYTES = 24_000_000
WITH_AGENTS = DEFAULT_WEIGHTS, ACCURATE_WEIGHTS
FOLDERS = {name: weights_folder(name) for name in (*WITH_AGENTS, MASK_WEIGHTS)}


def test_small_enough_and_described() -> None:
    files = [path for folder in FOLDERS.values() for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    for name, folder in FOLDERS.items():
        card = (folder / "README.md").read_text(encoding="utf-8")
        for word in (name, "retrain.py", "data", "budget", "seed", "results", "licence"):
            assert word in card
        (results,) = (line for line in card.splitlines() if line.startswith("| results |"))
        assert re.search(r"0\.\d{3}", results), "a card says what the weights are worth"


@pytest.mark.parametrize("weights", WITH_AGENTS)
def test_encoder_and_agent_belong_together(weights: str) -> None:
    features = load_actor(FOLDERS[weights]).actor.observation_space["features"]
    assert features.shape == (Perception.load(weights).feature_count,)


@pytest.fixture(scope="module")
def sequences() -> list[VideoSequence]:
    options = SceneOptions(length=20)
    return [synthetic_sequence(950_000_000 + seed, options).in_memory() for seed in range(2)]


@pytest.mark.parametrize("weights", WITH_AGENTS)
@pytest.mark.parametrize("name", ["agent", "prior", "mask"])
def test_better_than_a_box_that_never_moves(
    name: str, weights: str, sequences: list[VideoSequence]
) -> None:
    factory = agent_tracker(weights) if name == "agent" else learned_tracker(name, weights)
    moved, still = [], []
    for sequence in sequences:
        tracker = factory(sequence, 0)
        tracker.init(sequence.frame(0), sequence.boxes[0])
        boxes = np.array([tracker.update(sequence.frame(t)) for t in range(1, 20)])
        moved.append(np.nanmean(rotated_iou(boxes, sequence.boxes[1:20])))
        still.append(np.nanmean(rotated_iou(sequence.boxes[:1], sequence.boxes[1:20])))
    assert np.mean(moved) > np.mean(still) + 0.05


def test_the_mask_weights_find_objects_in_boxes() -> None:
    network = load_segmenter(MASK_WEIGHTS)
    sequences = [synthetic_sequence(950_000_000 + seed) for seed in range(6)]
    frames, masks = [s.frame(0) for s in sequences], [s.mask(0) for s in sequences]
    views = view_objects(network, frames, np.stack([s.boxes[0] for s in sequences]), masks)
    found = honest(network, encode(network, views)) > 0
    common, either = (part.sum(dim=(1, 2)) for part in (found & views.true, found | views.true))
    assert (common / either).median() > 0.6


def test_package_data_names_the_files() -> None:
    encoder, agent = {"config.json", "model.safetensors", "README.md"}, {"agent.json"}
    agent |= {"agent.safetensors"}
    for name, folder in FOLDERS.items():
        expected = encoder | agent if name in WITH_AGENTS else encoder
        assert {path.name for path in folder.iterdir()} == expected
