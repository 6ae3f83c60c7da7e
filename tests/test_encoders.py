"""One encoder for all environments of a process."""

import pytest
import torch

from bmvtrack import prior
from bmvtrack.errors import UserError
from bmvtrack.models import ResNetUNet
from envs.encoders import encoder_of


def test_weights_that_are_written_anew_are_loaded_anew(tmp_path):
    first, second = (ResNetUNet(prior.named("davis16"), width=2, input_size=64) for _ in range(2))
    first.save_weights(tmp_path, half=False)
    before = encoder_of(str(tmp_path))
    assert encoder_of(str(tmp_path)) is encoder_of(tmp_path) is before
    second.save_weights(tmp_path, half=False)
    after = encoder_of(str(tmp_path))
    for name, value in second.state_dict().items():
        assert torch.equal(after.network.state_dict()[name], value)
    assert not torch.equal(before.network.stem[0].weight, after.network.stem[0].weight)


def test_weights_that_are_none_are_named():
    with pytest.raises(UserError, match=r"weights must be the name .* not NoneType"):
        encoder_of(None)
