"""Pictures of training: its curves, and what KL does to the covariance."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from bmvtrack import prior
from bmvtrack.errors import UserError
from bmvtrack.figures import line_style
from bmvtrack.models import Bottleneck
from bmvtrack.training import curves
from bmvtrack.training.curves import LOSSES, check_logged, plot_runs, read_scalars
from bmvtrack.training.detached import DetachedBottleneck, converge

PAPER = prior.named("paper")


def write_run(folder, count=120, every=20):
    """Logs as pretraining writes them."""
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for step in range(every, (count + 1) * every, every):
            values = {
                "cross_entropy": 1 / step,
                "jaccard": 2 / step,
                "kl": 5.0,
                "total": 25 + 3 / step,
            }
            for name, value in values.items():
                writer.add_scalar(f"train/{name}", value, step)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def lines(figure, panel):
    return [line.get_xydata() for line in figure.axes[panel].lines]


def test_as_many_lines_as_there_are_trackers_can_be_told_apart():
    assert len({line_style(i) for i in range(32)}) == 32


def test_the_construction_loss_is_the_sum_of_its_two_terms(tmp_path, drawn):
    plot_runs({"": read_scalars(write_run(tmp_path, 5))}, LOSSES, tmp_path / "curves.png")
    (figure,) = drawn
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["total loss", "construction loss", "KL divergence"]
    ((curve,),) = [lines(figure, 1)]
    steps = np.arange(20, 120, 20)
    np.testing.assert_allclose(curve, np.stack([steps, 3 / steps], axis=1), rtol=1e-6)
    np.testing.assert_allclose(lines(figure, 2)[0][:, 1], 5)
    assert not figure.legends


def test_runs_of_which_nothing_is_logged_are_named(tmp_path):
    runs = {"short": {}, "whole": read_scalars(write_run(tmp_path, 1))}
    check_logged(runs, LOSSES)
    with pytest.raises(UserError, match=r"short: no logs of total loss"):
        check_logged({"short": {}}, LOSSES)


def test_a_single_point_is_seen(tmp_path, drawn):
    plot_runs({"": read_scalars(write_run(tmp_path, 1))}, LOSSES, tmp_path / "curves.png")
    (line,) = drawn[0].axes[0].get_lines()
    assert line.get_marker() == "o"


def test_a_long_curve_has_its_running_mean_in_front(tmp_path, drawn):
    plot_runs({"": read_scalars(write_run(tmp_path))}, LOSSES, tmp_path / "curves.png")
    raw, mean = lines(drawn[0], 0)
    assert len(raw) == 120
    np.testing.assert_allclose(mean[:, 1], (raw[1:, 1] + raw[:-1, 1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(mean[:, 0], (raw[1:, 0] + raw[:-1, 0]) / 2)


def test_runs_come_into_the_same_panels(tmp_path, drawn):
    runs = {
        name: read_scalars(write_run(tmp_path / name, count))
        for name, count in (("a", 5), ("b", 9))
    }
    plot_runs(runs, LOSSES, tmp_path / "curves.png", logarithmic=True)
    for panel in range(3):
        assert [len(line) for line in lines(drawn[0], panel)] == [5, 9]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a", "b"]
    assert {axes.get_yscale() for axes in drawn[0].axes} == {"log"}


def test_what_was_not_logged_is_said(tmp_path, drawn):
    plot_runs({"": {}}, LOSSES, tmp_path / "curves.png")
    assert isinstance(drawn[0], Figure)
    assert {axes.texts[0].get_text() for axes in drawn[0].axes} == {"nothing logged"}


def test_one_command_draws_the_curves(tmp_path, run_script):
    runs = [write_run(tmp_path / name, 5) for name in ("a", "b")]
    run_script("plot_training.py", *runs, "--out", tmp_path / "curves.png", "--log")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("plot_training.py", ["nowhere"], "error: no TensorBoard logs below nowhere"),
        ("plot_training.py", [], "error: give the folder of at least one run"),
        (
            "plot_training.py",
            ["a", "--out", "a.pdf"],
            "error: --out a.pdf: the name must end in",
        ),
        (
            "plot_detached_covariance.py",
            ["--steps", "0"],
            "error: --steps must be at least 1, not 0",
        ),
        ("plot_detached_covariance.py", ["--out", "a"], "error: --out a: the name must end in"),
    ],
)
def test_mistakes_end_in_one_line(name, arguments, message, monkeypatch, tmp_path, run_script):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run_script(name, *arguments)
    assert status == 2
    assert errors.startswith(message)
    assert not list(tmp_path.iterdir())


def test_kl_needs_the_covariance_head(tmp_path, run_script):
    """With it Σ' comes to Σ; without it only the mean does, which the Mahalanobis distance hides."""
    trained, detached = (converge(kind, PAPER, 800, 0) for kind in (Bottleneck, DetachedBottleneck))
    assert trained.steps[-1] == detached.steps[-1] == 800
    assert max(trained.mahalanobis[-1], detached.mahalanobis[-1]) < 1e-4
    assert trained.error[-1] < 0.2
    assert trained.kl < 0.05
    spread = np.outer(PAPER.standard_deviations, PAPER.standard_deviations)
    error = np.abs(detached.covariance - PAPER.covariance) / spread
    assert detached.error[-1] == pytest.approx(error.max(), rel=1e-4)
    assert detached.error[-1] > 1
    picture = ("--out", tmp_path / "a.png")
    _, printed, _ = run_script("plot_detached_covariance.py", "--steps", "3", *picture)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "detached Σ' head: KL" in printed


def test_logs_of_a_folder_without_any_are_missed(tmp_path):
    with pytest.raises(UserError, match="no TensorBoard logs below"):
        read_scalars(tmp_path)


def test_a_step_that_is_logged_in_part_is_left_out(tmp_path, drawn):
    """As a run leaves it that is killed, or goes on while it is drawn."""
    write_run(tmp_path / "run", count=5)
    with SummaryWriter(str(tmp_path / "run" / "tensorboard")) as writer:
        writer.add_scalar("train/cross_entropy", 1.0, 1000)
    plot_runs({"run": read_scalars(tmp_path / "run" / "tensorboard")}, LOSSES, tmp_path / "x.png")
    (construction,) = (a for a in drawn[0].axes if "construction" in a.get_title())
    assert construction.lines[0].get_xdata().max() == 100
