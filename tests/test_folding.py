"""Folded networks say the same with no batch norm left."""

import copy

import pytest
import torch
from networks import disturb
from torch import nn

from bmvtrack import prior
from bmvtrack.models import BetaMVAE, BetaMVUNet, ResNetUNet, fold_batch_norms
from bmvtrack.perception import Perception


def network(architecture, **arguments):
    """A small one whose batch norms have seen something, so that they are not the identity."""
    torch.manual_seed(0)
    result = architecture(prior.named("davis16"), width=8, input_size=64, **arguments)
    disturb(result)
    return result.eval()


@pytest.mark.parametrize("architecture", [ResNetUNet, BetaMVAE, BetaMVUNet])
def test_a_folded_network_says_the_same(architecture):
    original = network(architecture)
    before = copy.deepcopy(original.state_dict())
    result = fold_batch_norms(original)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.modules())
    patches = torch.randn(3, original.input_channels, 64, 64)
    with torch.inference_mode():
        expected, seen = original(patches), result(patches)
    torch.testing.assert_close(seen.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.posterior.mean, expected.posterior.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.features, expected.features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(original.state_dict(), before, atol=0, rtol=0)


def test_templates_are_folded_as_well():
    original = network(ResNetUNet, template=True)
    for recall in original.recalls:
        nn.init.normal_(recall.output.weight, std=0.1)
    result = fold_batch_norms(original)
    shown, patches = torch.randn(2, 2, 4, 64, 64)
    with torch.inference_mode():
        expected = original(patches, template=original.memorize(shown))
        seen = result(patches, template=result.memorize(shown))
    torch.testing.assert_close(seen.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_what_a_perception_saves_is_the_network_it_was_given(tmp_path):
    perception = Perception(network(ResNetUNet))
    perception.network.save_weights(tmp_path, half=False)
    again = Perception.load(tmp_path)
    torch.testing.assert_close(
        again.network.state_dict(), perception.network.state_dict(), atol=0, rtol=0
    )
    assert any(isinstance(module, nn.BatchNorm2d) for module in again.network.modules())
