"""The scripts as a user starts them, small."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bmvtrack.errors import run_script

SCRIPTS = Path(__file__).parents[1] / "scripts"


@dataclass
class Result:
    """What a script printed, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a script's ``main`` with arguments, in another folder, without a new process."""

    def start(name: str, *arguments: str) -> Result:
        spec = importlib.util.spec_from_file_location(Path(name).stem, SCRIPTS / name)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.chdir(tmp_path)
        spec.loader.exec_module(module)
        status = 0
        try:
            run_script(module.main)
        except SystemExit as exit:
            status = exit.code or 0
        return Result(status, *capsys.readouterr())

    return start


def test_demo_leaves_a_report(run, tmp_path: Path) -> None:
    sizes = ["--pretrain-steps", "2", "--agent-steps", "8", "--synthetic-count", "4"]
    result = run("demo.py", *sizes, "--test-sequences", "1", "--out", "demo")
    assert result.returncode == 0, result.stderr
    assert "rotated AO: agent" in result.stdout
    assert "report.html" in result.stdout.splitlines()[-1]
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    linked = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert len(linked) == 4
    for path in linked:
        assert (tmp_path / "demo" / path).stat().st_size > 1000


def test_benchmark_writes_its_table(run, tmp_path: Path) -> None:
    sizes = ["--seconds", "0.2", "--width", "8", "--input-size", "64", "--batch-size", "4"]
    sizes += ["--environments", "1", "2", "--most-single", "1"]
    result = run("benchmark.py", *sizes, "--device", "cpu", "--out", "speed.json")
    assert result.returncode == 0, result.stderr
    speeds = json.loads((tmp_path / "speed.json").read_text())["per_second"]
    assert len(speeds) == 12
    assert all(value > 0 for value in speeds.values())


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_help_says_what_every_option_is(run, name: str) -> None:
    result = run(name, "--help")
    assert result.returncode == 0
    assert "(default:" in result.stdout or "(required)" in result.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("demo.py", ["--test-sequences", "0"], "at least 1"),
        ("benchmark.py", ["--seconds", "0"], "must be positive"),
        ("evaluate_davis16.py", ["--root", "nowhere"], "no folder nowhere"),
        ("evaluate_davis16.py", ["--weights", "nowhere"], "no weights 'nowhere'"),
        ("fit_prior.py", ["--root", "nowhere"], "no folder nowhere"),
    ],
)
def test_mistakes_get_one_line(
    run, name: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = run(name, *arguments)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
