"""Base class of all networks, and saving and loading of their weights."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from bmvtrack.errors import UserError
from bmvtrack.files import atomic_folder, write_bytes, write_json, write_text
from bmvtrack.models.bottleneck import VARIABLES, Bottleneck, Posterior
from bmvtrack.models.template import Template
from bmvtrack.models.widening import Cells, widened_state
from bmvtrack.prior import MotionPrior

BOX_THRESHOLD = 0.125
"""Default where nothing better is known: what suits the first weights that were measured."""
_FILES = ("config.json", "model.safetensors")
Network = TypeVar("Network", bound="MultivariationalNetwork")


@dataclass(frozen=True)
class Encoding:
    """The encoder's output.

    Attributes:
        features: ``(B, F)``, the input of the heads (and of the agent).
        skips: feature maps for the decoder, coarse to fine; empty if there are none.
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


def foreground_probability(logits: torch.Tensor) -> torch.Tensor:
    """Probability of not being background: ``(B, C, S, S)`` scores → ``(B, S, S)`` float32."""
    return foreground_log_odds(logits).sigmoid()


def foreground_log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Log-odds of :func:`foreground_probability`: ``(B, C, S, S)`` scores → ``(B, S, S)`` float32."""
    logits = logits.float()
    objects = logits[:, 1:]
    together = objects[:, 0] if objects.shape[1] == 1 else objects.logsumexp(dim=1)
    return together - logits[:, 0]


class MultivariationalNetwork(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="bmvtrack",
    license="mit",
    tags=["visual-tracking", "video-object-segmentation"],
):
    """Encoder → bottleneck → decoder: a patch in; a mask and a Gaussian over the motion out.

    ``box_threshold`` is the probability of object above which a pixel of the masks counts for a box: it is
    not ½, and not the same for all weights. Pretraining finds it on held-out frames
    (:mod:`bmvtrack.training.box_threshold`); it is saved with the weights.

    ``covariance_scale`` is what trackers multiply the posterior's covariance by before they report it. It is
    1 until :mod:`bmvtrack.tracking.calibration` has found and saved another; the network itself, and what
    learns from its posterior, ignore it.

    Subclasses set ``bottleneck``, ``input_size``, ``input_channels``, ``classes`` and
    ``feature_count``, and implement :attr:`cells`, :meth:`encode` and :meth:`decode`; those that set
    ``uses_template`` also implement :meth:`memorize` and :meth:`encode_with_template`. Their constructor
    arguments must be JSON-serializable, or a :class:`~bmvtrack.prior.MotionPrior`.
    """

    bottleneck: Bottleneck
    input_size: int
    input_channels: int
    classes: int
    feature_count: int
    uses_template: bool = False
    box_threshold: float = BOX_THRESHOLD
    covariance_scale: float = 1.0

    @property
    @abstractmethod
    def cells(self) -> Cells:
        """The linear layers that read or write a flattened map."""

    @abstractmethod
    def encode(self, patches: torch.Tensor) -> Encoding:
        """Encode ``(B, input_channels, input_size, input_size)`` patches, values about ±2."""

    @abstractmethod
    def decode(self, latents: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """``(B, 5, S)`` latents and their encoding → ``(B, classes, input_size, input_size)``."""

    def memorize(self, patches: torch.Tensor) -> Template:
        """The template of patches ``(B, input_channels, input_size, input_size)`` that show the object.

        Raises:
            ValueError: if the network does not use a template.
        """
        raise ValueError(f"this {type(self).__name__} does not use a template")

    def encode_with_template(self, patches: torch.Tensor, template: Template) -> Encoding:
        """:meth:`encode`, with B templates of the objects to look for.

        Raises:
            ValueError: if the network does not use a template.
        """
        raise ValueError(f"this {type(self).__name__} does not use a template")

    def resized_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert the weights of the same network with another input size to this one's.

        Args:
            state: a ``state_dict``; returned as it is if no weight depends on the input size.
        """
        return state

    def widened_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert the weights of the same network with a fraction of the width to this one's.

        See :func:`~bmvtrack.models.widening.widened_state`. The output stays the same, up to rounding.
        Weights that read a template (:mod:`bmvtrack.models.template`) are not converted, and do not fit.

        Args:
            state: a ``state_dict``, for this input size.
        """
        return widened_state(state, self, self.cells)

    def forward(
        self,
        patches: torch.Tensor,
        stochastic: bool | None = None,
        generator: torch.Generator | None = None,
        template: Template | torch.Tensor | None = None,
    ) -> Output:
        """One pass.

        Args:
            patches: ``(B, input_channels, input_size, input_size)``.
            stochastic: draw z from the posterior; False decodes its mean. Default: True in training mode,
                else False.
            generator: of the noise.
            template: if the network uses one: patches of the same shape that show the object, or what
                :meth:`memorize` returned for them; None: each patch is its own template.
        """
        if isinstance(template, torch.Tensor):
            template = self.memorize(template)
        encoding = (
            self.encode(patches)
            if template is None
            else self.encode_with_template(patches, template)
        )
        posterior = self.bottleneck(encoding.features, generator)
        if self.training if stochastic is None else stochastic:
            latents = self.bottleneck.draw(posterior, generator)
        else:
            latents = self.bottleneck.center(posterior)
        return Output(self.decode(latents, encoding), posterior, encoding.features)

    def save_weights(self, folder: Path, half: bool = True) -> None:
        """Write ``config.json`` and ``model.safetensors``, both or neither.

        Args:
            folder: to write; replaced if it exists.
            half: store float16, which takes half the size and keeps 3 decimal digits of each weight.
        """
        with atomic_folder(folder) as temporary:
            self._write(temporary, half)

    @classmethod
    def from_pretrained(
        cls: type[Network], pretrained_model_name_or_path: str | Path, **download: Any
    ) -> Network:
        """Load a network from a folder (:func:`load_network`) or from the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: folder, or ``user/name`` on the Hub.
            download: ``revision``, ``token``, … of :func:`huggingface_hub.snapshot_download`.

        Raises:
            UserError: if nothing with this name exists, it is damaged, or it has another architecture.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            folder = Path(name)
        else:
            try:
                folder = Path(snapshot_download(name, allow_patterns=list(_FILES), **download))
            except (OSError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"no folder {name}, and not on the Hub either: {reason}") from error
        network = load_network(folder)
        if not isinstance(network, cls):
            raise UserError(f"{name} holds a {type(network).__name__}, not a {cls.__name__}")
        return network

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write what ``save_pretrained`` and ``push_to_hub`` add to the model card: float32 weights."""
        self._write(save_directory, half=False)

    def _write(self, folder: Path, half: bool) -> None:
        arguments: Any = self._hub_mixin_config  # of the constructor, kept by the mixin
        config = {
            **arguments,
            "architecture": type(self).__name__,
            "box_threshold": self.box_threshold,
            "covariance_scale": self.covariance_scale,
        }
        text = json.dumps(config, indent=2, ensure_ascii=False, default=_to_json)
        write_text(folder / _FILES[0], text + "\n")
        tensors = {
            name: (_halved(value) if half else value).detach().cpu().contiguous()
            for name, value in self.state_dict().items()
        }
        write_bytes(folder / _FILES[1], save(tensors))  # save_file() hides what a full disk raises


def check_sizes(input_channels: int, classes: int, width: int, samples: int) -> None:
    """Check the sizes that all networks have in common.

    Raises:
        ValueError: if a size is invalid; the message says what it must be.
    """
    if input_channels not in (3, 4) or classes < 2 or width < 1 or samples < VARIABLES + 1:
        raise ValueError(
            f"input_channels must be 3 or 4, classes ≥ 2, width ≥ 1 and samples > {VARIABLES}, "
            f"not {input_channels}, {classes}, {width} and {samples}"
        )


def _halved(value: torch.Tensor) -> torch.Tensor:
    """Convert to float16; tensors that are not floating-point, or too large for float16, are kept."""
    if not value.is_floating_point():
        return value
    half = value.half()
    return half if half.isfinite().all() else value


def _to_json(value: Any) -> Any:
    """Convert constructor arguments that :mod:`json` does not know (the mixin may unpack a prior)."""
    if isinstance(value, MotionPrior):
        return value.to_json()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a network's arguments must be JSON-serializable, not {type(value).__name__}")


def load_network(folder: Path) -> MultivariationalNetwork:
    """Load a network from a folder that ``save_weights`` or ``save_pretrained`` wrote.

    Returns:
        The network in float32, in evaluation mode, on the CPU.

    Raises:
        UserError: if the folder lacks a file, names an unknown architecture, or the weights do not
            fit the network that the configuration describes.
    """
    config_path, weights_path = (folder / name for name in _FILES)
    for path in (config_path, weights_path):
        if not path.is_file():
            raise UserError(f"no weights in {folder}: {path.name} is missing")
    network = _from_config(config_path)
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


def saved_arguments(folder: Path) -> dict[str, Any]:
    """The content of ``config.json`` in a folder of weights, without the weights.

    Raises:
        UserError: if the file is missing or not a JSON object.
    """
    path = folder / _FILES[0]
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} does not describe a network: {error}") from error


def weights_fingerprint(folder: Path) -> str:
    """A fingerprint of the network in a folder of weights; it does not depend on ``covariance_scale``.

    Raises:
        UserError: if a file is missing, or the configuration is not a JSON object.
    """
    config = saved_arguments(folder)
    config.pop("covariance_scale", None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    try:
        digest.update((folder / _FILES[1]).read_bytes())
    except OSError as error:
        raise UserError(f"no weights in {folder}: {error}") from error
    return digest.hexdigest()[:16]


def save_covariance_scale(folder: Path, scale: float) -> None:
    """Change ``covariance_scale`` of weights in a folder; only ``config.json`` is written.

    Raises:
        UserError: if the file is missing or not a JSON object.
    """
    write_json(folder / _FILES[0], saved_arguments(folder) | {"covariance_scale": scale})


def _from_config(path: Path) -> MultivariationalNetwork:
    from bmvtrack.models import ARCHITECTURES

    config = saved_arguments(path.parent)
    try:
        name = config.pop("architecture", None)
        if name not in ARCHITECTURES:
            raise ValueError(f"its architecture is {name!r}, not one of {', '.join(ARCHITECTURES)}")
        before = config.pop("box_cut", BOX_THRESHOLD)  # its name up to November 2026
        threshold = float(config.pop("box_threshold", before))
        if not 0 < threshold < 1:
            raise ValueError(f"its box_threshold is {threshold}, not a probability in (0, 1)")
        scale = float(config.pop("covariance_scale", 1.0))
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"its covariance_scale is {scale}, not a positive number")
        config["prior"] = MotionPrior.from_json(config["prior"])
        network = ARCHITECTURES[name](**config)
        network.box_threshold, network.covariance_scale = threshold, scale
        return network
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a network: {error}") from error
