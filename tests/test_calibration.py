"""How wide the reported covariance is: found by tracking, kept with the weights, used by trackers."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import change_config
from rich.console import Console

from bmvtrack import prior
from bmvtrack.bundled import DEFAULT_WEIGHTS, weights_folder
from bmvtrack.data.mirrored import upside_down
from bmvtrack.data.synthetic import synthetic_sequence, synthetic_sequences
from bmvtrack.errors import UserError
from bmvtrack.iou import rotated_iou
from bmvtrack.models import ResNetUNet, load_network
from bmvtrack.perception import Perception
from bmvtrack.tracker import Tracker
from bmvtrack.tracking import calibration
from bmvtrack.tracking.calibration import CalibrationOptions, TooFewFrames, calibrate


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Bundled weights with the network's own covariance."""
    folder = tmp_path / "weights"
    shutil.copytree(weights_folder(DEFAULT_WEIGHTS), folder)
    change_config(folder, covariance_scale=1.0)
    return folder


def few(weights: Path) -> CalibrationOptions:
    return CalibrationOptions(str(weights), synthetic_count=1, segments=1, seed=1, upside_down=True)


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_with_the_scale_distances_are_five_on_average(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a second calibration finds the same scale."""
    monkeypatch.setattr(calibration, "_FEWEST", 20)
    before = config_of(weights)
    files = {path.name: path.read_bytes() for path in weights.iterdir()}
    console = Console(record=True, width=100)
    scale = calibrate(few(weights), console)
    assert scale != 1
    assert config_of(weights) == before | {"covariance_scale": scale}
    for name in files.keys() - {"config.json"}:
        assert (weights / name).read_bytes() == files[name]
    distances = []  # with the scale, where the box is good
    tracker = Tracker.load(weights)
    for sequence in map(upside_down, synthetic_sequences(1, seed=1)):
        tracker.init(sequence.frame(0), sequence.boxes[0])
        for t in range(1, len(sequence)):
            result = tracker.update(sequence.frame(t))
            if sequence.present[t] and rotated_iou(result.rbbox, sequence.boxes[t]) > 0.5:
                distances.append(result.mahalanobis(sequence.boxes[t]))
    assert np.mean(distances) == pytest.approx(5, rel=1e-3)
    printed = console.export_text()
    assert f"{scale:.3g}, the likeliest" in printed
    assert f" {len(distances)} " in printed
    share = np.mean(
        np.array(distances) <= 9.2364
    )  # the 90 % quantile of χ² with 5 degrees of freedom
    assert f"{share:.2f}" in printed
    assert calibrate(few(weights)) == pytest.approx(scale, rel=1e-6)


def test_only_the_reported_covariance_is_scaled(weights: Path) -> None:
    sequence = synthetic_sequence(8).in_memory()
    box = sequence.boxes[0]
    plain = Tracker.load(weights)
    change_config(weights, covariance_scale=2.5)
    scaled = Tracker.load(weights)
    for tracker in (plain, scaled):
        tracker.init(sequence.frame(0), box)
    for t in range(1, 4):
        one, other = (tracker.update(sequence.frame(t)) for tracker in (plain, scaled))
        np.testing.assert_allclose(other.covariance, 2.5 * one.covariance, rtol=1e-12)
        for name in ("rbbox", "mean", "limits", "mask", "score"):
            assert np.array_equal(getattr(other, name), getattr(one, name))
        true = sequence.boxes[t]
        assert 2.5 * other.mahalanobis(true) == pytest.approx(one.mahalanobis(true))
    frame = sequence.frame(1)
    seen = [Perception.load(folder).look(frame, box) for folder in (weights, DEFAULT_WEIGHTS)]
    assert torch.equal(seen[0].covariance, seen[1].covariance), "what the agent's prior is made of"


def test_it_is_kept_with_the_weights(tmp_path: Path) -> None:
    network = ResNetUNet(prior.named("davis16"), width=2, input_size=64)
    network.covariance_scale = 1.75
    network.save_weights(tmp_path / "weights")
    assert load_network(tmp_path / "weights").covariance_scale == 1.75
    for wrong in (0, -1, float("inf"), float("nan")):
        change_config(tmp_path / "weights", covariance_scale=wrong)
        with pytest.raises(UserError, match=r"its covariance_scale is .*, not a positive number"):
            load_network(tmp_path / "weights")
    config = config_of(tmp_path / "weights")
    del config["covariance_scale"]
    (tmp_path / "weights/config.json").write_text(json.dumps(config))
    assert load_network(tmp_path / "weights").covariance_scale == 1


def test_where_the_object_is_lost_nothing_is_written(tmp_path: Path) -> None:
    network = ResNetUNet(prior.named("davis16"), width=2, input_size=64, input_channels=4)
    network.save_weights(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(TooFewFrames, match=r"by more than half in \d+ frames, and 100 are needed"):
        calibrate(few(tmp_path))
    assert (tmp_path / "config.json").read_bytes() == before


def test_weights_that_cannot_be_written_are_refused_before_tracking(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != weights)
    monkeypatch.setattr(Tracker, "load", None)
    with pytest.raises(UserError, match="is not writable; copy the folder"):
        calibrate(few(weights))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "--data needs at least one"),
        ({"data": ("duts:DUTS",)}, "stills have no motion"),
        ({"data": ("davis16:nowhere",)}, "no folder nowhere"),
        ({"segments": 0}, "--segments must be at least 1, not 0"),
        ({"synthetic_count": 0}, "--synthetic-count must be at least 1, not 0"),
        ({"seed": -1}, "--seed must not be negative, not -1"),
        ({"weights": "nowhere"}, "no weights 'nowhere'"),
    ],
)
def test_mistakes_are_refused(weights: Path, changes: dict[str, Any], message: str) -> None:
    before = config_of(weights)
    with pytest.raises(UserError, match=message):
        calibrate(replace(few(weights), **changes))
    assert config_of(weights) == before
