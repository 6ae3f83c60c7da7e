"""Pretraining that starts from weights that are there already."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bmvtrack import prior
from bmvtrack.bundled import weights_folder
from bmvtrack.errors import UserError
from bmvtrack.models import BetaMVUNet, load_network
from bmvtrack.training.options import PretrainOptions
from bmvtrack.training.parts import build_network


@pytest.fixture
def options(tmp_path: Path) -> PretrainOptions:
    return PretrainOptions(out=tmp_path / "run", width=4, input_size=64, samples=6).resolved()


def test_starts_from_the_weights_of_another_run(options: PretrainOptions, tmp_path: Path) -> None:
    first = build_network(options)
    first.save_weights(tmp_path / "weights", half=False)
    second = build_network(dataclasses.replace(options, start_from=tmp_path / "weights"))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_starts_from_bundled_weights_by_their_name(options: PretrainOptions) -> None:
    like_it = dataclasses.replace(options, width=24, input_size=128, samples=50, template=True)
    network = build_network(dataclasses.replace(like_it, start_from=Path("davis16-duts-small")))
    bundled = load_network(weights_folder("davis16-duts-small"))
    for name, value in bundled.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


def test_weights_of_another_network_are_refused(options: PretrainOptions, tmp_path: Path) -> None:
    build_network(dataclasses.replace(options, width=6)).save_weights(tmp_path / "weights")
    with pytest.raises(UserError, match=r"--start-from .*of another network: .*size mismatch"):
        build_network(dataclasses.replace(options, start_from=tmp_path / "weights"))
    with pytest.raises(UserError, match="neither a folder nor bundled"):
        build_network(dataclasses.replace(options, start_from=tmp_path / "nowhere"))


def test_what_does_not_fit_is_named_but_not_layer_by_layer(options: PretrainOptions) -> None:
    bundled = dataclasses.replace(options, samples=50, start_from=Path("davis16-duts-small"))
    with pytest.raises(UserError, match="--width and --template") as refused:
        build_network(bundled)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("change", "classes", "message"),
    [
        (
            {},
            4,
            "a ResNetUNet with 3 input channels, 2 classes and 6 .* with 3 input channels, 4 classes",
        ),
        (
            {"samples": 12},
            2,
            "2 classes and 6 samples per variable, not .* 12 samples per variable",
        ),
        ({"architecture": "beta-mvunet"}, 2, "a ResNetUNet with .*, not a BetaMVUNet with"),
        ({"architecture": "beta-mvae"}, 2, "a ResNetUNet with .*, not a BetaMVAE with"),
    ],
)
def test_only_widths_and_input_sizes_may_differ(
    options: PretrainOptions, tmp_path: Path, change: dict[str, Any], classes: int, message: str
) -> None:
    """A network with half the classes looks like a narrow one; widened it would be scrambled."""
    paper = dataclasses.replace(options, mode="paper", covariance="batch")
    build_network(paper).save_weights(tmp_path / "weights")
    other = dataclasses.replace(paper, start_from=tmp_path / "weights", **change)
    with pytest.raises(UserError, match=f"of another network: .*{message}"):
        build_network(other, classes)


def test_demands_of_published_weights_are_errors_of_the_user(
    options: PretrainOptions, tmp_path: Path
) -> None:
    padded = BetaMVUNet(
        prior.named("paper"), width=4, input_size=128, classes=2, alignment="padded"
    )
    padded.save_weights(tmp_path / "weights")
    small = dataclasses.replace(
        options, mode="paper", architecture="beta-mvunet", start_from=tmp_path / "weights"
    )
    with pytest.raises(UserError, match=r"--architecture beta-mvunet: .*at least 128"):
        build_network(small)


def test_factors_of_the_jitter_are_checked() -> None:
    for jitter in ((), (1.0, -0.5)):
        with pytest.raises(UserError, match="--jitter needs non-negative factors"):
            PretrainOptions(jitter=jitter).resolved()


def test_networks_of_another_input_size_start_from_each_other(
    options: PretrainOptions, tmp_path: Path
) -> None:
    """βMVUnet's ``flat`` depends on the size: of repeated cells the larger makes the same features."""
    paper = dataclasses.replace(
        options, mode="paper", architecture="beta-mvunet", covariance="batch"
    )
    small = build_network(paper)
    small.save_weights(tmp_path / "weights", half=False)
    large = build_network(
        dataclasses.replace(paper, input_size=128, start_from=tmp_path / "weights")
    )
    assert isinstance(small, BetaMVUNet)
    assert isinstance(large, BetaMVUNet)
    cells = torch.randn(2, small.feature_count, 4, 4)
    repeated = cells.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(large.flat(repeated.flatten(1)), small.flat(cells.flatten(1)))
    large.save_weights(tmp_path / "large", half=False)
    again = build_network(dataclasses.replace(paper, start_from=tmp_path / "large"))
    torch.testing.assert_close(again.state_dict(), small.state_dict())


def test_narrower_networks_are_widened(options: PretrainOptions, tmp_path: Path) -> None:
    """Together with another input size, as when training goes from small and narrow to large and wide."""
    paper = dataclasses.replace(
        options, mode="paper", architecture="beta-mvunet", covariance="batch"
    )
    build_network(paper).save_weights(tmp_path / "weights", half=False)
    large = dataclasses.replace(paper, input_size=128, start_from=tmp_path / "weights")
    narrow, wide = (build_network(dataclasses.replace(large, width=width)) for width in (4, 12))
    patches = torch.randn(2, 3, 128, 128)
    first, second = (network.eval()(patches) for network in (narrow, wide))
    torch.testing.assert_close(second.logits, first.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.posterior.mean, first.posterior.mean)


def test_a_resumed_run_does_not_need_them_any_more(
    options: PretrainOptions, tmp_path: Path
) -> None:
    gone = dataclasses.replace(options, start_from=tmp_path / "gone", resume=True)
    assert build_network(gone).input_size == 64


def test_units_of_another_prior_are_refused(options: PretrainOptions, tmp_path: Path) -> None:
    tracking = dataclasses.replace(options, mode="tracking", covariance="frame", prior="davis16")
    build_network(tracking).save_weights(tmp_path / "weights")
    other = prior.named("davis16")
    wider = dataclasses.replace(other, covariance=4 * other.covariance)
    wider.save(tmp_path / "wide.json")
    changed = dataclasses.replace(
        tracking, prior=str(tmp_path / "wide.json"), start_from=tmp_path / "weights"
    )
    with pytest.raises(UserError, match="in units of another prior"):
        build_network(changed)


def test_the_alignment_of_published_weights_is_kept(
    options: PretrainOptions, tmp_path: Path
) -> None:
    large = dataclasses.replace(options, architecture="beta-mvunet", mode="paper", input_size=256)
    large = dataclasses.replace(large, prior="paper", covariance="batch")
    start = BetaMVUNet(
        prior.named("paper"), width=4, input_size=256, classes=2, samples=6, alignment="padded"
    )
    start.save_weights(tmp_path / "weights", half=False)
    network = build_network(dataclasses.replace(large, start_from=tmp_path / "weights"))
    assert isinstance(network, BetaMVUNet)
    assert network.alignment == "padded"
    network.save_weights(large.out / "last")  # weights from before are not asked for again
    resumed = build_network(dataclasses.replace(large, resume=True))
    (large.out / "last").rename(large.out / "best")  # as a kill may leave it
    after_a_kill = build_network(dataclasses.replace(large, resume=True))
    for again in (resumed, after_a_kill):
        assert isinstance(again, BetaMVUNet)
        assert again.alignment == "padded"
