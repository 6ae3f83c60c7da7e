"""Training an agent end to end, small: what is left behind, stopping, resuming, refusing."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import write_stills, write_tree
from networks import change_config

from agents import training
from agents.options import TrainOptions
from agents.sac import LatentPriorSAC
from agents.sequences import training_and_validation
from agents.storage import load_actor
from agents.tracker import agent_tracker
from agents.training import make_environments, make_model, train_agent
from bmvtrack.bundled import weights_folder
from bmvtrack.data import sources
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.files import held
from bmvtrack.models import save_covariance_scale
from bmvtrack.perception import Perception
from bmvtrack.training.checkpoint import load_checkpoint
from bmvtrack.training.curves import plot_curves, read_scalars
from envs.clips import Clip, ClipSource


@pytest.fixture(scope="module")
def weights(perception: Perception, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights") / "encoder"
    perception.network.save_weights(folder)
    return str(folder)


@pytest.fixture
def options(weights: str, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        out=tmp_path / "run",
        weights=weights,
        steps=48,
        synthetic_count=3,
        environments=2,
        updates=2,
        clip_length=6,
        batch_size=8,
        learning_starts=10,
        buffer_size=500,
        actor_hidden=(16,),
        critic_hidden=(16,),
        validation_clips=2,
        validate_every=24,
        device="cpu",
    )


@pytest.mark.parametrize("policy", ["latent-prior", "plain"])
def test_training_leaves_all_that_tracking_needs(options: TrainOptions, policy: str) -> None:
    train_agent(replace(options, policy=policy))
    for name in ("best", "last"):
        assert load_actor(options.out / name).coordinates == "object"
        tracker = agent_tracker(options.out / name)(synthetic_sequence(1), 0)
        tracker.init(synthetic_sequence(1).frame(0), synthetic_sequence(1).boxes[0])
        assert tracker.update(synthetic_sequence(1).frame(1)).shape == (5,)
    scalars = read_scalars(options.out / "tensorboard")
    assert ("train/kl_to_prior" in scalars) == (policy == "latent-prior")
    plot_curves(scalars, ["eval/mean_reward", "train/ent_coef"], options.out / "curves.png")
    assert (options.out / "curves.png").stat().st_size > 1000


def test_the_untrained_agent_is_the_best_where_nothing_beats_it(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_mean_reward", lambda *_: 1e6)
    assert train_agent(options) == 1e6
    untrained = (options.out / "best" / "agent.safetensors").read_bytes()
    assert (options.out / "last" / "agent.safetensors").read_bytes() != untrained
    monkeypatch.setattr(training, "_mean_reward", None)  # that of the run so far counts
    assert train_agent(replace(options, resume=True, steps=72)) == 1e6
    assert (options.out / "best" / "agent.safetensors").read_bytes() == untrained


def test_options_reach_the_agent(options: TrainOptions, perception: Perception) -> None:
    others = replace(
        options,
        gamma=0.61,
        learning_rate=2e-5,
        actor_learning_rate=3e-5,
        target_kl=0.7,
        truth_share=0.3,
        initial_temperature=0.03,
        learning_starts=11,
        updates=3,
        batch_size=9,
        buffer_size=400,
        reward="axis_aligned",
        coordinates="frame",
    )
    environments = make_environments(others, perception, [synthetic_sequence(0)])
    inner = environments.venv.environment
    assert (inner.reward, inner.coordinates) == (others.reward, others.coordinates)
    model = make_model(others, environments, "cpu")
    assert isinstance(model, LatentPriorSAC)
    for name in ("gamma", "learning_rate", "target_kl", "truth_share", "learning_starts"):
        assert getattr(model, name) == getattr(others, name), name
    assert (model.gradient_steps, model.batch_size) == (others.updates, others.batch_size)
    assert model.buffer_size == others.buffer_size
    assert float(model.ent_coef_optimizer.param_groups[0]["lr"]) == others.learning_rate
    assert model.log_ent_coef.exp().item() == pytest.approx(others.initial_temperature)


def test_training_goes_on_where_it_stopped(
    options: TrainOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    train_agent(options)
    said = capsys.readouterr().out
    assert re.findall(r"^step (\d+): \d\.\d\d per clip$", said, re.MULTILINE) == ["24", "48"]
    assert "over up to 6 steps" in said
    before = load_checkpoint(options.out / "checkpoints")
    with held(options.out), pytest.raises(UserError, match="another process is writing to"):
        train_agent(replace(options, resume=True, steps=72))
    assert load_checkpoint(options.out / "checkpoints")["num_timesteps"] == before["num_timesteps"]
    with pytest.raises(UserError, match="--resume"):
        train_agent(options)
    longer = replace(options, resume=True, steps=72)
    with pytest.raises(UserError, match="other options \\(gamma\\)"):
        train_agent(replace(longer, gamma=0.5))
    train_agent(longer)
    state = load_checkpoint(options.out / "checkpoints")
    assert state["num_timesteps"] == 72
    assert state["replay"]["position"] == 36  # of two environments each
    with np.load(options.out / "evaluations" / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [24, 48, 72]
    path = options.out / "evaluations" / "evaluations.npz"
    path.write_bytes(path.read_bytes()[:200])  # it is only the curve
    train_agent(replace(longer, steps=96))
    with np.load(path) as evaluations:
        assert evaluations["timesteps"].tolist() == [96]
        assert len(evaluations["results"]) == 1


def test_a_run_that_goes_on_sees_other_clips(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, int]] = []
    draw = ClipSource.draw

    def recorded(source: ClipSource, *arguments: Any) -> Clip:
        clip = draw(source, *arguments)
        drawn.append((clip.sequence.name, clip.start))
        return clip

    monkeypatch.setattr(ClipSource, "draw", recorded)
    few = replace(options, steps=24)
    train_agent(few)
    first = drawn.copy()
    drawn.clear()
    train_agent(replace(few, resume=True, steps=48))
    assert len(drawn) > 3
    assert drawn[:4] != first[:4]
    assert torch.initial_seed() == 24, "and other noise"


def test_neighbouring_seeds_share_no_generator(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    draw = ClipSource.draw

    def recorded(source: ClipSource, rng: np.random.Generator, *arguments: Any) -> Clip:
        used.append(rng.bit_generator.state["state"]["inc"])  # a seed's own, and it stays
        return draw(source, rng, *arguments)

    monkeypatch.setattr(ClipSource, "draw", recorded)
    seen = []
    for seed in (0, 1):
        train_agent(replace(options, seed=seed, out=options.out / str(seed), steps=2))
        seen.append(set(used))
        used.clear()
    assert all(seen)
    assert not seen[0] & seen[1]


def test_an_agent_is_replaced_as_a_whole(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_agent(options)
    before = {path.name: path.read_bytes() for path in (options.out / "last").iterdir()}
    assert "agent.safetensors" in before

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_actor", killed)
    with pytest.raises(KeyboardInterrupt):
        train_agent(replace(options, resume=True, steps=96))
    assert {path.name: path.read_bytes() for path in (options.out / "last").iterdir()} == before


def test_any_seed_will_do(options: TrainOptions) -> None:
    train_agent(replace(options, seed=2**40, steps=4))


def test_the_actor_never_goes_uphill(options: TrainOptions, perception: Perception) -> None:
    """Three environments overshoot the last step, and less than nothing of the training remains."""
    few = replace(options, environments=3)
    environments = make_environments(few, perception, [synthetic_sequence(0)])
    model = make_model(few, environments, "cpu")
    assert isinstance(model, LatentPriorSAC)
    rate = model.actor_learning_rate
    assert callable(rate)
    assert rate(0.5) == 0.5 * few.actor_learning_rate
    assert rate(-0.1) == 0


def test_a_plain_actor_has_hidden_layers_even_if_none_are_asked_for(options: TrainOptions) -> None:
    train_agent(replace(options, policy="plain", actor_hidden=(), steps=2))
    assert load_actor(options.out / "last").actor.net_arch == [256, 256]


def test_the_best_agent_is_chosen_on_other_data(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stills(tmp_path / "stills")
    asked: list[tuple[str, int]] = []
    load = sources.load_sequences

    def recorded(source: str, *, synthetic_count: int, seed: int) -> list[VideoSequence]:
        asked.append((source, synthetic_count))
        return load(source, synthetic_count=synthetic_count, seed=seed)

    monkeypatch.setattr(sources, "load_sequences", recorded)
    data = f"cutouts:{tmp_path / 'stills'}"
    train_agent(replace(options, data=(data,), validation_data=("synthetic",), steps=24))
    assert asked == [(data, 3), ("synthetic", 2)]


def test_time_limit_leaves_a_checkpoint(options: TrainOptions) -> None:
    train_agent(replace(options, max_minutes=1e-6))
    assert load_checkpoint(options.out / "checkpoints")["num_timesteps"] < options.steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ("stills:x",)}, "--data stills:x: stills have no motion"),
        ({"validation_data": ("duts:x",)}, "--validation-data duts:x: stills have no motion"),
        ({"data": ("synthetic", "davis16:/nowhere")}, "no folder"),
        ({"data": ()}, "--data needs at least one"),
        ({"weights": "nowhere"}, "no weights"),
        ({"environments": 0}, "--environments"),
        ({"gamma": 1.5}, "--gamma"),
        ({"target_kl": 0.0}, "--target-kl"),
        ({"resume": True}, "nothing to resume"),
        ({"device": "tpu"}, "--device"),
        ({"max_minutes": 0.0}, "--max-minutes must be positive"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"truth_share": 0.1}, "--truth-share 0.1 of 2 environments rounds to none"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    options: TrainOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_agent(replace(options, **change))
    assert not options.out.exists()


def test_frames_are_checked_before_anything_is_written(
    options: TrainOptions, tmp_path: Path
) -> None:
    root = write_tree(tmp_path / "davis", ("ant", "bee", "cat"))
    (root / "JPEGImages/480p/bee/00004.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the image .*bee/00004\.jpg"):
        train_agent(replace(options, data=(f"davis16:{root}",)))
    assert not options.out.exists()


def test_a_run_goes_on_with_the_sequences_it_began_with(
    options: TrainOptions, tmp_path: Path
) -> None:
    root = write_tree(tmp_path / "davis", ("ant", "bee", "cat"))
    mixed = replace(options, data=("synthetic", f"davis16:{root}"), steps=4)
    train_agent(mixed)
    train_agent(replace(mixed, steps=8, resume=True))
    write_tree(root, ("dog",))
    with pytest.raises(UserError, match=r"davis16:.* no longer holds the sequences"):
        train_agent(replace(mixed, steps=12, resume=True))


def test_a_run_goes_on_with_the_encoder_it_began_with(
    options: TrainOptions, tmp_path: Path
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(weights_folder(options.weights), encoder)
    run = replace(options, weights=str(encoder), steps=4)
    train_agent(run)
    save_covariance_scale(encoder, 7.0)  # that changes nothing that was learned from
    train_agent(replace(run, steps=8, resume=True))
    change_config(encoder, box_threshold=0.3)
    with pytest.raises(UserError, match="no longer holds the encoder that this run began with"):
        train_agent(replace(run, steps=12, resume=True))


def test_cut_outs_to_choose_on_are_of_other_stills(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stills(tmp_path / "stills", 8)
    used: list[set[str]] = []
    make = sources.cutout_sequences

    def recorded(stills: list[VideoSequence], *rest: int) -> list[VideoSequence]:
        used.append({still.name for still in stills})
        return make(stills, *rest)

    monkeypatch.setattr(sources, "cutout_sequences", recorded)
    data = f"cutouts:{tmp_path / 'stills'}"
    training, clips = training_and_validation(
        replace(options, data=(data,), validation_share=0.5, synthetic_count=4)
    )
    assert [len(stills) for stills in used] == [4, 4]
    assert not used[0] & used[1]
    assert len(training) == 4
    assert len(clips) == options.validation_clips


def test_options_are_recorded(options: TrainOptions) -> None:
    train_agent(replace(options, steps=2))
    recorded = json.loads((options.out / "options.json").read_text())
    assert recorded["target_kl"] == options.target_kl


def test_several_kinds_of_data_are_held_out_each(options: TrainOptions, tmp_path: Path) -> None:
    davis = f"davis16:{write_tree(tmp_path / 'davis', tuple(f's{i:02d}' for i in range(30)))}"
    mixed = replace(options, data=("synthetic", davis), validation_clips=6)
    training, clips = training_and_validation(mixed)
    made = [sequence for sequence in training if sequence.name.startswith("synthetic")]
    real = {sequence.name.split("~")[0] for sequence in training} - {s.name for s in made}
    assert (len(made), len(real)) == (options.synthetic_count, 24)
    assert len(training) == len(made) + 8 * len(real)  # mirrored
    names = [clip.sequence.name for clip in clips]
    assert [name.startswith("synthetic") for name in names] == [True] * 3 + [False] * 3
    assert not real & set(names)
    assert not {sequence.name for sequence in made} & set(names)
    training, clips = training_and_validation(replace(mixed, mirror="upside-down"))
    views = [sequence.name.split("~")[1] for sequence in training if "~" in sequence.name]
    assert len(training) == len(made) + 4 * len(real) == len(made) + len(views)
    assert all("y" in view for view in views)
    chosen_on = [clip.sequence.name for clip in clips[3:]]
    assert all(name.endswith("~y") for name in chosen_on)
    assert [name.split("~")[0] for name in chosen_on] == names[3:]
