"""The examples of the documentation run as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import write_davis

from agents.sac import LatentPriorSAC

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples"


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


def test_an_agent_is_made_as_the_page_of_many_clips_says():
    page = (DOCS / "vector_environment.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "SAC" in b]
    small = "num_envs=2, weights='davis16-duts-small', clip_length=4"
    names: dict[str, object] = {}
    code = block.replace("num_envs=16", small).replace("20_000", "8")
    exec(f"import gymnasium as gym, bmvtrack\n{code}", names)
    assert isinstance(names["model"], LatentPriorSAC)
    assert names["model"].num_timesteps == 8
