"""The networks, by name."""

from bmvtrack.models.base import (
    Encoding,
    MultivariationalNetwork,
    Output,
    foreground_log_odds,
    foreground_probability,
    load_network,
    save_covariance_scale,
    saved_arguments,
    weights_fingerprint,
)
from bmvtrack.models.bottleneck import Bottleneck, Posterior
from bmvtrack.models.flows import FlowBottleneck, FlowPosterior
from bmvtrack.models.folding import fold_batch_norms
from bmvtrack.models.mvae import BetaMVAE
from bmvtrack.models.mvunet import BetaMVUNet
from bmvtrack.models.template import Template
from bmvtrack.models.unet import ResNetUNet

ARCHITECTURES: dict[str, type[MultivariationalNetwork]] = {
    network.__name__: network for network in (ResNetUNet, BetaMVAE, BetaMVUNet)
}

__all__ = [
    "ARCHITECTURES",
    "BetaMVAE",
    "BetaMVUNet",
    "Bottleneck",
    "Encoding",
    "FlowBottleneck",
    "FlowPosterior",
    "MultivariationalNetwork",
    "Output",
    "Posterior",
    "ResNetUNet",
    "Template",
    "fold_batch_norms",
    "foreground_log_odds",
    "foreground_probability",
    "load_network",
    "save_covariance_scale",
    "saved_arguments",
    "weights_fingerprint",
]
