"""The paper's published checkpoints as networks of this package.

They are Lightning checkpoints of βMVAE and βMVUnet. The tensors keep their values and, except for the two
heads and βMVAE's enlarging convolutions, their names. What the file does not say is set to what the released
code did (one covariance for the batch, the mean over it, Eq. 6, the printed prior, zeros around the map of
the latents).

A checkpoint shows shapes, not the forward pass. The following is assumed: the 5·S numbers of a head, and
the latents that ``z_dim`` and ``decoder.linear`` take, are in row order, the S samples of the first
variable first; ``upN`` concatenates the skip connection before the enlarged map; βMVAE's decoder has the
encoder's LeakyReLU; no nonlinearity follows ``flat``. A checkpoint does not show either how the patches
were normalised.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from bmvtrack import prior
from bmvtrack.errors import UserError
from bmvtrack.files import DAMAGED, check_sums
from bmvtrack.models.base import MultivariationalNetwork
from bmvtrack.models.bottleneck import VARIABLES
from bmvtrack.models.mvae import BetaMVAE
from bmvtrack.models.mvunet import BetaMVUNet

Tensors = dict[str, torch.Tensor]
_RENAMED = {"fc_mu.": "bottleneck.mean_head.", "fc_var.": "bottleneck.covariance_head."}
# In lightning-bolts' ResNet decoder a convolution that enlarges is a pair: interpolation, convolution.
_PAIRED = re.compile(r"^(decoder\.layer\d\.0\.(?:conv2|upsample\.0))\.1\.weight$")


def load_published(path: Path) -> MultivariationalNetwork:
    """Load the network that a published checkpoint holds.

    Classes, S, input channels, width, and βMVUnet's input size are inferred from the shapes; βMVAE's input
    size is the paper's 256, since none of its weights depends on it. :meth:`save_weights` writes the
    network as a folder.

    Args:
        path: Lightning checkpoint, or any ``torch.save`` file with tensors under ``state_dict``.

    Returns:
        :class:`BetaMVAE` or :class:`BetaMVUNet`, in float32 and evaluation mode.

    Raises:
        UserError: if the file cannot be read without unpickling, or its tensors fit neither network; the
            message names the tensor.
    """
    published = _read(path)
    architecture: type[MultivariationalNetwork]
    if "encoder.conv1.weight" in published:
        architecture, options = BetaMVAE, _mvae_options(published, path)
    elif "inc.double_conv.0.weight" in published:
        architecture, options = BetaMVUNet, _mvunet_options(published, path)
    else:
        raise UserError(
            f"{path} holds neither βMVAE nor βMVUnet: its state_dict has no "
            "encoder.conv1.weight and no inc.double_conv.0.weight"
        )
    options |= {"prior": prior.named("paper"), "covariance": "batch", "reduction": "mean"}
    options |= {"reparameterization": "affine", "standardized": False}
    try:
        with torch.device("meta"):  # nothing is allocated for a file that does not fit
            expected = architecture(**options).state_dict()
    except ValueError as error:
        raise UserError(f"{path} holds no valid network: {error}") from error
    _check_shapes(published, expected, path)
    network = architecture(**options)
    network.load_state_dict({_own_name(name): value for name, value in published.items()})
    network.eval()
    return network


def _read(path: Path) -> Tensors:
    """The state dict of a checkpoint, by its published names."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        if zipfile.is_zipfile(path):  # older ones are not archives, and have no checksums
            check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds Python objects besides tensors, or is damaged, and is not unpickled here; "
            "if you trust it, save only its {'state_dict': …} with torch.save"
        ) from error
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a checkpoint, or damaged: {reason}") from error
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        raise UserError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {name!r} in its state_dict is not a tensor")
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            raise UserError(
                f"{path}: {name!r} in its state_dict is not a dense tensor of real numbers"
            )
    return tensors


def _mvae_options(tensors: Tensors, path: Path) -> dict[str, Any]:
    return {
        "width": _length(tensors, "encoder.conv1.weight", 0, path),
        "input_channels": _length(tensors, "encoder.conv1.weight", 1, path),
        "classes": _length(tensors, "outc.conv.2.weight", 0, path),
        "samples": _samples(tensors, path),
        "input_size": 256,
    }


def _mvunet_options(tensors: Tensors, path: Path) -> dict[str, Any]:
    width = _length(tensors, "inc.double_conv.0.weight", 0, path)
    cells = _length(tensors, "flat.weight", 1, path) // (16 * max(width, 1))
    return {
        "width": width,
        "input_channels": _length(tensors, "inc.double_conv.0.weight", 1, path),
        "classes": _length(tensors, "outc.conv.weight", 0, path),
        "samples": _samples(tensors, path),
        "input_size": 16 * math.isqrt(cells),
        "alignment": "padded",
    }


def _samples(tensors: Tensors, path: Path) -> int:
    return _length(tensors, "fc_mu.bias", 0, path) // VARIABLES


def _length(tensors: Tensors, name: str, axis: int, path: Path) -> int:
    value = tensors.get(name)
    if value is None or value.ndim <= axis:
        found = "missing" if value is None else f"of shape {tuple(value.shape)}"
        raise UserError(f"{path} holds neither βMVAE nor βMVUnet: {name} is {found}")
    return value.shape[axis]


def _check_shapes(published: Tensors, expected: Tensors, path: Path) -> None:
    """Raise :class:`UserError` unless the file has all tensors of the network, and no others."""
    found = {_own_name(name): (name, value) for name, value in published.items()}
    for own, wanted in expected.items():
        if own not in found:
            raise UserError(f"{path} lacks {_published_name(own)}")
        name, value = found[own]
        if value.shape != wanted.shape:
            raise UserError(
                f"{path} does not fit: {name} is {tuple(value.shape)}, not {tuple(wanted.shape)}"
            )
    for own, (name, _) in found.items():
        if own not in expected:
            raise UserError(f"{path} has {name}, which the paper's network does not have")


def _own_name(published: str) -> str:
    for theirs, ours in _RENAMED.items():
        if published.startswith(theirs):
            return ours + published.removeprefix(theirs)
    return _PAIRED.sub(r"\1.weight", published)


def _published_name(own: str) -> str:
    for theirs, ours in _RENAMED.items():
        if own.startswith(ours):
            return theirs + own.removeprefix(ours)
    return own
