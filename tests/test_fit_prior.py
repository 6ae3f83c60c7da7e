from functools import partial
from pathlib import Path

import pytest
from folders import write_davis

from bmvtrack import prior

DAVIS_DEV = """
5 opencv frame 1.065 1.050 0.022 0.129 0.082 0.407 0.351 0.559 0.297 0.799 126
1 opencv frame 1.018 1.012 0.006 0.043 0.043 0.213 0.192 0.312 0.174 0.416 668
1 continuous frame 1.002 1.001 0.004 0.004 0.003 0.075 0.072 0.142 0.068 0.139 668
1 continuous object 1.002 1.001 0.004 -0.005 0.001 0.075 0.072 0.142 0.048 0.036 668
"""


@pytest.fixture
def run(run_script):
    return partial(run_script, "fit_prior.py")


def test_the_table_of_davis_to_its_last_digit(run, shared_data):
    status, output, _ = run("--root", shared_data / "davis16-dev", "--split", "val", "--table")
    assert status == 0
    rows = [line.split() for line in output.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [line.split() for line in DAVIS_DEV.split("\n") if line]


def test_the_bundled_prior_is_what_the_script_writes(run, shared_data, tmp_path):
    out = tmp_path / "davis16.json"
    root = shared_data / "davis16-train-360p"
    status, output, _ = run("--root", root, "--split", "train", "--out", out)
    assert status == 0
    assert "2032" in output
    fitted, bundled = prior.load(str(out)), prior.named("davis16")
    assert fitted.mean == pytest.approx(bundled.mean, abs=1e-6)
    assert fitted.covariance == pytest.approx(bundled.covariance, abs=1e-6)
    assert fitted.source == bundled.source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "nowhere"], "error: no folder nowhere"),
        (["--root", ".", "--frames-apart", "2"], "error: only 3 pairs of boxes 2 frames apart"),
        (["--root", ".", "--frames-apart", "0"], "error: the boxes of a pair"),
        (["--root", ".", "--split", "val"], "error: no split 'val'"),
        (["--root", ".", "--labels", "mine"], "mine"),
        (["--root", ".", "--out", "."], "error: --out . is a folder"),
        ([], "--root"),
    ],
)
def test_mistakes_end_in_a_message_and_status_2(run, tmp_path, monkeypatch, arguments, message):
    write_davis(tmp_path)
    monkeypatch.chdir(tmp_path)
    status, _, errors = run("--out", "prior.json", *arguments)
    assert status == 2
    assert message in errors
    assert not Path("prior.json").exists()


def test_settings_beside_the_table_are_of_what_is_written(run, tmp_path):
    write_davis(tmp_path, frames=8)
    status, _, errors = run("--root", tmp_path, "--table", "--labels", "opencv")
    assert status == 2
    assert "--table always prints the same settings" in errors
