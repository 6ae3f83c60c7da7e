"""What every network of the family has in common, and how it is saved and loaded."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bmvtrack.errors import UserError
from bmvtrack.files import whole_folder
from bmvtrack.models.bottleneck import Bottleneck, Posterior
from bmvtrack.prior import MotionPrior


@dataclass(frozen=True)
class Encoding:
    """What the encoder hands on.

    Attributes:
        features: ``(B, F)``, what the heads (and the agent) see.
        skips: feature maps for the decoder, coarse to fine; empty where there are none.
    """

    features: torch.Tensor
    skips: tuple[torch.Tensor, ...]


@dataclass  # not frozen: Fabric rebuilds it when it converts the precision of outputs
class Output:
    """One pass through the network.

    Attributes:
        logits: ``(B, C, S, S)`` scores of the classes; class 0 is background.
        posterior: of the motion, in the bottleneck's units.
        features: ``(B, F)``.
    """

    logits: torch.Tensor
    posterior: Posterior
    features: torch.Tensor


class MultivariationalNetwork(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="bmvtrack",
    license="mit",
    tags=["visual-tracking", "video-object-segmentation"],
    coders={MotionPrior: (lambda prior: prior.to_json(), MotionPrior.from_json)},
):
    """Encoder → bottleneck → decoder: a patch in; a mask and a Gaussian over the motion out.

    Subclasses set ``bottleneck``, ``input_size``, ``input_channels``, ``classes`` and
    ``feature_count``, and implement :meth:`encode` and :meth:`decode`. Their constructor arguments
    must be what JSON can hold, or a :class:`~bmvtrack.prior.MotionPrior`.
    """

    bottleneck: Bottleneck
    input_size: int
    input_channels: int
    classes: int
    feature_count: int

    @abstractmethod
    def encode(self, patches: torch.Tensor) -> Encoding:
        """Encode ``(B, input_channels, input_size, input_size)`` patches, values about ±2."""

    @abstractmethod
    def decode(self, latents: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """``(B, 5, S)`` latents and their encoding → ``(B, classes, input_size, input_size)``."""

    def forward(
        self,
        patches: torch.Tensor,
        stochastic: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """One pass.

        Args:
            patches: ``(B, input_channels, input_size, input_size)``.
            stochastic: draw z from the posterior; False decodes its mean. Default: as in training.
            generator: of the noise.
        """
        encoding = self.encode(patches)
        posterior = self.bottleneck(encoding.features)
        if self.training if stochastic is None else stochastic:
            latents = self.bottleneck.draw(posterior, generator)
        else:
            latents = self.bottleneck.center(posterior)
        return Output(self.decode(latents, encoding), posterior, encoding.features)

    def save_weights(self, folder: Path, half: bool = True) -> None:
        """Write ``config.json`` and ``model.safetensors``, whole or not at all.

        Args:
            folder: to write; replaced if it is there.
            half: store float16, half the size; 3 decimal digits of each weight are kept.
        """
        with whole_folder(folder) as temporary:
            config = _encode_config(self._hub_mixin_config) | {"architecture": type(self).__name__}
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")
            tensors = {
                name: value.half() if half and value.is_floating_point() else value
                for name, value in self.state_dict().items()
            }
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
                temporary / "model.safetensors",
            )


def _encode_config(config: Any) -> dict[str, Any]:
    return {
        key: value.to_json() if isinstance(value, MotionPrior) else value
        for key, value in dict(config or {}).items()
    }


def load_network(folder: Path) -> MultivariationalNetwork:
    """A network of the family from a folder that :meth:`MultivariationalNetwork.save_weights` wrote.

    Returns:
        The network in float32, in evaluation mode, on the CPU.

    Raises:
        UserError: if the folder lacks a file, names an unknown architecture, or the weights do not
            fit the network that the configuration describes.
    """
    from bmvtrack.models import ARCHITECTURES

    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise UserError(f"no weights in {folder}: {path.name} is missing")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        architecture = ARCHITECTURES[config.pop("architecture")]
        config["prior"] = MotionPrior.from_json(config["prior"])
        network = architecture(**config)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config_path} does not describe a network: {error}") from error
    try:
        tensors = load_file(weights_path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights_path} is damaged: {error}") from error
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        name = min(dict(set(expected.items()) ^ set(found.items())))
        raise UserError(
            f"{weights_path} does not fit the network of {config_path}: {name} is "
            f"{found.get(name, 'missing')} in the file and {expected.get(name, 'absent')} in the "
            "network; the two files must come from the same run"
        )
    network.load_state_dict(tensors)
    network.eval()
    return network
