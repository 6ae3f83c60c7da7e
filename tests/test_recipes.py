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
from bmvtrack.bundled import DEFAULT_WEIGHTS, MASK_WEIGHTS, weights_folder
from bmvtrack.errors import UserError
from bmvtrack.models.base import saved_arguments
from bmvtrack.perception import Perception
from bmvtrack.training import PretrainOptions
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
    assert isinstance(stage, TrainOptions)  # the last one, which leaves encoder and agent
    assert {options.out / name for name in recipes._RESULTS} <= done


@pytest.mark.parametrize(
    ("stage", "name"),
    [("fifth", "davis16-duts-small"), ("ninth", MASK_WEIGHTS), ("twelfth", DEFAULT_WEIGHTS)],
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
    assert saved_arguments(tmp_path) == saved_arguments(weights_folder(name))


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
    return {"ninth": encoder, "small-agent": small, "agent": agent}


def test_retraining_stops_and_goes_on(
    options: RecipeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "recipe", small_recipe)
    short = replace(options, effort=0.1)
    console = Console(record=True, width=200)
    assert retrain(replace(short, max_minutes=1e-4), console) is None
    assert "repeat the same command" in console.export_text()
    assert not (options.out / DEFAULT_WEIGHTS).exists()
    folder = retrain(short, console)
    assert folder == options.out / DEFAULT_WEIGHTS
    assert "resuming" in console.export_text()
    for name in (DEFAULT_WEIGHTS, "davis16-duts-small"):
        load_actor(options.out / name)
    monkeypatch.setattr(recipes, "_run", None)  # nothing is left to do, but to leave the results
    shutil.rmtree(options.out / MASK_WEIGHTS)
    assert retrain(short, console) == folder
    for name in (DEFAULT_WEIGHTS, "davis16-duts-small", MASK_WEIGHTS):
        assert Perception.load(options.out / name).feature_count > 0
        assert weights_folder(name).is_dir(), "bundled"


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
