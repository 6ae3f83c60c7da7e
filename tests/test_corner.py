"""Corner plots: what is drawn, and the script that draws it."""

import math

import numpy as np
import pytest
from folders import write_tree
from numpy.testing import assert_allclose

from bmvtrack import corner, prior
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.corner import plot_corner
from bmvtrack.data.davis import load_davis16
from bmvtrack.motion import PARAMETERS
from bmvtrack.perception import Perception

PAPER, DAVIS = prior.named("paper"), prior.named("davis16")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    monkeypatch.setattr(corner, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def panel(figure, row, column):
    return figure.axes[5 * row + column]


def test_ellipses_hold_95_percent_of_each_pair(drawn, tmp_path):
    plot_corner({"paper": PAPER}, tmp_path / "a.png")
    draws = PAPER.sample(20_000, np.random.default_rng(0))
    for row in range(5):
        for column in range(row):
            (line,) = panel(drawn[0], row, column).lines
            pair = [column, row]
            away = line.get_xydata() - PAPER.mean[pair]
            precision = np.linalg.inv(PAPER.covariance[np.ix_(pair, pair)])
            squares = np.einsum("ni,ij,nj->n", away, precision, away)
            assert_allclose(squares, squares[0], rtol=1e-9)
            others = draws[:, pair] - PAPER.mean[pair]
            inside = np.einsum("ni,ij,nj->n", others, precision, others) < squares[0]
            assert inside.mean() == pytest.approx(0.95, abs=0.005)


def test_densities_are_those_of_the_marginals(drawn, tmp_path):
    plot_corner({"davis16": DAVIS}, tmp_path / "a.png")
    for index in range(5):
        (line,) = panel(drawn[0], index, index).lines
        values, density = line.get_xydata().T
        away = (values - DAVIS.mean[index]) / math.sqrt(DAVIS.covariance[index, index])
        assert_allclose(density, np.exp(-(away**2) / 2), atol=1e-12)
        low, high = panel(drawn[0], index, index).get_xlim()
        assert low < DAVIS.mean[index] < high


def test_a_histogram_has_the_area_of_its_density(drawn, tmp_path):
    draws = DAVIS.sample(50_000, np.random.default_rng(0))
    plot_corner({"davis16": DAVIS}, tmp_path / "a.png", {"davis16": draws})
    for index in range(5):
        axes = panel(drawn[0], index, index)
        heights, edges, _ = axes.patches[0].get_data()
        centres = (edges[1:] + edges[:-1]) / 2
        assert_allclose(heights, np.interp(centres, *axes.lines[0].get_xydata().T), atol=0.06)


def test_parameters_are_named_and_gaussians_are_in_the_legend(drawn, tmp_path):
    half, tenth = (prior.MotionPrior(DAVIS.mean, f * DAVIS.covariance) for f in (0.5, 0.1))
    plot_corner({"davis16": DAVIS, "half": half, "tenth": tenth}, tmp_path / "a.png")
    (figure,) = drawn
    assert [panel(figure, 4, k).get_xlabel() for k in range(5)] == list(PARAMETERS)
    assert [panel(figure, k, 0).get_ylabel() for k in range(1, 5)] == list(PARAMETERS[1:])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["davis16", "half", "tenth"]
    styles = {(line.get_color(), line.get_linestyle()) for line in panel(figure, 3, 1).lines}
    assert len(styles) == 3
    assert not any(panel(figure, 1, 3).lines)


def test_what_cannot_be_drawn_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="same coordinates"):
        plot_corner({"paper": PAPER, "davis16": DAVIS}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="one or more"):
        plot_corner({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no Gaussian with the names \['peper'\]"):
        plot_corner({"paper": PAPER}, tmp_path / "a.png", {"peper": np.zeros((3, 5))})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(monkeypatch, tmp_path, run_script):
    """Runs the script in a folder of its own: status, error output, and what it draws."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def draw(*call):
        calls.append((call[0], call[2]))
        plot_corner(*call)

    monkeypatch.setattr("bmvtrack.corner.plot_corner", draw)

    def start(*arguments):
        calls.clear()
        status, _, errors = run_script("plot_corner.py", *arguments)
        return status, errors, calls.copy()

    return start


def test_the_prior_under_both_labelings(run, tmp_path):
    root = write_tree(tmp_path / "davis", length=9)
    arguments = ("--priors", "paper", "--coordinates", "frame", "--data", f"davis16:{root}")
    status, errors, calls = run(*arguments, "--labels", "opencv", "continuous", "--points")
    assert status == 0, errors
    ((gaussians, samples),) = calls
    names = [f"{labels} labels, 1 apart, 16 pairs" for labels in ("opencv", "continuous")]
    assert list(gaussians) == ["prior paper", *names]
    boxes = [(s.opencv_boxes, *s.size) for s in load_davis16(root)]
    for name, labels in zip(names, ("opencv", "continuous"), strict=True):
        fitted, _ = prior.fit(boxes, labels=labels, coordinates="frame")
        assert_allclose(gaussians[name].covariance, fitted.covariance)
        assert_allclose(samples[name].mean(axis=0), fitted.mean)
    assert (tmp_path / "corner.png").read_bytes().startswith(b"\x89PNG")


def test_posteriors_of_frames_beside_the_prior(run, tmp_path):
    root = write_tree(tmp_path / "davis")
    data = ("--data", f"davis16:{root}", "--sequence", "bee", "--frames")
    status, errors, calls = run(*data, "2", "4")
    assert status == 0, errors
    ((gaussians, samples),) = calls
    assert list(gaussians) == ["prior davis16", *(f"{DEFAULT_WEIGHTS}, bee {t}" for t in (2, 4))]
    assert not samples
    bee = load_davis16(root)[1]
    perception = Perception.load()
    template = perception.remember(bee.frame(0), bee.boxes[0])
    percept = perception.look(bee.frame(4), bee.boxes[3], template)
    assert_allclose(gaussians[f"{DEFAULT_WEIGHTS}, bee 4"].mean, percept.mean[0], rtol=1e-5)
    ((pushed, _),) = run(*data, "4", "--coordinates", "frame")[2]
    for name, gaussian in pushed.items():
        expected = gaussians[name].at_box(bee.boxes[3], *bee.size)
        assert_allclose(gaussian.covariance, expected.covariance, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.pdf"], "error: --out a.pdf: the name must end in .png"),
        (["--priors"], "error: nothing to draw"),
        (["--points"], "error: --points draws the motions of fitted priors: give --labels"),
        (["--sequence", "ant"], "error: --sequence chooses where --frames are drawn from"),
        (["--priors", "paper"], "error: prior paper is in frame coordinates"),
        (["--coordinates", "frame"], "error: prior davis16 is in object coordinates"),
        (["--coordinates", "frame", "--frames", "2", "3"], "error: every frame has its own prior"),
        (["--data", "davis16:davis", "--frames", "6"], "error: --frames of ant must lie in 1 to 5"),
        (["--data", "davis16:davis", "--frames", "0"], "error: --frames of ant must lie in 1 to 5"),
        (
            ["--data", "davis16:davis", "--sequence", "cow", "--frames", "1"],
            "error: no sequence cow in davis16:davis; there are ant, bee",
        ),
        (["--data", "davis16:empty", "--labels", "opencv"], "error: no folder empty"),
    ],
)
def test_mistakes_end_in_one_line(run, tmp_path, arguments, message):
    write_tree(tmp_path / "davis")
    status, errors, calls = run(*arguments)
    assert (status, calls) == (2, [])
    assert errors.startswith(message)
    assert not list(tmp_path.glob("*.p*"))
