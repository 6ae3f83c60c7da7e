"""The networks of the family, by name."""

from bmvtrack.models.base import Encoding, MultivariationalNetwork, Output, load_network
from bmvtrack.models.bottleneck import Bottleneck, Posterior
from bmvtrack.models.unet import ResNetUNet

ARCHITECTURES: dict[str, type[MultivariationalNetwork]] = {"ResNetUNet": ResNetUNet}

__all__ = [
    "ARCHITECTURES",
    "Bottleneck",
    "Encoding",
    "MultivariationalNetwork",
    "Output",
    "Posterior",
    "ResNetUNet",
    "load_network",
]
