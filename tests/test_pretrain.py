"""The pretraining loop, from options to weights."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from banks import draw
from networks import example
from rectangles import write_rectangles
from runs import assert_equal, final_state, killed_at, small_run, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bmvtrack import prior
from bmvtrack.data import sources
from bmvtrack.data.augmentation import Augmentation
from bmvtrack.data.samples import Sampler
from bmvtrack.errors import UserError
from bmvtrack.models import BetaMVAE, BetaMVUNet, load_network
from bmvtrack.training import PretrainOptions
from bmvtrack.training.checkpoint import checkpoints, load_checkpoint
from bmvtrack.training.objective import objective
from bmvtrack.training.parts import build_network, build_optimizer, build_samplers
from bmvtrack.training.pretrain import PretrainRun

LOOP = sys.modules[PretrainRun.__module__]  # the package gives the function of that name
MODES = pytest.mark.parametrize("mode", ["paper", "tracking"])
TRACKING_METRICS = {"motion_nll", "motion_error", "box_iou", "box_threshold"}
METRICS = {"loss", "mask_iou", "kl", "mahalanobis", "active_units"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture
def options(data, tmp_path):
    return small_run(tmp_path / "run", data)


@MODES
def test_a_run_leaves_weights_checkpoints_and_logs(options, mode, monkeypatch):
    monkeypatch.setattr(LOOP, "_LOG_EVERY", 2)
    metrics, printed = train(options, mode=mode)
    out = options.out
    expected = METRICS | (TRACKING_METRICS if mode == "tracking" else set())
    assert metrics.keys() == expected
    assert json.loads((out / "metrics.json").read_text()) == {"step": 6, **metrics}
    assert 0 <= metrics["mask_iou"] <= 1
    assert {p.name for p in out.iterdir()} == {
        "best", "last", "checkpoints", "tensorboard", "metrics.json", "options.json",
    }  # fmt: skip
    assert [p.name for p in checkpoints(out / "checkpoints")] == [
        "step-00000003.pt",
        "step-00000006.pt",
    ]
    assert "step 3: " in printed
    assert "step 6: " in printed
    last, best = load_network(out / "last"), load_network(out / "best")
    assert last.input_channels == best.input_channels == (4 if mode == "tracking" else 3)
    assert last.box_threshold == metrics.get("box_threshold", 0.125)
    state = load_checkpoint(out / "checkpoints")
    for name, value in last.state_dict().items():
        torch.testing.assert_close(value, state["network"][name], rtol=1e-3, atol=1e-4)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"validation/{name}" for name in expected} <= tags
    terms = {"total", "cross_entropy", "jaccard", "kl", "learning_rate"}
    assert {f"train/{name}" for name in terms} <= tags
    assert ("train/motion_nll" in tags) == (mode == "tracking")
    assert [e.step for e in events.Scalars("train/total")] == [2, 4, 6]
    assert [e.step for e in events.Scalars("validation/loss")] == [3, 6]


def test_folders_are_read_once_by_runs_that_share_what_they_read(options, tmp_path, monkeypatch):
    read, names, banks = sources.load_bank, [], {}
    monkeypatch.setattr(
        sources, "load_bank", lambda name, *rest: names.append(name) or read(name, *rest)
    )
    options = dataclasses.replace(options, data=(*options.data, "synthetic"), synthetic_count=2)
    for name in ("first", "second", "alone"):
        train(options, None if name == "alone" else banks, out=tmp_path / name)
    assert names == [*options.data, "synthetic", *options.data]
    assert_equal(final_state(tmp_path / "second"), final_state(tmp_path / "alone"))
    train(options, banks, out=tmp_path / "smaller", longest_side=64)
    assert names[7:] == list(options.data)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stopped", [False, True])
def test_the_best_weights_are_those_of_the_lowest_loss_of_all_even_before_a_stop(
    options, tmp_path, stopped, monkeypatch
):
    losses = iter((3.0, 1.0, 2.0))

    def validate(run):
        run.network.save_weights(tmp_path / str(run.step))
        return {"loss": next(losses)}

    monkeypatch.setattr(PretrainRun, "validate", validate)
    options = dataclasses.replace(options, width=2, steps=3, validate_every=1)
    if stopped:
        with killed_at(2):
            train(options)
    train(options, resume=stopped)
    validated = [weights(tmp_path / str(step)) for step in (1, 2, 3)]
    assert len(set(validated)) == 3
    assert weights(options.out / "best") == validated[1]
    assert weights(options.out / "last") == validated[2]


def test_modes_set_what_is_left_open(options):
    paper = dataclasses.replace(options, mode="paper").resolved()
    assert (paper.prior, paper.covariance, paper.reparameterization) == ("paper", "batch", "affine")
    assert (paper.beta, paper.likelihood, paper.learning_rate) == (5, 0, 1e-4)
    assert paper.shares == (1, 1)
    unchanged = PretrainOptions()
    assert (unchanged.batch_size, unchanged.reduction, unchanged.kl_direction) == (
        32,
        "norm",
        "posterior",
    )
    network = build_network(paper)
    assert network.input_channels == 3
    assert torch.equal(network.bottleneck.scale, torch.ones(5))
    tracking = dataclasses.replace(options, beta=0.5).resolved()
    assert (tracking.prior, tracking.covariance, tracking.beta) == ("davis16", "frame", 0.5)
    open_ = unchanged.resolved()
    assert (open_.beta, open_.likelihood, open_.learning_rate) == (0.01, 0.1, 2e-3)
    network = build_network(tracking)
    assert network.input_channels == 4
    scale = prior.named("davis16").standard_deviations
    np.testing.assert_allclose(network.bottleneck.scale, scale, rtol=1e-6)


def test_what_is_held_out_is_so_in_every_run_that_goes_on(options):
    """Stages of training have seeds of their own, and must not train on each other's validation data."""
    held_out = []
    for seed, split_seed in ((0, 0), (5, 0), (5, 1)):
        run = dataclasses.replace(options, seed=seed, split_seed=split_seed, validation_share=0.4)
        _, validation = build_samplers(run.resolved(), torch.device("cpu"))
        held_out.append([sampler.targets.tolist() for sampler in validation.samplers])
    assert held_out[0] == held_out[1] != held_out[2]


def test_training_is_augmented_as_the_options_say_and_validation_is_not(options):
    shares = {"distractors": 0.2, "backgrounds": 0.3, "whole_images": 0.5, "own_boxes": 0.6}
    resolved = dataclasses.replace(options, jitter=(0.4, 0.7), **shares).resolved()
    expected = Augmentation(strengths=(0.4, 0.7), **shares)
    mixtures = build_samplers(resolved, torch.device("cpu"))
    for mixture, augment in zip(mixtures, (True, False), strict=True):
        assert len(mixture.samplers) == 2
        for source in mixture.samplers:
            assert source.augmentation == expected
            by_hand = [
                Sampler(source.bank, source.targets, 64, 4, "tracking", expected, either)
                for either in (augment, not augment)
            ]
            found, same, other = (vars(draw(each, 16)) for each in (source, *by_hand))
            torch.testing.assert_close(found, same, rtol=0, atol=0, equal_nan=True)
            assert not torch.equal(found["patches"], other["patches"])


@pytest.mark.parametrize("direction", ["posterior", "prior"])
@pytest.mark.parametrize("class_weights", ["balanced", "none"])
def test_the_loss_is_weighted_as_the_options_say(options, direction, class_weights):
    chosen = {"kl_direction": direction, "class_weights": class_weights}
    chosen |= {"beta": 0.3, "likelihood": 0.7}
    given = example()
    found = PretrainRun(dataclasses.replace(options, **chosen).resolved()).loss_terms(*given)
    assert_equal(found, objective(*given, **chosen))


def learning_rates(options, steps):
    """The optimiser's kind, and its rate before each step."""
    optimizer, scheduler = build_optimizer(torch.nn.Linear(1, 1), options, torch.device("cpu"))
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return type(optimizer), rates


def test_the_paper_s_schedule(options):
    """RAdam, a rate that goes from 5e-5 to 1e-4 and back (paper, §4.4)."""
    kind, rates = learning_rates(dataclasses.replace(options, mode="paper").resolved(), 4001)
    assert kind is torch.optim.RAdam
    assert (rates[0], rates[2000], rates[4000]) == pytest.approx((5e-5, 1e-4, 5e-5))
    assert rates[1000] == pytest.approx(7.5e-5)


def test_the_schedule_of_tracking_is_one_cycle(options):
    kind, rates = learning_rates(dataclasses.replace(options, steps=100).resolved(), 100)
    assert kind is torch.optim.AdamW
    assert max(rates) == pytest.approx(2e-3, rel=1e-3)
    assert rates.index(max(rates)) == pytest.approx(10, abs=1)
    assert rates[-1] < 1e-5


@MODES
def test_a_run_follows_its_schedule(options, mode, monkeypatch):
    monkeypatch.setattr(LOOP, "_LOG_EVERY", 1)
    options = dataclasses.replace(options, mode=mode, width=2, steps=3)
    train(options)
    events = EventAccumulator(str(options.out / "tensorboard")).Reload()
    _, rates = learning_rates(options.resolved(), 4)
    logged = {e.step: e.value for e in events.Scalars("train/learning_rate")}
    assert logged == pytest.approx(dict(enumerate(rates[1:], start=1)), rel=1e-5)


def gradients(options, scale, monkeypatch):
    """What the first step descends by, as one vector, where the loss is so many times as large."""
    run = PretrainRun(options)
    plain = run.loss_terms

    def scaled(*arguments):
        terms = plain(*arguments)
        return terms | {"total": scale * terms["total"]}

    monkeypatch.setattr(run, "loss_terms", scaled)
    run.training_step()
    return torch.cat([p.grad.flatten() for p in run.network.parameters() if p.grad is not None])


@MODES
def test_large_gradients_are_shortened_and_small_ones_left(options, mode, monkeypatch):
    options = dataclasses.replace(options, mode=mode, width=2).resolved()
    small, double, large = (gradients(options, s, monkeypatch) for s in (2e-4, 4e-4, 1e4))
    assert double.norm() < 5
    torch.testing.assert_close(double, 2 * small, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(large, 5 * small / small.norm(), rtol=1e-3, atol=1e-6)


def test_sizes_left_open_are_those_of_mode_and_architecture():
    sizes = {}
    for mode in ("paper", "tracking"):
        for architecture in ("resnet-unet", "beta-mvae", "beta-mvunet"):
            resolved = PretrainOptions(mode=mode, architecture=architecture).resolved()
            sizes[mode, architecture] = resolved.input_size, resolved.width
    assert sizes == {
        ("paper", "resnet-unet"): (256, 32),
        ("paper", "beta-mvae"): (256, 64),
        ("paper", "beta-mvunet"): (256, 64),
        ("tracking", "resnet-unet"): (128, 32),
        ("tracking", "beta-mvae"): (128, 64),
        ("tracking", "beta-mvunet"): (128, 64),
    }


@MODES
@pytest.mark.parametrize("architecture", [BetaMVAE, BetaMVUNet])
def test_the_networks_of_the_paper_are_trained(options, mode, architecture):
    name = {BetaMVAE: "beta-mvae", BetaMVUNet: "beta-mvunet"}[architecture]
    before = build_network(dataclasses.replace(options, mode=mode, architecture=name).resolved())
    metrics, _ = train(options, mode=mode, architecture=name, steps=2)
    assert all(np.isfinite(value) for value in metrics.values())
    network = load_network(options.out / "last")
    assert type(network) is type(before) is architecture
    assert network.classes == 2
    assert network.input_channels == (4 if mode == "tracking" else 3)
    assert network.feature_count == {BetaMVAE: 8, BetaMVUNet: 16}[architecture] * 4
    for head in ("mean_head", "covariance_head"):
        weight = getattr(network.bottleneck, head).weight
        assert not torch.allclose(weight, getattr(before.bottleneck, head).weight)


@MODES
def test_a_seed_makes_a_run(options, tmp_path, mode):
    states = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        torch.manual_seed(len(states))  # what happened before does not matter
        train(options, out=tmp_path / name, mode=mode, seed=seed, steps=2)
        states.append(load_checkpoint(tmp_path / name / "checkpoints"))
    assert_equal(*states[:2])
    weights = [state["network"]["bottleneck.mean_head.weight"] for state in states]
    assert not torch.equal(weights[2], weights[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ("youtube",)}, "unknown data 'youtube'"),
        ({"data": ("davis16:nowhere",)}, "no folder nowhere"),
        ({"data": ()}, "--data needs at least one name"),
        ({"mode": "paper", "jitter": (0.5,)}, "--jitter are for --mode tracking"),
        ({"shares": (1,)}, "--shares needs one positive number for each"),
        ({"shares": (1, -1)}, "--shares needs one positive number for each"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"batch_size": 1}, "one patch of 64×64 is too little for batch norm"),
        ({"validate_every": 0}, "--validate-every must be at least 1"),
        ({"width": 0}, "--width must be at least 1"),
        ({"input_size": 100}, "--input-size must be a multiple of 64, not 100"),
        ({"samples": 5}, "--samples must be at least 6"),
        ({"validation_share": 1.0}, r"--validation-share must lie in \(0, 1\)"),
        ({"split_seed": -1}, r"--split-seed must lie in \[0, 2⁶²\), not -1"),
        ({"longest_side": 8}, "--longest-side must be at least 32"),
        ({"max_minutes": 0}, "--max-minutes must be positive"),
        ({"max_minutes": float("nan")}, "--max-minutes must be positive"),
        ({"prior": "mine"}, "no prior named 'mine'"),
        ({"prior": "paper"}, "--prior paper is in frame coordinates, but --mode tracking needs"),
        ({"covariance": "batch"}, "--mode tracking needs one posterior per frame"),
        ({"device": "tpu"}, "unknown --device 'tpu'"),
        ({"devices": 0}, "--devices must be at least 1"),
        ({"nodes": 0}, "--nodes must be at least 1"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(options, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train(options, **changes)
    assert "\n" not in str(error.value)
    assert not options.out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named(options):
    with pytest.raises(UserError, match="no CUDA device; use --device cpu"):
        train(options, device="cuda")


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(options):
    with pytest.raises(UserError, match=r"the loss is .* at step .*; try a lower --learning-rate"):
        train(options, learning_rate=1e30)
    assert not checkpoints(options.out / "checkpoints")
    assert not (options.out / "last").exists()


@MODES
def test_the_loss_falls(options, mode, recwarn):
    """A few samples of bright rectangles are soon known by heart."""
    rate = 3e-3 if mode == "tracking" else 3e-2
    run = PretrainRun(
        dataclasses.replace(
            options, mode=mode, width=8, batch_size=8, steps=30, learning_rate=rate
        ).resolved()
    )
    totals = torch.stack([run.training_step()["total"].detach() for _ in range(30)])
    assert totals[-5:].mean() < 0.6 * totals[:5].mean()
    assert not [w for w in recwarn if "requires_grad" in str(w.message)]


def test_synthetic_data_needs_no_files(options):
    metrics, _ = train(
        options, data=("synthetic",), synthetic_count=2, steps=1, batch_size=2, longest_side=64
    )
    assert metrics.keys() == METRICS | TRACKING_METRICS


@pytest.mark.gpu
@MODES
def test_the_gpu_trains_in_bfloat16(options, mode):
    metrics, _ = train(options, mode=mode, device="cuda")
    assert all(np.isfinite(value) for value in metrics.values())
    assert load_network(options.out / "last").stem[0].weight.device.type == "cpu"


def test_help_teaches(run_script):
    status, printed, errors = run_script("pretrain_vae.py", "--help")
    options = ("--data", "--mode", "--architecture", "--max-minutes", "--resume")
    for option in (*options, "davis16:FOLDER", "beta-mvunet", "Examples"):
        assert option in printed
    assert (status, errors) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "youtube"],
            "error: unknown data 'youtube': it must start with its kind, as in davis16",
        ),
        (["--data", "duts:nowhere"], "error: no folder nowhere"),
        (["--steps", "0"], "error: --steps must be at least 1"),
        (["--out", "run", "--resume", "--synthetic-count", "2"], "error: nothing to resume in run"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(
    arguments, message, tmp_path, monkeypatch, run_script
):
    monkeypatch.chdir(tmp_path)
    tiny = ["--width", "2", "--input-size", "64", "--longest-side", "32", "--device", "cpu"]
    status, _, errors = run_script("pretrain_vae.py", *arguments, *tiny)
    assert status == 2
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_value_is_named(tmp_path, monkeypatch, run_script):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run_script("pretrain_vae.py", "--mode", "fast")
    assert status == 2
    assert "fast" in errors
    assert not list(tmp_path.iterdir())
