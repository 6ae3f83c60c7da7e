import json
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from strategies import HEIGHT, WIDTH, random_boxes

from bmvtrack import geometry, motion, prior
from bmvtrack.errors import UserError
from bmvtrack.motion import COORDINATES
from bmvtrack.prior import MotionPrior

BOX = np.array([600.0, 200, 90, 50, -0.4])
SPREAD = np.array([0.08, 0.07, 0.13, 0.05, 0.04])


def random_prior(scale=1.0, **options):
    root = np.random.default_rng(0).normal(size=(5, 5))
    covariance = (root @ root.T + np.eye(5)) * np.outer(SPREAD, SPREAD) / 5 * scale**2
    return MotionPrior([1.01, 0.99, 0.02, 0.03, -0.01], covariance, **options)


def walk(length, fitted, seed=0):
    """Boxes of a sequence that moves by draws of a prior in object coordinates, and the draws."""
    draws = fitted.sample(length - 1, np.random.default_rng(seed))
    boxes = [BOX]
    for draw in draws:
        boxes.append(motion.apply(boxes[-1], draw, WIDTH, HEIGHT, "object"))
    return np.stack(boxes), draws


def test_the_prior_of_the_paper():
    paper = prior.named("paper")
    assert_allclose(paper.mean, [1.0651, 1.0679, 0.00, 0.0718, 0.083])
    assert_allclose(np.diag(paper.covariance), [0.265, 0.332, 0.183, 0.107, 0.564])
    eigenvalues = np.linalg.eigvalsh(paper.covariance)
    assert_allclose(eigenvalues, [0.0313, 0.1335, 0.2050, 0.3660, 0.7152], atol=5e-5)
    assert_allclose(paper.standard_deviations**2, np.diag(paper.covariance))
    assert (paper.coordinates, paper.labels) == ("frame", "opencv")


def test_every_bundled_prior_can_be_named():
    fitted = prior.load("davis16")
    assert (fitted.coordinates, fitted.labels) == ("object", "continuous")
    assert_allclose(fitted.mean, [1, 1, 0, 0, 0], atol=0.02)
    assert fitted.to_json() == prior.named("davis16").to_json()
    assert prior.named("davis16").source.startswith("DAVIS16 training split, 30 sequences")


def test_saved_and_loaded_is_exactly_the_same(tmp_path):
    saved = random_prior(coordinates="frame", labels="opencv", source="β, from a test")
    saved.save(tmp_path / "new" / "prior.json")
    loaded = prior.load(str(tmp_path / "new" / "prior.json"))
    assert loaded.to_json() == saved.to_json()
    assert (loaded.mean == saved.mean).all()
    assert (loaded.covariance == saved.covariance).all()


def test_a_missing_name_is_answered_with_those_there_are():
    with pytest.raises(UserError, match=r"'pape'.*davis16, paper"):
        prior.load("pape")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        "null",
        "{}",
        json.dumps({**prior.named("paper").to_json(), "mean": None}),
        json.dumps({**prior.named("paper").to_json(), "mean": [1, 1, 0]}),
        json.dumps({**prior.named("paper").to_json(), "mean": [1, 1, 0, 0, math.nan]}),
        json.dumps({**prior.named("paper").to_json(), "covariance": (-np.eye(5)).tolist()}),
        json.dumps({**prior.named("paper").to_json(), "coordinates": "world"}),
    ],
)
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.json is not a motion prior"):
        prior.load(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json"):
        prior.load(str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covariance": np.zeros((5, 5))}, "positive definite"),
        ({"covariance": np.diag([1.0, 1, 1, 1, -1])}, "positive definite"),
        ({"covariance": np.eye(5) + np.diag([0.5] * 4, 1)}, "symmetric"),
        ({"covariance": np.eye(4)}, r"\(4, 4\)"),
        ({"covariance": np.full((5, 5), np.nan)}, "finite"),
        ({"mean": np.array([1, 1, 0, 0, np.inf])}, "finite"),
        ({"mean": np.zeros(6)}, r"\(6,\)"),
        ({"coordinates": "image"}, "image"),
        ({"labels": "none"}, "none"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MotionPrior(**{"mean": np.zeros(5), "covariance": np.eye(5), **change})


def test_density_whitening_and_divergence_are_those_of_torch():
    first, second = random_prior(), prior.named("davis16")
    values = first.sample(20, np.random.default_rng(1))
    distributions = [
        torch.distributions.MultivariateNormal(*map(torch.from_numpy, (p.mean, p.covariance)))
        for p in (first, second)
    ]
    expected = distributions[0].log_prob(torch.from_numpy(values))
    assert_allclose(first.log_density(values), expected.numpy())
    assert_allclose(first.unwhiten(first.whiten(values)), values)
    divergence = torch.distributions.kl_divergence(*distributions).item()
    assert first.kl_divergence(second) == pytest.approx(divergence)
    assert first.kl_divergence(first) == pytest.approx(0, abs=1e-12)


def test_divergence_across_coordinates_means_nothing():
    with pytest.raises(ValueError, match="at_box"):
        prior.named("davis16").kl_divergence(prior.named("paper"))
    pushed = prior.named("davis16").at_box(BOX, WIDTH, HEIGHT)
    assert pushed.kl_divergence(prior.named("paper")) > 0


def test_samples_have_the_mean_and_the_covariance():
    draws = random_prior().sample(100_000, np.random.default_rng(0))
    assert_allclose(draws.mean(axis=0), random_prior().mean, atol=2e-3)
    assert_allclose(
        random_prior().whiten(draws).T @ random_prior().whiten(draws) / 1e5, np.eye(5), atol=0.02
    )


def test_push_forward_has_the_moments_of_pushed_samples():
    narrow = random_prior(scale=0.005)  # so narrow that curvature does not show
    pushed = narrow.at_box(BOX, WIDTH, HEIGHT)
    draws = narrow.sample(100_000, np.random.default_rng(0))
    white = pushed.whiten(motion.to_frame(draws, BOX, WIDTH, HEIGHT))
    assert pushed.coordinates == "frame"
    assert_allclose(white.mean(axis=0), 0, atol=0.05)
    assert_allclose(np.cov(white, rowvar=False), np.eye(5), atol=0.03)


def test_push_forward_correlates_what_was_independent():
    independent = MotionPrior([1, 1, 0, 0, 0], np.diag(SPREAD**2))
    pushed = independent.at_box(BOX, WIDTH, HEIGHT)
    correlation = pushed.covariance / np.outer(*[pushed.standard_deviations] * 2)
    assert np.abs(correlation[:3, 3:]).max() > 0.8


def test_a_frame_prior_stays_itself_at_any_box():
    paper = prior.named("paper")
    assert paper.at_box(BOX, WIDTH, HEIGHT) is paper


def test_push_forward_is_batched_in_torch_and_numpy():
    fitted, boxes = prior.named("davis16"), random_boxes(6)
    single = [fitted.at_box(box, WIDTH, HEIGHT) for box in boxes]
    arrays = (fitted.mean, fitted.covariance, boxes)
    for arguments in (arrays, [torch.from_numpy(a) for a in arrays]):
        means, covariances = prior.push_forward(*arguments, WIDTH, HEIGHT)
        assert_allclose(means, [p.mean for p in single])
        assert_allclose(covariances, [p.covariance for p in single])


@pytest.mark.parametrize("labels", prior.LABELS)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_fit_is_mean_and_covariance_of_all_pairs(coordinates, labels):
    walks = [walk(40, random_prior(scale=0.3), seed) for seed in range(3)]
    draws = np.concatenate(
        [
            v if coordinates == "object" else motion.to_frame(v, boxes[:-1], WIDTH, HEIGHT)
            for boxes, v in walks
        ]
    )
    sequences = [(boxes, WIDTH, HEIGHT) for boxes, _ in walks]
    fitted, pairs = prior.fit(sequences, labels=labels, coordinates=coordinates, source="test")
    assert pairs == 3 * 39
    assert_allclose(fitted.mean, draws.mean(axis=0), atol=1e-9)
    assert_allclose(fitted.covariance, np.cov(draws, rowvar=False), atol=1e-9)
    assert (fitted.coordinates, fitted.labels, fitted.source) == (coordinates, labels, "test")


def test_fit_takes_every_nth_frame_and_leaves_out_missing_boxes():
    boxes, _ = walk(61, random_prior(scale=0.3))
    assert prior.fit([(boxes, WIDTH, HEIGHT)], frames_apart=5)[1] == 12
    boxes[[0, 30, 31]] = np.nan
    assert prior.fit([(boxes, WIDTH, HEIGHT)])[1] == 60 - 1 - 3
    assert prior.fit([(boxes, WIDTH, HEIGHT)], frames_apart=5)[1] == 12 - 1 - 2


@pytest.mark.parametrize("apart", [1, 4, 7])
def test_with_continuous_labels_no_turn_is_over_an_eighth_of_a_circle(apart):
    """However far the box has turned between them, and the motion leads from one box to the other."""
    boxes = np.array([[100, 80, 60, 20, math.radians(20 * t)] for t in range(40)])
    motions = prior.sequence_motion(boxes, WIDTH, HEIGHT, apart, "continuous", "object")
    assert np.abs(motions[:, 2]).max() <= math.sin(math.pi / 4) + 1e-9
    labelled = geometry.continuous_labels(boxes[::apart])
    after = motion.apply(labelled[:-1], motions, WIDTH, HEIGHT, "object")
    assert_allclose(after, labelled[1:], atol=1e-9)


def test_nobody_changes_the_priors_that_come_with_the_package():
    prior.named("paper").mean[0] = 99
    assert prior.named("paper").mean[0] != 99


def test_six_pairs_are_enough_for_a_prior():
    assert prior.fit([(walk(7, random_prior())[0], WIDTH, HEIGHT)])[1] == 6


def test_opencv_labels_widen_the_prior():
    boxes, _ = walk(200, random_prior(scale=0.3))
    boxes[:, 4] += np.linspace(0, 9, 200)
    labelled = geometry.relabel(boxes, -np.floor(boxes[:, 4] / geometry.QUARTER_TURN) - 1)
    wide, narrow = (
        prior.fit([(labelled, WIDTH, HEIGHT)], labels=labels)[0] for labels in prior.LABELS
    )
    assert wide.standard_deviations[2] > 3 * narrow.standard_deviations[2]


@pytest.mark.parametrize(
    ("sequences", "frames_apart", "message"),
    [
        ([], 1, "only 0 pairs"),
        ([(walk(6, random_prior())[0], WIDTH, HEIGHT)], 1, "only 5 pairs of boxes 1 frames apart"),
        ([(walk(20, random_prior())[0], WIDTH, HEIGHT)], 5, "only 3 pairs of boxes 5 frames apart"),
        ([(np.full((20, 5), np.nan), WIDTH, HEIGHT)], 1, "only 0 pairs"),
        ([(np.tile(BOX, (20, 1)), WIDTH, HEIGHT)], 1, "moves"),
        ([(walk(20, random_prior())[0], WIDTH, HEIGHT)], 0, "at least 1 frame"),
    ],
    ids=["none", "short", "thinned", "empty", "still", "zero apart"],
)
def test_what_cannot_be_fitted_is_refused(sequences, frames_apart, message):
    with pytest.raises(UserError, match=message):
        prior.fit(sequences, frames_apart=frames_apart)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_that_do_not_vary_in_all_five_ways_give_no_prior(seed):
    """Of fixed aspect both scales are one; rounding made about half of such fits pass."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform((20, 20, 10, 10, -0.2), (200, 100, 40, 40, 0.2), (20, 5))
    boxes[:, 3] = boxes[:, 2] / 2
    with pytest.raises(UserError, match="positive definite"):
        prior.fit([(boxes, 240, 120)], frames_apart=1, labels="continuous", coordinates="object")


def test_pushed_forward_it_keeps_its_labels_and_its_source():
    pushed = random_prior(labels="opencv", source="from a test").at_box(BOX, WIDTH, HEIGHT)
    assert (pushed.labels, pushed.source) == ("opencv", "from a test")
