"""A pretraining step whose passes are one CUDA graph, which does what plain steps do.

What needs no GPU is tested with a graph that does its work anew each time it is launched.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_graphs import PretendedGraph
from rectangles import write_rectangles
from runs import assert_equal, final_state, killed_at, small_run, train

from bmvtrack.models import fused_norm
from bmvtrack.training import PretrainOptions
from bmvtrack.training import speed as speeds
from bmvtrack.training.checkpoint import load_checkpoint
from bmvtrack.training.pretrain import PretrainRun

NETWORKS: list[dict[str, Any]] = [
    {"mode": "paper"},
    {"mode": "paper", "architecture": "beta-mvae"},
    {"mode": "paper", "architecture": "beta-mvunet", "reparameterization": "full"},
    {"mode": "tracking"},
    {"mode": "tracking", "architecture": "beta-mvae"},
    {"mode": "tracking", "architecture": "beta-mvunet"},
    {"mode": "tracking", "template": True, "whole_images": 0.5, "shares": (2, 1)},
    {"mode": "tracking", "own_boxes": 0.5},
]
ALL_NETWORKS = pytest.mark.parametrize(
    "special", NETWORKS, ids=lambda special: "-".join(map(str, special.values()))
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture
def options(data: tuple[str, str], tmp_path: Path) -> PretrainOptions:
    return small_run(tmp_path / "run", data)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch, graphs: type[PretendedGraph]) -> None:
    """Graphs on a CPU, too."""
    monkeypatch.setattr(PretrainRun, "_can_be_graphed", lambda run: True)


def run_of(options: PretrainOptions, graphed: bool = True, **changes: Any) -> PretrainRun:
    run = PretrainRun(dataclasses.replace(options, **changes).resolved())
    assert run.graphed
    run.graphed = graphed
    return run


def captured(run: PretrainRun) -> object:
    return run._launcher._captured


@pytest.mark.usefixtures("everywhere")
@ALL_NETWORKS
def test_launched_steps_do_what_plain_ones_do(
    options: PretrainOptions, special: dict[str, Any], graphs: type[PretendedGraph]
) -> None:
    ours, plain = (run_of(options, graphed, steps=20, **special) for graphed in (True, False))
    terms = [[run.training_step() for _ in range(6)] for run in (ours, plain)]
    assert graphs.made == 1
    assert_equal(*terms)
    assert_equal(ours.state(), plain.state())
    for run in (ours, plain):
        assert not any(term.requires_grad for term in run.training_step().values())
        assert all(parameter.grad is not None for parameter in run.network.parameters())
        run.validate()
        run.graphed = not run.graphed
    assert_equal(ours.training_step(), plain.training_step())
    assert_equal(ours.state(), plain.state())


@pytest.mark.usefixtures("everywhere")
def test_what_the_loss_does_not_depend_on_is_left_alone(options: PretrainOptions) -> None:
    run, unused = run_of(options), torch.nn.Parameter(torch.ones(2))
    run.network.register_parameter("unused", unused)
    descending(run)
    for _ in range(5):
        run.training_step()
        assert unused.grad is None
        assert run.network.bottleneck.mean_head.weight.grad is not None
    assert unused.tolist() == [1, 1]


@pytest.mark.usefixtures("everywhere")
def test_runs_stop_and_go_on(options: PretrainOptions, tmp_path: Path) -> None:
    train(options, out=tmp_path / "straight", steps=9)
    with killed_at(8):
        train(options, steps=9)
    _, printed = train(options, steps=9, resume=True)
    assert "at step 6 of 9" in printed
    assert_equal(final_state(options.out), final_state(tmp_path / "straight"))


@pytest.mark.usefixtures("everywhere")
def test_speed_is_measured_with_and_without(options: PretrainOptions) -> None:
    run = run_of(options, steps=10**6)
    rates = dict(speeds.training_rates(run, 0.05))
    assert rates["pretraining without a graph, patches/s"] > 0
    assert rates["pretraining with torch's batch norms, patches/s"] > 0
    assert rates["pretraining, GFLOP/s"] > 0
    assert run.graphed
    assert "convolution_backward" in speeds.training_profile(run)


def test_a_cpu_has_no_graphs(options: PretrainOptions) -> None:
    run = PretrainRun(options.resolved())
    assert not run.graphed
    rates = dict(speeds.training_rates(run, 0.01))
    assert "pretraining without a graph, patches/s" not in rates
    assert "pretraining with torch's batch norms, patches/s" not in rates


@pytest.mark.usefixtures("everywhere")
def test_a_graph_is_captured_again_for_other_batch_norms(options: PretrainOptions) -> None:
    run = run_of(options, steps=10**6)
    for _ in range(5):
        run.training_step()
    fused = captured(run)
    with fused_norm.not_fused():
        assert not fused_norm.allowed()
        for _ in range(5):
            run.training_step()
    assert captured(run) not in (None, fused)
    assert fused_norm.allowed()


@pytest.fixture
def exact() -> Iterator[None]:
    """As deterministic and as exact as a GPU can be asked to be; for runs that are there already."""
    backend, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    names = ("benchmark", "deterministic", "allow_tf32")
    before = {name: getattr(backend, name) for name in names}
    yield
    for name in names:
        setattr(backend, name, before[name])
    torch.set_float32_matmul_precision(matmul)


def be_exact() -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def descending(run: PretrainRun) -> PretrainRun:
    """With plain SGD: Adam makes steps of gradients that are nothing but rounding."""
    parameters = run.network.parameters()
    run.optimizer = run.fabric.setup_optimizers(
        torch.optim.SGD(parameters, 1e-2, weight_decay=1e-2)
    )
    run.scheduler = torch.optim.lr_scheduler.ConstantLR(run.optimizer, 1)
    return run


@pytest.mark.gpu
@ALL_NETWORKS
def test_a_graph_learns_what_plain_steps_do(
    options: PretrainOptions, special: dict[str, Any], exact: None
) -> None:
    """Step by step from the same weights: rounding grows a million times in four steps of these networks."""
    given = {"device": "cuda", "precision": "32-true", "steps": 20, **special}
    ours, plain = (descending(run_of(options, graphed, **given)) for graphed in (True, False))
    be_exact()
    for step in range(9):
        with torch.no_grad():
            for mine, other in zip(tensors_of(ours), tensors_of(plain), strict=True):
                mine.copy_(other)
        terms = [torch.stack(list(run.training_step().values())) for run in (ours, plain)]
        torch.testing.assert_close(*terms, rtol=1e-3, atol=1e-4)
        for (name, mine), other in zip(
            ours.network.named_parameters(), plain.network.parameters(), strict=True
        ):
            assert (mine.grad is None) == (other.grad is None), name
            if mine.grad is not None and other.grad is not None:
                error = (mine.grad - other.grad).norm()
                assert error <= 1e-2 * other.grad.norm() + 1e-4, (step, name)
        for mine, other in zip(ours.network.buffers(), plain.network.buffers(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    assert captured(ours) is not None
    assert captured(plain) is None
    for generator in ("noise", "generator"):
        one, other = (getattr(run, generator).get_state() for run in (ours, plain))
        assert torch.equal(one, other), generator


def tensors_of(run: PretrainRun) -> list[torch.Tensor]:
    """All that a step reads and changes."""
    return [*run.network.state_dict().values(), *run.train_sampler.reached()]


@pytest.mark.gpu
@ALL_NETWORKS
def test_a_graph_trains_in_bfloat16(options: PretrainOptions, special: dict[str, Any]) -> None:
    run = run_of(options, device="cuda", steps=20, **special)
    before = [parameter.detach().clone() for parameter in run.network.parameters()]
    totals = [float(run.training_step()["total"]) for _ in range(8)]
    assert captured(run) is not None
    assert all(torch.isfinite(torch.tensor(totals)))
    assert len(set(totals)) == 8
    after = list(run.network.parameters())
    for parameter in after:
        assert parameter.grad is not None
        assert float(run.optimizer.state[parameter]["step"]) == 8
    moved = [not torch.equal(*pair) for pair in zip(after, before, strict=True)]
    assert sum(moved) > 0.8 * len(moved)
    run.validate()
    run.training_step()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["paper", "tracking"])
def test_runs_on_a_gpu_stop_and_go_on(options: PretrainOptions, tmp_path: Path, mode: Any) -> None:
    """Equal to the bit in what is drawn; in what is learned, as far as a GPU repeats itself."""
    given = {"mode": mode, "device": "cuda", "steps": 12}
    straight, _ = train(options, out=tmp_path / "straight", **given)
    with killed_at(8):
        train(options, **given)
    metrics, printed = train(options, resume=True, **given)
    assert "at step 6 of 12" in printed
    assert metrics["loss"] == pytest.approx(straight["loss"], rel=0.5)
    states = [load_checkpoint(out / "checkpoints") for out in (options.out, tmp_path / "straight")]
    for name in ("generators", "noises", "step", "scheduler"):
        assert_equal(*(state[name] for state in states), name)


@pytest.mark.gpu
@pytest.mark.parametrize("special", [{"bottleneck": "planar"}, {"compile": True}])
def test_what_may_not_be_captured_is_not(options: PretrainOptions, special: dict[str, Any]) -> None:
    changed = dataclasses.replace(options, mode="paper", device="cuda", **special)
    assert not PretrainRun(changed.resolved()).graphed
