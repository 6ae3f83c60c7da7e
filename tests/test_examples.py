"""The examples of the documentation run as they are."""

import re
from pathlib import Path

import pytest
from folders import write_davis

from agents.options import TrainOptions
from agents.sac import LatentPriorSAC
from agents.training import make_model

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples"
SETTINGS = (
    "batch_size buffer_size ent_coef gamma gradient_steps learning_rate learning_starts "
    "replay_buffer_class target_kl tau train_freq truth_share"
)


@pytest.fixture
def data(tmp_path):
    return f"davis16:{write_davis(tmp_path / 'data', frames=5)}"


def test_plain_pytorch_learns_on_the_vector_environment(data, run_script):
    source = EXAMPLES / "policy_gradient.py"
    assert len(source.read_text().splitlines()) < 60
    sizes = ["--steps", "50", "--environments", "3", "--sequences", data]
    result = run_script(source, *sizes)
    (line,) = result.printed.splitlines()
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
    model = names["model"]
    assert isinstance(model, LatentPriorSAC)
    assert model.num_timesteps == 8
    options = TrainOptions()  # the page says that it is the agent of train_sac.py
    script = make_model(options, model.get_env(), "cpu")
    assert isinstance(script, LatentPriorSAC)
    assert f"learn({options.steps:_})" in block
    assert f'num_envs={options.environments}, coordinates="{options.coordinates}"' in block
    for name in SETTINGS.split():
        assert getattr(model, name) == getattr(script, name), name
    for remaining in (1.0, 0.5, -0.1):
        rates = (one.actor_learning_rate(remaining) for one in (model, script))
        assert len(set(rates)) == 1
    shapes = ({k: v.shape for k, v in one.policy.state_dict().items()} for one in (model, script))
    assert next(shapes) == next(shapes)
