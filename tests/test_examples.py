"""The examples of the documentation run as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import write_davis

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture
def data(tmp_path):
    return f"davis16:{write_davis(tmp_path / 'data', frames=5)}"


def test_plain_pytorch_learns_on_the_vector_environment(data):
    source = EXAMPLES / "policy_gradient.py"
    assert len(source.read_text().splitlines()) < 60
    sizes = ["--steps", "50", "--environments", "3", "--sequences", data]
    command = [sys.executable, str(source), *sizes]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = result.stdout.splitlines()
    overlap, *shares = (float(number) for number in re.findall(r"-?\d\.\d+", line))
    assert 0 < overlap <= 1
    assert len(shares) == 5
    assert any(shares)
