"""The scripts as a user starts them, small."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done
from folders import write_tree

from agents.storage import make_actor, save_actor
from bmvtrack.perception import Perception

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., Done]):
    """Runs a script in another folder."""
    monkeypatch.chdir(tmp_path)
    return run_script


def test_demo_leaves_a_report(run, tmp_path: Path) -> None:
    sizes = ["--pretrain-steps", "2", "--agent-steps", "8", "--synthetic-count", "4"]
    result = run("demo.py", *sizes, "--test-sequences", "1", "--out", "demo")
    assert result.status == 0, result.errors
    assert "rotated AO: agent" in result.printed
    assert "report.html" in result.printed.splitlines()[-1]
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    linked = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert len(linked) == 4
    for path in linked:
        assert (tmp_path / "demo" / path).stat().st_size > 1000


def test_benchmark_writes_its_table(run, perception: Perception, tmp_path: Path) -> None:
    perception.network.save_weights(tmp_path / "weights")
    actor = make_actor("latent-prior", "frame", perception.feature_count, [])
    save_actor(actor, "latent-prior", "frame", tmp_path / "weights")
    sizes = ["--seconds", "0.2", "--width", "8", "--input-size", "64", "--batch-size", "4"]
    sizes += ["--environments", "1", "2", "--most-single", "1"]
    data = f"davis16:{write_tree(tmp_path / 'davis')}"
    sizes += ["--data", data, "--train-data", data]
    where = ["--weights", "weights", "--device", "cpu", "--out", "speed.json"]
    result = run("benchmark.py", *sizes, *where)
    assert result.status == 0, result.errors
    written = json.loads((tmp_path / "speed.json").read_text())
    assert len(written["per_second"]) == 14
    assert len(written["bytes"]) == 3
    for name, value in [*written["per_second"].items(), *written["bytes"].items()]:
        assert value > 0, name
        assert name in result.printed


def test_a_benchmark_that_is_cut_short_keeps_what_it_has(run, tmp_path: Path) -> None:
    sizes = ["--seconds", "0.1", "--width", "8", "--input-size", "64", "--batch-size", "4"]
    short = ["--max-minutes", "1e-4", "--device", "cpu", "--out", "speed.json"]
    result = run(
        "benchmark.py", "--train-data", f"davis16:{write_tree(tmp_path / 'davis')}", *sizes, *short
    )
    assert result.status == 0, result.errors
    assert "time is up" in result.printed
    written = json.loads((tmp_path / "speed.json").read_text())
    assert list(written["per_second"]) == ["pretraining, patches/s"]


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_help_says_what_every_option_is(run, name: str) -> None:
    result = run(name, "--help")
    assert result.status == 0
    assert "(default:" in result.printed or "(required)" in result.printed
    for block in re.split(r"^[│ ] (?=--)", result.printed, flags=re.MULTILINE)[1:]:
        words = " ".join(re.sub(r"[│╭╰╮╯─]", " ", block).split())
        said = re.sub(r"--\S+|\{[^}]*\}|\[[^\]]*\]", "", words.split("(default:")[0])
        assert len(re.findall(r"[a-z]{2,}", said)) >= 2, block


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("demo.py", ["--test-sequences", "0"], "at least 1"),
        ("benchmark.py", ["--seconds", "0"], "must be positive"),
        ("benchmark.py", ["--seconds", "nan"], "must be positive and finite"),
        ("benchmark.py", ["--data", "davis16:nowhere"], "no folder nowhere"),
        ("benchmark.py", ["--weights", "nowhere"], "no weights 'nowhere'"),
        ("evaluate_davis16.py", ["--root", "nowhere"], "no folder nowhere"),
        ("evaluate_davis16.py", ["--weights", "nowhere"], "no weights 'nowhere'"),
        ("fit_prior.py", ["--root", "nowhere"], "no folder nowhere"),
        ("train_sac.py", ["--weights", "nowhere", "--out", "run"], "no weights 'nowhere'"),
    ],
)
def test_mistakes_get_one_line(
    run, name: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = run(name, *arguments)
    assert result.status == 2
    assert len(result.errors.strip().splitlines()) == 1
    assert message in result.errors
    assert not list(tmp_path.iterdir())
