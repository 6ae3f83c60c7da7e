from pathlib import Path

import pytest
import torch

from bmvtrack import prior
from bmvtrack.models import ResNetUNet
from bmvtrack.perception import Perception


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; skips where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data of ../shared/data, which is not there")
    return folder


@pytest.fixture(scope="session")
def perception() -> Perception:
    """A small network that has learned nothing, from a fixed seed."""
    torch.manual_seed(0)
    return Perception(ResNetUNet(prior.named("davis16"), width=8, input_size=64))
