"""Pretraining runs that were stopped: what goes on, and what is refused to."""

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from rectangles import write_rectangles
from runs import assert_equal, final_state, killed_at, small_run, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bmvtrack import console, prior
from bmvtrack.errors import UserError
from bmvtrack.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from bmvtrack.training.pretrain import PretrainRun

LOOP = sys.modules[PretrainRun.__module__]  # the package gives the function of that name
MODES = pytest.mark.parametrize("mode", ["paper", "tracking"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture
def options(data, tmp_path):
    return small_run(tmp_path / "run", data)


@pytest.fixture(scope="module")
def once(data, tmp_path_factory):
    """A finished run, and its metrics; to be copied, not changed."""
    options = small_run(tmp_path_factory.mktemp("once") / "run", data)
    return options.out, train(options)[0]


@pytest.fixture
def finished(options, once):
    """Options of a run that is finished."""
    shutil.copytree(once[0], options.out)
    return options


@MODES
def test_stopped_by_the_clock_and_resumed_equals_not_stopped(options, tmp_path, mode, monkeypatch):
    train(options, out=tmp_path / "straight", mode=mode)
    minutes = iter(range(100))  # every look at the clock takes a minute
    clock = SimpleNamespace(monotonic=lambda: 60.0 * next(minutes))
    with monkeypatch.context() as patch:
        for module in (LOOP, console):
            patch.setattr(module, "time", clock)
        metrics, printed = train(options, mode=mode, max_minutes=2.5)
    assert "time is up at step 2; continue with --resume" in printed
    assert json.loads((options.out / "metrics.json").read_text()) == {"step": 2, **metrics}
    (events,) = (options.out / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1"))  # written in an earlier second
    _, printed = train(options, mode=mode, resume=True)
    assert "at step 2 of 6" in printed
    assert_equal(final_state(options.out), final_state(tmp_path / "straight"))
    events = EventAccumulator(str(options.out / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("validation/loss")] == [2, 3, 6]


@MODES
def test_killed_and_resumed_equals_not_stopped(options, tmp_path, mode):
    straight, _ = train(options, out=tmp_path / "straight", mode=mode)
    with killed_at(5):
        train(options, mode=mode)
    metrics, printed = train(options, mode=mode, resume=True)
    assert "at step 3 of 6" in printed
    assert metrics == straight
    runs = [load_checkpoint(out / "checkpoints") for out in (options.out, tmp_path / "straight")]
    assert_equal(*runs)
    for folder in ("best", "last"):
        weights = [
            out / folder / "model.safetensors" for out in (options.out, tmp_path / "straight")
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@MODES
def test_between_validations_a_run_is_saved_now_and_then(options, tmp_path, mode, monkeypatch):
    straight, _ = train(options, out=tmp_path / "straight", mode=mode)
    monkeypatch.setattr(LOOP, "_SAVE_EVERY", 120)
    minutes = iter(range(100))
    clock = SimpleNamespace(monotonic=lambda: 60.0 * next(minutes))
    with monkeypatch.context() as patch, killed_at(5):
        patch.setattr(LOOP, "time", clock)
        train(options, mode=mode)
    # After two minutes, at the validation, and two minutes later.
    there = [path.name for path in checkpoints(options.out / "checkpoints")]
    assert there == ["step-00000003.pt", "step-00000004.pt"]
    metrics, printed = train(options, mode=mode, resume=True)
    assert "at step 4 of 6" in printed
    assert metrics == straight
    assert_equal(final_state(options.out), final_state(tmp_path / "straight"))


def test_a_corrupt_checkpoint_is_passed_over(finished, once):
    newest = checkpoints(finished.out / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    _, printed = train(finished, resume=True)
    assert "at step 3 of 6" in printed
    assert_equal(final_state(finished.out), final_state(once[0]))


def test_a_run_goes_on_on_another_kind_of_device(finished):
    """There the states of random generators have another length; its batches are others, then."""
    folder = finished.out / "checkpoints"
    state = load_checkpoint(folder)
    for name in ("generators", "noises"):
        state[name] = [torch.arange(16, dtype=torch.uint8)]
    save_checkpoint(folder, 6, state)
    run = PretrainRun(dataclasses.replace(finished, resume=True, steps=9).resolved())
    with pytest.raises(UserError, match="other options"):
        run.load()
    run = PretrainRun(dataclasses.replace(finished, resume=True).resolved())
    run.load()
    first = run.train_sampler.draw(2, run.generator).patches
    run.load()
    assert torch.equal(run.train_sampler.draw(2, run.generator).patches, first)


def test_a_finished_run_is_only_validated_again(finished, once):
    again, printed = train(finished, resume=True)
    assert again == once[1]
    assert "at step 6 of 6" in printed


@pytest.mark.parametrize("change", ["renamed", "added", "shortened"])
def test_other_sequences_than_before_are_refused(change, tmp_path):
    """Others would be held out then, and what was held out be trained on."""
    options = small_run(tmp_path / "run", write_rectangles(tmp_path / "data"))
    train(options)
    for kind in ("JPEGImages", "Annotations"):
        folder = tmp_path / "data" / "videos" / kind / "480p"
        if change == "renamed":
            (folder / "v0").rename(folder / "v9")
        elif change == "added":
            shutil.copytree(folder / "v0", folder / "v9")
        else:
            max((folder / "v3").iterdir()).unlink()
    before = contents(options.out)
    with pytest.raises(UserError, match=r"davis16:.* no longer holds the sequences"):
        train(options, resume=True)
    assert contents(options.out) == before


def test_a_prior_that_has_changed_is_refused(options, tmp_path):
    """It is given by name; with another the network would predict in other units."""
    path, given = tmp_path / "prior.json", prior.named("davis16")
    given.save(path)
    train(options, prior=str(path))
    train(options, prior=str(path), resume=True)
    dataclasses.replace(given, covariance=9 * given.covariance).save(path)
    with pytest.raises(UserError, match=r"prior.json is no longer the prior that this run began"):
        train(options, prior=str(path), resume=True)


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_neither_overwritten_nor_resumed_with_other_options(finished):
    before = contents(finished.out)
    with pytest.raises(UserError, match=r"run already holds a run; add --resume, or give another"):
        train(finished)
    with pytest.raises(UserError, match=r"run with other options \(width, batch_size\)"):
        train(finished, resume=True, width=8, batch_size=2)
    with pytest.raises(UserError, match=r"run with other options \(mode, prior, .*\)"):
        train(finished, resume=True, mode="paper")
    with pytest.raises(UserError, match=r"run with other options \(shares\)"):
        train(finished, resume=True, shares=(2, 1))
    assert contents(finished.out) == before


def test_other_options_are_refused_before_data_is_read(finished, monkeypatch):
    monkeypatch.setattr(
        "bmvtrack.data.sources.load_sequences", lambda *_, **__: pytest.fail("read")
    )
    with pytest.raises(UserError, match=r"run with other options \(width\)"):
        train(finished, resume=True, width=8)


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"\xff"])
def test_a_damaged_record_of_options_is_passed_over(finished, content):
    (finished.out / "options.json").unlink()
    if content is not None:
        (finished.out / "options.json").write_bytes(content)
    assert "at step 6 of 6" in train(finished, resume=True)[1]


def test_runs_of_before_the_split_s_seed_go_on(options):
    """They split by their seed."""
    train(options, seed=3, split_seed=3)
    folder = options.out / "checkpoints"
    state = load_checkpoint(folder)
    known = json.loads(state["options"])
    del known["split_seed"]
    save_checkpoint(folder, 6, state | {"options": json.dumps(known)})
    (options.out / "options.json").write_text(json.dumps(known))
    assert "at step 6 of 6" in train(options, seed=3, split_seed=3, resume=True)[1]
    with pytest.raises(UserError, match=r"other options \(split_seed\)"):
        train(options, seed=3, resume=True)


def test_there_must_be_something_to_resume(options):
    with pytest.raises(UserError, match=r"nothing to resume in .*run; omit --resume"):
        train(options, resume=True)
    assert not options.out.exists()


def test_a_moved_run_can_be_resumed(finished, tmp_path):
    finished.out.rename(tmp_path / "moved")
    _, printed = train(finished, out=tmp_path / "moved", resume=True, max_minutes=5)
    assert "at step 6" in printed
