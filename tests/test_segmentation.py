"""Both protocols against the paper's words, and what the script writes, read again."""

import json
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from bmvtrack import gaussian, prior
from bmvtrack.data.davis import load_davis16, read_mask
from bmvtrack.data.mirrored import upside_down
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.masks import mask_in_frame
from bmvtrack.models import BetaMVAE, MultivariationalNetwork, ResNetUNet
from bmvtrack.perception import Perception
from bmvtrack.segmentation import report, saliency_report
from bmvtrack.segmentation.evaluation import evaluate_sequence
from bmvtrack.segmentation.metrics import contour_accuracy, region_similarity, statistics
from bmvtrack.segmentation.protocols import (
    against_rivals,
    encode,
    honest,
    mean_squared_error,
    negative_log_likelihood,
    oracle,
)
from bmvtrack.segmentation.views import Views, view_objects

PAPER = {"input_channels": 3, "covariance": "batch", "standardized": False, "classes": 4}
NETWORKS = {
    "tracking": (ResNetUNet, {}),
    "paper": (ResNetUNet, {**PAPER, "reparameterization": "affine"}),
    "paper, mean": (ResNetUNet, {**PAPER, "reduction": "mean"}),
    "βMVAE": (BetaMVAE, {"classes": 4}),  # no skips: the latents are all that the decoder sees
}


def make_network(name: str) -> MultivariationalNetwork:
    """A small network that has learned nothing, but whose masks vary with the latents."""
    torch.manual_seed(1)
    architecture, options = NETWORKS[name]
    network = architecture(prior.named("davis16"), width=8, input_size=64, **options)
    if isinstance(network, ResNetUNet):
        with torch.no_grad():
            network.latents.weight *= 20
    return network.eval()


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> MultivariationalNetwork:
    return make_network(request.param)


@pytest.fixture(scope="module")
def sequence() -> VideoSequence:
    return synthetic_sequence(3).in_memory()


def view(network: MultivariationalNetwork, sequence: VideoSequence, *frames: int) -> Views:
    return view_objects(
        network,
        [sequence.frame(t) for t in frames],
        sequence.boxes[list(frames)],
        [sequence.mask(t) for t in frames],
    )


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_truth_on_the_patch_is_the_truth_in_the_frame(network, sequence) -> None:
    views = view(network, sequence, 0, 5)
    assert views.inputs.shape == (2, network.input_channels, 64, 64)
    for i, t in enumerate((0, 5)):
        pasted = mask_in_frame(views.true[i].float(), views.windows[i], *sequence.size)
        assert region_similarity(pasted, sequence.mask(t)) > 0.9


def test_what_lies_beyond_the_frame_is_known(network) -> None:
    frame, mask = np.full((50, 80, 3), 90, np.uint8), np.zeros((50, 80), bool)
    mask[:20, :20] = True
    views = view_objects(network, [frame], np.array([[9.5, 9.5, 20, 20, 0.0]]), [mask])
    if network.input_channels == 4:
        assert not views.inside[0, :15].any()
        assert views.inside[0, 17:, 17:].all()
    else:  # the paper's window ends at the frame's edge
        assert views.inside.all()
        assert views.windows[0].tolist() == [-0.5, -0.5, 29.5, 29.5]
    assert not (views.true & ~views.inside).any()
    outside = torch.full_like(views.true, 100.0, dtype=torch.float32)
    right = torch.where(views.inside, (views.true.float() * 2 - 1) * 100, outside)
    assert negative_log_likelihood(right, views).item() == pytest.approx(0, abs=1e-6)
    assert mean_squared_error(right, views).item() == pytest.approx(0, abs=1e-6)


def test_honest_masks_are_what_a_tracker_sees_through_the_true_box(sequence) -> None:
    network = make_network("tracking")
    views = view(network, sequence, 0, 7)
    found = honest(network, encode(network, views)).sigmoid()
    for i, t in enumerate((0, 7)):
        seen = Perception(network).look(sequence.frame(t), sequence.boxes[t])
        torch.testing.assert_close(found[i], seen.probabilities[0], atol=1e-4, rtol=1e-3)


def test_the_oracle_keeps_the_best_of_the_tiled_frame(network, sequence) -> None:
    """As the paper says it: tile the frame, run the network, compare every mask with the truth."""
    views = view(network, sequence, 4)
    choice = oracle(network, encode(network, views), views, 32, noise())
    with torch.inference_mode():
        output = network(views.inputs.expand(32, -1, -1, -1), stochastic=True, generator=noise())
    best = -1.0, 0, 0
    for draw, labels in enumerate(output.logits.argmax(dim=1)):
        for label in range(1, network.classes):
            mask = (labels == label) & views.inside[0]
            overlap = region_similarity(mask.numpy(), views.true[0].numpy())
            best = max(best, (overlap, draw, label), key=lambda item: item[0])
    kept = (choice.log_odds[0] > 0) & views.inside[0]
    assert region_similarity(kept.numpy(), views.true[0].numpy()) == pytest.approx(
        best[0], abs=1e-3
    )
    assert best[0] > 0
    assert (choice.draw.item(), choice.label.item()) == best[1:]
    bottleneck = network.bottleneck
    expected = gaussian.mahalanobis(
        output.posterior.mean[0],
        output.posterior.covariance[0],
        bottleneck.latent_mean,
        bottleneck.latent_covariance,
    )
    torch.testing.assert_close(choice.mahalanobis[0], expected, rtol=1e-3, atol=1e-5)


def test_frames_of_a_batch_do_not_touch_each_other(network, sequence) -> None:
    generator, together = noise(), view(network, sequence, 2, 9, 11)
    encoding = encode(network, together)
    choice, plain = oracle(network, encoding, together, 6, noise()), honest(network, encoding)
    for i, t in enumerate((2, 9, 11)):
        alone = view(network, sequence, t)
        encoding = encode(network, alone)
        torch.testing.assert_close(honest(network, encoding)[0], plain[i], atol=2e-3, rtol=1e-3)
        again = oracle(network, encoding, alone, 6, generator)
        assert again.draw[0] == choice.draw[i]
        torch.testing.assert_close(
            again.mahalanobis[0], choice.mahalanobis[i], rtol=1e-3, atol=1e-5
        )


def test_log_odds_of_a_class_are_above_0_where_it_is_the_likeliest() -> None:
    logits = torch.randn(5, 8, 8, generator=noise())
    for label in range(5):
        found = against_rivals(logits, label) > 0
        torch.testing.assert_close(found, logits.argmax(dim=0) == label)
    two = logits[:2]
    torch.testing.assert_close(against_rivals(two, 1).sigmoid(), two.softmax(dim=0)[1])


def test_likelihood_and_error_are_those_of_object_and_background(sequence) -> None:
    network = make_network("paper")
    views = view(network, sequence, 0)
    views.inside[:, :, :9] = False
    inside, true = views.inside[0], views.true[0][views.inside[0]]
    with torch.inference_mode():
        background = network(views.inputs, stochastic=False).logits.softmax(dim=1)[0, 0][inside]
    found = honest(network, encode(network, views))
    object_or_not = torch.stack([background, 1 - background], dim=1).log()
    expected = functional.nll_loss(object_or_not, true.long())
    torch.testing.assert_close(negative_log_likelihood(found, views)[0], expected)
    expected = functional.mse_loss(1 - background, true.float())
    torch.testing.assert_close(mean_squared_error(found, views)[0], expected)


def test_without_object_the_mask_is_empty(sequence, tmp_path) -> None:
    missing = (0, 3, 4)
    blinking = VideoSequence(
        "blinking", 6, sequence.frame, lambda t: sequence.mask(t) & (t not in missing)
    )
    found = evaluate_sequence(make_network("paper"), blinking, tmp_path, draws=2, batch_size=2)
    for protocol, scores in found.items():
        for t in missing:
            assert not read_mask(tmp_path / protocol / "blinking" / f"{t:05d}.png").any()
            assert scores.values["J"][t] == scores.values["F"][t] == 1
        absent = np.isnan(scores.values["nll"])
        assert np.flatnonzero(absent).tolist() == list(missing)
        assert np.isfinite(scores.mean("mahalanobis"))


def test_an_evaluation_repeats(sequence, tmp_path) -> None:
    short = VideoSequence("short", 4, sequence.frame, sequence.mask)
    network = make_network("tracking")
    runs = [evaluate_sequence(network, short, tmp_path, draws=3, seed=s) for s in (5, 5, 6)]
    tables = [run["oracle-3"].values for run in runs]
    for name, values in tables[0].items():
        np.testing.assert_array_equal(values, tables[1][name])
    assert not np.array_equal(tables[0]["nll"], tables[2]["nll"])
    assert sorted(p.name for p in (tmp_path / "honest").iterdir()) == ["short"]


@pytest.fixture
def davis(tmp_path: Path, sequence: VideoSequence) -> Path:
    """A DAVIS16 folder of two short sequences."""
    root = tmp_path / "davis"
    for name, length, start in (("ant", 5, 0), ("bee", 4, 8)):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        for t in range(length):
            frame, mask = sequence.frame(start + t), sequence.mask(start + t)
            cv2.imwrite(str(root / f"JPEGImages/480p/{name}/{t:05d}.jpg"), frame[..., ::-1])
            path = root / f"Annotations/480p/{name}/{t:05d}.png"
            cv2.imwrite(str(path), mask.view(np.uint8) * 255)
    return root


@pytest.fixture
def run(run_script):
    return partial(run_script, "evaluate_segmentation.py")


@pytest.mark.parametrize(
    ("name", "turned"), [("tracking", ()), ("paper", ()), ("paper", ["--upside-down"])]
)
def test_written_masks_score_what_the_summary_says(run, davis, tmp_path, name, turned) -> None:
    make_network(name).save_weights(tmp_path / "weights", half=False)
    out = tmp_path / "out"
    arguments = ("--weights", tmp_path / "weights", "--draws", 3, "--batch-size", 3, "--out", out)
    done = run("--root", davis, *arguments, *turned)
    assert done.status == 0, done.errors
    sequences = [upside_down(s) if turned else s for s in load_davis16(davis)]
    assert "oracle-3" in done.printed
    assert "Mahalanobis" in done.printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"] == 9
    assert list(summary["protocols"]) == ["oracle-3", "honest"]
    for protocol, found in summary["protocols"].items():
        for measure, compare in (("J", region_similarity), ("F", contour_accuracy)):
            parts = []
            for sequence in sequences:
                paths = sorted((out / protocol / sequence.name).glob("*.png"))
                assert [p.name for p in paths] == [f"{t:05d}.png" for t in range(len(sequence))]
                images = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths]
                assert {*np.unique(images)} <= {0, 255}
                scores = [compare(im > 0, sequence.mask(t)) for t, im in enumerate(images)]
                parts.append(statistics(np.array(scores)))
                assert found["per_sequence"][sequence.name][measure] == pytest.approx(
                    parts[-1].mean
                )
            for statistic in ("mean", "recall", "decay"):
                expected = np.mean([getattr(part, statistic) for part in parts])
                assert found[measure][statistic] == pytest.approx(expected)
        assert found["JF"] == pytest.approx((found["J"]["mean"] + found["F"]["mean"]) / 2)
        rows = (out / "results" / protocol / f"{sequences[0].name}.csv").read_text().splitlines()
        assert len(rows) == 6
        assert rows[0].startswith("frame,J,F,nll,mse,mahalanobis")
    assert len((out / "sequences.csv").read_text().splitlines()) == 5
    for picture in ("stochastic_masks.png", "masks_along_sequences.png"):
        assert cv2.imread(str(out / picture)).shape[0] > 100


def too_short(root: Path) -> str:
    for t in (2, 3):
        (root / f"JPEGImages/480p/bee/{t:05d}.jpg").unlink()
    return "'bee' has 2 frames"


def no_object(root: Path) -> str:
    for path in (root / "Annotations/480p/bee").iterdir():
        cv2.imwrite(str(path), np.zeros((240, 320), np.uint8))
    return "'bee': all its masks are empty"


def damaged(root: Path) -> str:
    path = root / "JPEGImages/480p/bee/00002.jpg"
    path.write_bytes(b"not an image")
    return f"cannot read the image {path}"


def unmasked(root: Path) -> str:
    (root / "Annotations/480p/bee/00002.png").unlink()
    return "'bee' lacks 1 of 4 masks"


@pytest.mark.parametrize("spoil", [too_short, no_object, damaged, unmasked])
def test_data_that_cannot_be_scored_is_refused_before_anything_is_written(
    run, davis, tmp_path, spoil
) -> None:
    message = spoil(davis)
    done = run("--root", davis, "--out", tmp_path / "out")
    assert done.status == 2
    assert message in done.errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--root", "nowhere"), "no folder nowhere"),
        (("--weights", "nowhere"), "no weights 'nowhere'"),
        (("--sequences", "wasp"), "no sequence wasp"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--seed", -1), "--seed must not be negative"),
        (("--out", __file__), "give a folder"),
    ],
)
def test_mistakes_get_one_line(run, davis, tmp_path, arguments, message) -> None:
    status, _, error = run("--root", davis, "--out", tmp_path / "out", *arguments)
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_their_configuration_are_refused(run, davis, tmp_path) -> None:
    make_network("paper").save_weights(tmp_path / "weights")
    config = tmp_path / "weights" / "config.json"
    config.write_text(config.read_text().replace('"width": 8', '"width": 16'))
    done = run("--root", davis, "--weights", tmp_path / "weights", "--out", tmp_path / "out")
    assert done.status == 2
    assert "does not fit the network" in done.errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_evaluation_forgets_the_one_before_and_nothing_else(
    run, davis, tmp_path, monkeypatch, interrupted
) -> None:
    make_network("tracking").save_weights(tmp_path / "weights", half=False)
    out = tmp_path / "out"
    arguments = ("--root", davis, "--weights", tmp_path / "weights", "--out", out)
    with monkeypatch.context() as patch:
        if interrupted:
            patch.setattr(report, "build_summary", Mock(side_effect=KeyboardInterrupt))
        assert run(*arguments, "--draws", 2).status == (130 if interrupted else 0)
    (out / "honest" / "thesis.txt").write_text("mine")
    assert run(*arguments, "--draws", 3, "--sequences", "bee").status == 0
    left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    for protocol in ("honest", "oracle-3"):
        masks = [f"{protocol}/bee/{t:05d}.png" for t in range(4)]
        assert [path for path in left if path.startswith(f"{protocol}/bee")] == masks
        left = [path for path in left if path not in masks]
    tables = ["results/honest/bee.csv", "results/oracle-3/bee.csv", "sequences.csv", "summary.json"]
    pictures = ["masks_along_sequences.png", "stochastic_masks.png"]
    assert left == sorted(["honest/thesis.txt", *tables, *pictures])


@pytest.mark.parametrize("summary", ["[]", '{"protocols": {"..": {"per_sequence": ["x"]}}}', "{"])
def test_a_strange_summary_removes_nothing(summary, tmp_path) -> None:
    (tmp_path / "out" / "results").mkdir(parents=True)
    (tmp_path / "out" / "summary.json").write_text(summary)
    (tmp_path / "x").mkdir()
    report.remove_previous(tmp_path / "out")
    saliency_report.remove_previous(tmp_path / "out")
    assert (tmp_path / "x").is_dir()
    assert (tmp_path / "out" / "results").is_dir()
