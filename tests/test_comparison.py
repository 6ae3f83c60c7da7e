"""Comparing ways to learn: whole and resumable, with numbers that follow from the runs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import change_config
from rich.console import Console

from agents import comparison
from agents.comparison import METHODS, Curve, clip_overlaps, compare
from agents.comparison_report import crossed_bootstrap, plot_curves, rows
from agents.options import TrainOptions
from bmvtrack.data.scene import SceneOptions
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.errors import UserError
from bmvtrack.iou import rotated_iou
from envs import BMVTrackEnv, BMVTrackVectorEnv
from envs.clips import ClipSource


@pytest.fixture(scope="module")
def sequences():
    options = SceneOptions(width=96, height=72, length=7)
    return [synthetic_sequence(seed, options).in_memory() for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def options(perception, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    perception.network.save_weights(folder / "encoder")
    return TrainOptions(
        out=folder / "runs",
        weights=str(folder / "encoder"),
        steps=24,
        environments=4,
        updates=1,
        batch_size=8,
        learning_starts=8,
        critic_hidden=(8,),
        validate_every=12,
        device="cpu",
    )


def test_overlaps_are_means_over_the_scored_frames_of_each_clip(sequences, perception):
    clips = ClipSource(sequences, 10**9).spread(3)
    many = BMVTrackVectorEnv(3, weights=perception, coordinates="object", clips=clips)
    found = clip_overlaps(lambda o: o["prior_mean"], many)
    for overlap, clip in zip(found, clips, strict=True):
        single = BMVTrackEnv([clip.sequence], perception, coordinates="object", clip_length=99)
        observation, _ = single.reset(options={"sequence": 0, "start": clip.start})
        scores, over = [], False
        while not over:
            observation, _, lost, late, info = single.step(observation["prior_mean"])
            scores.append(float(rotated_iou(info["rbbox"], info["truth"])))
            over = lost or late
        assert overlap == pytest.approx(np.nanmean(scores), abs=1e-4)


def test_every_method_learns(options, sequences):
    once = replace(options, out=options.out / "once")
    curves = compare(once, [0], sequences[:2], sequences[2:], 2, Console(quiet=True))
    assert [curve.method for curve in curves] == list(METHODS)
    for curve in curves:
        assert list(curve.steps) == [0, 12, 24]
        assert curve.overlaps.shape == (3, 2)
        assert curve.sequences == (sequences[2].name,) * 2
        assert not np.array_equal(curve.overlaps[0], curve.overlaps[2])


def test_runs_are_kept_and_not_repeated(options, sequences):
    options = replace(options, steps=16, out=options.out / "kept")
    rest = sequences[:2], sequences[2:], 2, Console(quiet=True)
    one = {"methods": ["latent prior"]}
    assert compare(options, [0, 1], *rest, max_minutes=1e-9, **one) == []
    first, second = compare(options, [0, 1, 0], *rest, methods=["latent prior"] * 2)
    assert (first.seed, second.seed) == (0, 1)
    assert first.steps.tolist() == [0, 12, 16]
    np.testing.assert_array_equal(first.overlaps[0], second.overlaps[0])  # untrained
    files = {path: path.read_text() for path in options.out.glob("*.json")}
    assert len(files) == 2
    again = compare(options, [0, 1], *rest, max_minutes=1e-9)
    for old, new in zip((first, second), again, strict=True):
        np.testing.assert_allclose(new.overlaps, old.overlaps)
    assert {path: path.read_text() for path in options.out.glob("*.json")} == files
    with pytest.raises(UserError, match="other options; give another --out"):
        compare(replace(options, gamma=0.1), [0, 1], *rest)
    with pytest.raises(UserError, match="--seed must not be negative"):
        compare(options, [-1], *rest)
    with pytest.raises(UserError, match="other test clips, or does not say on which"):
        compare(options, [0, 1], sequences[:2], sequences[1:], *rest[2:])
    encoder = shutil.copytree(options.weights, options.out / "encoder")
    moved = replace(options, weights=str(encoder))
    for path, text in files.items():
        path.write_text(text.replace(options.weights, moved.weights))
    assert len(compare(moved, [0, 1], *rest, max_minutes=1e-9)) == 2
    change_config(encoder, box_threshold=0.3)
    with pytest.raises(UserError, match="holds a run with another encoder than"):
        compare(moved, [0, 1], *rest)
    damaged = min(files)
    for text in (json.dumps({"options": {}})[:-1], "[]"):
        damaged.write_text(text)
        with pytest.raises(UserError, match="does not hold a run"):
            compare(options, [0, 1], *rest)


def test_the_table_follows_from_the_runs(tmp_path):
    steps = np.array([0, 10, 20])

    def curve(method, seed, *means):
        rng = np.random.default_rng(3)
        overlaps = np.array(means)[:, None] + rng.normal(0, 0.01, 40)
        return Curve(method, seed, steps, overlaps, tuple(f"clip {i}" for i in range(40)))

    curves = [
        *(curve("latent prior", seed, 0.5, 0.54, 0.56) for seed in (0, 1)),
        *(curve("plain SAC, frame", seed, 0.1, 0.3, 0.53) for seed in (0, 1)),
    ]
    untrained, latent, plain = rows(curves, tmp_path / "table.csv")
    assert untrained[0] == "untrained prior"
    assert latent[:2] == ("latent prior", "2")
    assert latent[3].startswith("+0.060 [+0.06")
    assert latent[4:] == ("", "10")
    assert plain[3].startswith("+0.030")
    assert plain[4] == "-0.030 [-0.030, -0.030]"
    assert plain[5] == "20"
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4
    plot_curves(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_sequences_of_a_folder_are_mirrored_for_every_method(options, sequences, monkeypatch):
    seen = []

    def trained(method, run, perception, training, clips, console):
        seen.append([sequence.name for sequence in training])
        return Curve(method, run.seed, np.array([0]), np.zeros((1, 1)), ("clip",))

    monkeypatch.setattr(comparison, "_train", trained)
    for data, mirror in (
        ("davis16:somewhere", "all"),
        ("davis16:somewhere", "none"),
        ("synthetic", "all"),
    ):
        run = replace(
            options, data=(data,), mirror=mirror, out=options.out / f"{data[:5]}-{mirror}"
        )
        compare(run, [0], sequences[:1], sequences[2:], 1, Console(quiet=True))
        assert json.loads(min(run.out.glob("*.json")).read_text())["options"]["mirror"] == mirror
    assert [len(names) for names in seen] == [8] * len(METHODS) + [1] * 2 * len(METHODS)


def test_a_good_seed_is_good_on_all_sequences():
    rng = np.random.default_rng(0)
    by_sequence, by_seed = rng.normal(0, 1, (40, 1)), rng.normal(0, 1, (1, 4))
    scores = np.repeat(by_seed, 40, axis=0)
    estimate = crossed_bootstrap(scores)
    assert estimate.mean == pytest.approx(by_seed.mean())
    assert estimate.high - estimate.low > by_seed.std()  # more sequences do not make seeds surer
    wide = crossed_bootstrap(np.repeat(by_sequence, 4, axis=1))
    assert wide.high - wide.low == pytest.approx(4 * by_sequence.std() / 40**0.5, rel=0.1)
    with pytest.raises(ValueError, match="at least one"):
        crossed_bootstrap(np.zeros((0, 3)))


def test_a_clip_that_ended_counts_no_more(sequences, perception):
    short = synthetic_sequence(4, SceneOptions(width=96, height=72, length=5)).in_memory()
    clips = ClipSource([sequences[0], short], 10**9).spread(2)

    def overlaps(*clips):
        many = BMVTrackVectorEnv(
            len(clips), weights=perception, coordinates="object", clips=list(clips)
        )
        return clip_overlaps(lambda o: o["prior_mean"], many)

    alone = np.concatenate([overlaps(clip) for clip in clips])
    np.testing.assert_allclose(overlaps(*clips), alone, atol=1e-4)


def test_a_clip_without_a_scored_frame_has_no_overlap():
    class Environment:
        num_envs = 2

        def reset(self):
            return {}, {}

        def step(self, actions):
            iou, over = torch.tensor([0.5, torch.nan]), torch.tensor([True, True])
            return {}, None, over, ~over, {"iou": iou, "final_info": {"iou": iou}}

    np.testing.assert_array_equal(clip_overlaps(lambda o: o, Environment()), [0.5, np.nan])


def test_methods_are_judged_to_the_end_in_their_own_coordinates(options, sequences, monkeypatch):
    judged = []

    class Noted(BMVTrackVectorEnv):
        def __init__(self, *arguments, **named):
            judged.append(named)
            super().__init__(*arguments, **named)

    monkeypatch.setattr(comparison, "BMVTrackVectorEnv", Noted)
    methods = ["latent prior", "plain SAC, object"]
    options = replace(
        options, steps=8, validate_every=8, precision="bfloat16", out=options.out / "judged"
    )
    compare(options, [0], sequences[:2], sequences[2:], 2, Console(quiet=True), None, methods)
    assert [named["coordinates"] for named in judged] == ["frame", "object"]
    for named in judged:
        assert named["lost_after"] > 10**6
        assert named["weights"].precision == "float32"  # whatever learns
        assert [clip.last for clip in named["clips"]] == [6, 6]


def test_every_method_has_its_turn_before_the_next_seed(options, sequences, monkeypatch):
    def trained(method, run, perception, training, clips, console):
        return Curve(method, run.seed, np.array([0]), np.zeros((1, 1)), ("clip",))

    monkeypatch.setattr(comparison, "_train", trained)
    run = replace(options, out=options.out / "turns")
    methods = ["latent prior", "plain SAC, frame"]
    rest = sequences[:1], sequences[2:], 1, Console(quiet=True)
    curves = compare(run, [0, 1], *rest, methods=methods)
    assert [(c.seed, c.method) for c in curves] == [(s, m) for s in (0, 1) for m in methods]


def test_methods_run_before_are_shown_with_those_asked_for(options, sequences, monkeypatch):
    ran = []

    def trained(method, run, perception, training, clips, console):
        ran.append(method)
        return Curve(method, run.seed, np.array([0]), np.zeros((1, 1)), ("clip",))

    monkeypatch.setattr(comparison, "_train", trained)
    run = replace(options, out=options.out / "earlier")
    rest = sequences[:1], sequences[2:], 1, Console(quiet=True)
    compare(run, [0, 1], *rest, methods=["plain SAC, frame"])
    curves = compare(run, [0], *rest, methods=["latent prior"])
    assert [(c.method, c.seed) for c in curves] == [("latent prior", 0), ("plain SAC, frame", 0)]
    assert ran == ["plain SAC, frame", "plain SAC, frame", "latent prior"]


def test_what_has_no_score_has_none_when_it_is_read_again(options, sequences, monkeypatch):
    overlaps = np.array([[0.5, np.nan]])

    def trained(method, run, perception, training, clips, console):
        return Curve(method, run.seed, np.array([0]), overlaps, ("a", "b"))

    monkeypatch.setattr(comparison, "_train", trained)
    run, one = replace(options, out=options.out / "missing"), {"methods": ["latent prior"]}
    for _ in range(2):
        (curve,) = compare(run, [0], sequences[:1], sequences[1:], 2, Console(quiet=True), **one)
        np.testing.assert_array_equal(curve.overlaps, overlaps)


def test_the_table_counts_sequences_and_pairs_seeds(tmp_path):
    def curve(method, seed, *overlaps):
        return Curve(method, seed, np.array([0]), np.array([overlaps]), ("a", "a", "a", "b"))

    curves = [
        curve("latent prior", 0, 0.1, 0.1, 0.1, 0.5),
        curve("latent prior", 1, 0.3, 0.3, 0.3, 0.7),
        curve("latent prior", 2, 0.9, 0.9, 0.9, 0.9),  # of no other method
        curve("plain SAC, frame", 0, 0.2, 0.2, np.nan, 0.6),  # left out, for every seed
        curve("plain SAC, frame", 1, 0.4, 0.4, 0.9, 0.8),
    ]
    *_, plain = rows(curves, tmp_path / "table.csv")
    assert plain[2].startswith("0.500 [")
    assert plain[4] == "+0.100 [+0.100, +0.100]"
