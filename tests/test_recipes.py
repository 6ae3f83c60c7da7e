"""Retraining the bundled weights: the stages fit each other, stop, and go on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from agents import recipes
from agents.options import TrainOptions
from agents.recipes import RecipeOptions, recipe, retrain
from agents.storage import load_actor
from bmvtrack.bundled import ACCURATE_WEIGHTS, DEFAULT_WEIGHTS, MASK_WEIGHTS, weights_folder
from bmvtrack.errors import UserError
from bmvtrack.models import load_network, save_covariance_scale, saved_arguments
from bmvtrack.perception import Perception
from bmvtrack.tracking.calibration import CalibrationOptions
from bmvtrack.training import PretrainOptions, pretrain
from bmvtrack.training.parts import build_network


@pytest.fixture
def options(tmp_path: Path) -> RecipeOptions:
    return RecipeOptions(out=tmp_path / "out", davis=Path("DAVIS"), duts=Path("DUTS"), device="cpu")


def test_stages_are_built_on_those_before_them(options: RecipeOptions) -> None:
    done: set[Path] = set()
    for name, stage in recipe(options).items():
        if isinstance(stage, PretrainOptions):
            stage.resolved()
            before = stage.start_from
        else:
            stage.check()
            before = Path(stage.weights)
        assert before is None or before.parent in done
        done.add(options.out / name)
    stages = [stage for stage in recipe(options).values() if isinstance(stage, PretrainOptions)]
    assert len({stage.split_seed for stage in stages}) == 1, "held out from the first on"
    for name in ("agent", "small-agent"):  # which leave encoder and agent
        assert isinstance(recipe(options)[name], TrainOptions)
    assert {options.out / name for name in recipes._RESULTS} <= done


@pytest.mark.parametrize(
    ("stage", "name"),
    [("twelfth", ACCURATE_WEIGHTS), ("small", DEFAULT_WEIGHTS), ("ninth", MASK_WEIGHTS)],
)
def test_stages_make_the_networks_that_are_bundled(
    options: RecipeOptions, tmp_path: Path, stage: str, name: str
) -> None:
    made = recipe(options)[stage]
    assert isinstance(made, PretrainOptions)
    network = build_network(replace(made.resolved(), start_from=None))
    assert made.box_threshold is not None
    network.box_threshold = made.box_threshold
    network.save_weights(tmp_path)
    bundled = saved_arguments(weights_folder(name))
    assert saved_arguments(tmp_path) == bundled | {"covariance_scale": 1.0}
    assert bundled["covariance_scale"] > 1  # found afterwards


def small_recipe(options: RecipeOptions) -> dict[str, recipes.Stage]:
    encoder = PretrainOptions(
        width=4, input_size=64, samples=10, steps=20, batch_size=2, synthetic_count=3
    )
    agent = TrainOptions(
        weights=str(options.out / "ninth" / "last"),
        steps=40,
        synthetic_count=2,
        environments=2,
        updates=1,
        clip_length=4,
        batch_size=4,
        learning_starts=10,
        buffer_size=100,
        critic_hidden=(8,),
        validation_clips=2,
        validate_every=20,
    )
    small = replace(agent, seed=1)
    return {"ninth": encoder, "agent": agent, "small-agent": small}


def small_calibration(options: RecipeOptions, weights: Path) -> CalibrationOptions:
    return CalibrationOptions(str(weights), synthetic_count=1, segments=1)


def test_retraining_stops_and_goes_on(
    options: RecipeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "recipe", small_recipe)
    monkeypatch.setattr(recipes, "calibration", small_calibration)
    short = replace(options, effort=0.1)
    console = Console(record=True, width=200)
    assert retrain(replace(short, max_minutes=1e-4), console) is None
    assert "repeat the same command" in console.export_text()
    assert not (options.out / DEFAULT_WEIGHTS).exists()
    folder = retrain(short, console)
    assert folder == options.out / DEFAULT_WEIGHTS
    printed = console.export_text()
    assert "resuming" in printed
    assert printed.count("not calibrated: the tracker") == 3
    for name in (DEFAULT_WEIGHTS, ACCURATE_WEIGHTS):
        load_actor(options.out / name)
    monkeypatch.setattr(recipes, "_run", None)  # nothing is left to do, but to leave the results
    calibrated = []

    def calibrate(options: CalibrationOptions, console: Console) -> None:
        calibrated.append(options.weights)
        save_covariance_scale(Path(options.weights), 2.0)

    monkeypatch.setattr(recipes, "calibrate", calibrate)
    shutil.rmtree(options.out / MASK_WEIGHTS)
    # An encoder that is done does not need its checkpoints.
    shutil.rmtree(options.out / "ninth" / "checkpoints")
    assert retrain(short, console) == folder
    assert len(calibrated) == 1
    assert load_network(options.out / MASK_WEIGHTS).covariance_scale == 2
    with pytest.raises(TypeError, match="not callable"):  # at another effort it is not
        retrain(replace(short, effort=0.2), console)
    for name in (DEFAULT_WEIGHTS, ACCURATE_WEIGHTS, MASK_WEIGHTS):
        assert Perception.load(options.out / name).feature_count > 0
        assert weights_folder(name).is_dir(), "bundled"


def test_what_was_trained_further_takes_the_place_of_what_was_left(
    options: RecipeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent, unlike an encoder, may be trained for more steps than before."""
    monkeypatch.setattr(
        recipes, "recipe", lambda options: {"agent": small_recipe(options)["agent"]}
    )
    monkeypatch.setattr(recipes, "calibrate", lambda options, console: None)
    ninth = small_recipe(options)["ninth"]
    assert isinstance(ninth, PretrainOptions)
    pretrain(replace(ninth, out=options.out / "ninth", device="cpu"))
    for effort in (0.5, 1.0):
        retrain(replace(options, effort=effort))
        left, last = (
            (options.out / name / "agent.safetensors").read_bytes()
            for name in (ACCURATE_WEIGHTS, "agent/last")
        )
        assert left == last


def test_weights_are_calibrated_on_what_their_agent_is_trained_on(options: RecipeOptions) -> None:
    used = recipes.calibration(options, options.out / DEFAULT_WEIGHTS)
    used.check()
    trained = recipe(options)["agent"]
    assert isinstance(trained, TrainOptions)
    assert used.data == trained.data
    assert used.upside_down
    assert trained.mirror == "upside-down"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effort": 0.0}, "--effort"),
        ({"max_minutes": 0.0}, "--max-minutes"),
        ({}, "DUTS"),
    ],
)
def test_what_cannot_be_is_refused(
    options: RecipeOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        retrain(replace(options, **change))
    assert not options.out.exists()
