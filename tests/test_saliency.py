"""Saliency metrics against slow computations, and the script that reports them."""

import json
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bmvtrack import prior
from bmvtrack.data import patches
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.models import ResNetUNet
from bmvtrack.segmentation import saliency_report
from bmvtrack.segmentation.saliency import average, normalized, score
from bmvtrack.segmentation.views import view_whole

SHAPE = (3, 4)
maps = arrays(np.uint8, SHAPE)
truths = arrays(bool, SHAPE).filter(np.any)


def slow_f(positive: np.ndarray, true: np.ndarray) -> float:
    hits = sum(p and t for p, t in zip(positive.flat, true.flat, strict=True))
    if not hits:
        return 0.0
    precision, recall = hits / positive.sum(), hits / true.sum()
    return 1.3 * precision * recall / (0.3 * precision + recall)


@settings(max_examples=30)
@given(maps, truths)
def test_scores_are_those_of_their_definitions(levels, true) -> None:
    found = score(levels, true)
    values = levels / 255
    assert found.mae == pytest.approx(sum(abs(values - true).flat) / true.size)
    curve = [slow_f(levels >= k, true) for k in range(256)]
    np.testing.assert_allclose(found.f, curve)
    assert found.max_f == pytest.approx(max(curve))
    assert found.mean_f == pytest.approx(sum(curve) / 256)
    threshold = min(2 * sum(levels.flat, start=0.0) / levels.size, 255)
    assert found.adaptive_f == pytest.approx(slow_f(levels >= threshold, true))
    assert (np.diff(found.recall) <= 0).all()


@given(truths)
def test_the_truth_itself_is_perfect(true) -> None:
    found = score(true.astype(np.uint8) * 255, true)
    assert found.mae == 0
    assert found.max_f == pytest.approx(1)
    assert found.adaptive_f == pytest.approx(1)


def test_curves_are_averaged_before_the_best_threshold_is_taken() -> None:
    true = np.array([[True, False]])
    low, high = (np.array([pair], np.uint8) for pair in ((100, 0), (255, 150)))
    parts = [score(low, true), score(high, true)]
    assert [part.max_f for part in parts] == [pytest.approx(1)] * 2
    both = average(parts)
    assert both.max_f < 0.9  # no threshold suits both
    assert both.mae == pytest.approx((155 + 150) / 255 / 4)


@given(arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32)))
def test_normalized_maps_reach_from_0_to_255(values) -> None:
    levels = normalized(values)
    if np.ptp(values) > 0:
        assert (levels.min(), levels.max()) == (0, 255)
        np.testing.assert_array_equal(normalized(levels / 255), levels)
    else:
        np.testing.assert_array_equal(levels, np.round(values * 255))


def test_an_empty_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        score(np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, bool))


def make_network(channels: int) -> ResNetUNet:
    torch.manual_seed(0)
    kind = "frame" if channels == 4 else "batch"
    network = ResNetUNet(
        prior.named("davis16"), width=8, input_size=64, input_channels=channels, covariance=kind
    )
    return network.eval()


def test_a_whole_image_fills_the_patch_and_the_box_has_it_as_its_window() -> None:
    sequence = synthetic_sequence(1)
    frames = [sequence.frame(0), sequence.frame(1)[:200, :190]]
    masks = [sequence.mask(0), sequence.mask(1)[:200, :190]]
    views = view_whole(make_network(4), frames, masks)
    assert views.inside.all()
    for i, frame in enumerate(frames):
        height, width = frame.shape[:2]
        assert views.windows[i].tolist() == [-0.5, -0.5, width - 0.5, height - 0.5]
        reduced = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) / 255
        assert np.abs(views.images[i].numpy() - reduced).mean() < 0.02
        # The box drawn in the fourth channel, measured: φ around it is the image.
        drawn = (views.inputs[i, 3] + 1) / 2
        w, h = drawn.amax(0).sum().item() * width / 64, drawn.amax(1).sum().item() * height / 64
        box = torch.tensor([[(width - 1) / 2, (height - 1) / 2, w, h, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(patches.window(box)[0], views.windows[i], atol=2, rtol=0)


def test_a_very_long_image_has_a_box_too() -> None:
    frame = np.zeros((20, 200, 3), np.uint8)
    views = view_whole(make_network(4), [frame], [np.ones((20, 200), bool)])
    assert torch.isfinite(views.inputs).all()
    assert (views.inputs[0, 3] > 0).any()


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    """A folder of ECSSD's layout, images of different sizes."""
    root = tmp_path / "ecssd"
    for folder in ("images", "ground_truth_mask"):
        (root / folder).mkdir(parents=True)
    sequence = synthetic_sequence(2)
    for number, (bottom, right) in enumerate([(240, 320), (200, 320), (240, 300)]):
        frame, mask = (
            sequence.frame(number)[:bottom, :right],
            sequence.mask(number)[:bottom, :right],
        )
        assert mask.any()
        cv2.imwrite(str(root / "images" / f"{number:04d}.jpg"), frame[..., ::-1])
        cv2.imwrite(
            str(root / "ground_truth_mask" / f"{number:04d}.png"), mask.view(np.uint8) * 255
        )
    return root


@pytest.fixture
def run(run_script):
    return partial(run_script, "evaluate_saliency.py")


@pytest.mark.parametrize("channels", [3, 4])
def test_written_maps_score_what_the_summary_says(run, stills, tmp_path, channels) -> None:
    make_network(channels).save_weights(tmp_path / "weights", half=False)
    out = tmp_path / "out"
    arguments = ("--root", stills, "--weights", tmp_path / "weights", "--draws", 4, "--out", out)
    done = run(*arguments)
    assert done.status == 0, done.errors
    assert "oracle-4" in done.printed
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["protocols"]) == ["oracle-4", "honest", "two-looks"]
    assert summary["images"] == 3
    for protocol, expected in summary["protocols"].items():
        scores = []
        for path in sorted((stills / "ground_truth_mask").glob("*.png")):
            levels = cv2.imread(str(out / protocol / path.name), cv2.IMREAD_UNCHANGED)
            scores.append(score(levels, cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0))
        mean = average(scores)
        for metric in ("mae", "adaptive_f", "max_f", "mean_f"):
            assert expected[metric] == pytest.approx(getattr(mean, metric))
        assert expected["precision"] == pytest.approx(mean.precision.tolist())
        rows = (out / "results" / f"{protocol}.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["image", "0000", "0001", "0002"]
        assert float(rows[1].split(",")[1]) == pytest.approx(scores[0].mae, abs=1e-6)
    assert (out / "precision_recall.png").stat().st_size > 1000


def test_a_choice_between_weights_needs_no_test_data(run, stills, tmp_path) -> None:
    make_network(3).save_weights(tmp_path / "weights", half=False)
    out = tmp_path / "out"
    arguments = ("--root", stills, "--weights", tmp_path / "weights", "--draws", 1, "--out", out)
    assert run(*arguments, "--upside-down", "--every", 2).status == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["dataset"], summary["images"]) == ("ecssd, upside down, one image in 2", 2)
    for name in ("0000", "0002"):
        true = cv2.imread(str(stills / "ground_truth_mask" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        levels = cv2.imread(str(out / "honest" / f"{name}~y.png"), cv2.IMREAD_UNCHANGED)
        rows = (out / "results" / "honest.csv").read_text().splitlines()
        (row,) = (row.split(",") for row in rows if row.startswith(name))
        assert float(row[1]) == pytest.approx(score(levels, true[::-1] > 0).mae, abs=1e-6)


def test_steep_maps_decide_and_keep_their_order(run, stills, tmp_path) -> None:
    make_network(3).save_weights(tmp_path / "weights", half=False)
    maps = []
    for steepness in (1, 4):
        out = tmp_path / str(steepness)
        arguments = ("--weights", tmp_path / "weights", "--draws", 1, "--out", out)
        assert run("--root", stills, *arguments, "--steepness", steepness).status == 0
        maps.append(cv2.imread(str(out / "honest" / "0000.png"), cv2.IMREAD_UNCHANGED).astype(int))
    summary = json.loads((tmp_path / "4" / "summary.json").read_text())
    assert summary["dataset"] == "ecssd, steepness 4"
    gentle, steep = maps
    assert np.abs(steep - 127.5).mean() > np.abs(gentle - 127.5).mean()
    lower, upper = gentle <= np.quantile(gentle, 0.2), gentle >= np.quantile(gentle, 0.8)
    assert steep[lower].max() <= steep[upper].min()


def empty_mask(root: Path) -> str:
    cv2.imwrite(str(root / "ground_truth_mask/0001.png"), np.zeros((200, 320), np.uint8))
    return "image '0001': its mask is empty"


def wrong_size(root: Path) -> str:
    cv2.imwrite(str(root / "ground_truth_mask/0001.png"), np.ones((100, 100), np.uint8))
    return "both must have the same size"


def no_masks(root: Path) -> str:
    for path in (root / "ground_truth_mask").glob("*.png"):
        path.unlink()
    return "has a .png with the same name"


@pytest.mark.parametrize("spoil", [empty_mask, wrong_size, no_masks])
def test_data_that_cannot_be_scored_is_refused_before_anything_is_written(
    run, stills, tmp_path, spoil
) -> None:
    message = spoil(stills)
    done = run("--root", stills, "--out", tmp_path / "out")
    assert done.status == 2
    assert message in done.errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--root", "nowhere"), "no folder nowhere"),
        (("--weights", "nowhere"), "no weights 'nowhere'"),
        (("--draws", 0), "--draws must be at least 1"),
        (("--every", 0), "--every must be at least 1"),
        (("--steepness", 0), "--steepness must be a positive number"),
        (("--out", __file__), "give a folder"),
    ],
)
def test_mistakes_get_one_line(run, stills, tmp_path, arguments, message) -> None:
    status, _, error = run("--root", stills, "--out", tmp_path / "out", *arguments)
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_evaluation_forgets_the_one_before_and_nothing_else(
    run, stills, tmp_path, monkeypatch, interrupted
) -> None:
    make_network(3).save_weights(tmp_path / "weights", half=False)
    out = tmp_path / "out"
    arguments = ("--root", stills, "--weights", tmp_path / "weights", "--out", out)
    with monkeypatch.context() as patch:
        if interrupted:
            patch.setattr(saliency_report, "build_summary", Mock(side_effect=KeyboardInterrupt))
        assert run(*arguments, "--draws", 2).status == (130 if interrupted else 0)
    (out / "honest" / "thesis.png").write_text("mine")
    assert run(*arguments, "--draws", 3, "--every", 2).status == 0
    maps = sorted(str(p.relative_to(out)) for p in out.glob("*/*.png"))
    made = [f"{p}/{i}.png" for p in ("honest", "oracle-3", "two-looks") for i in ("0000", "0002")]
    assert maps == sorted(["honest/thesis.png", *made])
    tables = sorted(path.name for path in (out / "results").iterdir())
    assert tables == ["honest.csv", "oracle-3.csv", "two-looks.csv"]
