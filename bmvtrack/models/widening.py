"""Wide networks that compute what a narrower one does, so that training can go on from there.

A narrow network learns at a fraction of the cost of a wide one. Net2Net (Chen, Goodfellow & Shlens 2016,
§3.1) makes a wide network of it: every channel is copied, and the weights that read it are divided among its
copies.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Cells = Mapping[str, tuple[int, int]]
"""Parameters that read or write a flattened map: along which dimension, and the map's cells per channel."""

_UNEQUAL = 0.5, 1.5  # range of what is divided by its sum to be the copies' shares


def widened_state(
    state: Mapping[str, torch.Tensor], network: nn.Module, cells: Cells
) -> dict[str, torch.Tensor]:
    """The weights of a wide network that computes the same as a narrower one of the same architecture.

    Copies of a channel stand side by side, and get random shares (from torch's global generator) of the
    weights that read the channel: with equal shares they would have equal gradients for ever.

    Args:
        state: of the narrow network. Tensors that are not those of a narrower network are returned as they
            are.
        network: the wide one, whose layers are convolutions, linear layers, and norms.
        cells: of its linear layers.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    result = dict(state)
    for name, value in state.items():
        if name not in shapes or not _is_narrower(value.shape, shapes[name]):
            continue
        reading = _reading(network, name)
        for dim in _written_first(value.dim(), reading):
            factor = shapes[name][dim] // value.shape[dim]
            flattened, count = cells.get(name, (dim, 1))
            if factor > 1:
                count = count if dim == flattened else 1
                value = _copied(value, dim, factor, count, dim == reading)
        result[name] = value
    return result


def _reading(network: nn.Module, name: str) -> int | None:
    """The dimension of a parameter along which channels are read; None if it reads none."""
    layer, _, kind = name.rpartition(".")
    module = network.get_submodule(layer)
    if kind != "weight" or not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return None
    return 0 if isinstance(module, nn.ConvTranspose2d) else 1


def _written_first(dims: int, reading: int | None) -> list[int]:
    """The dimensions, that of what is read last: then each copy divides it in its own way."""
    return sorted(range(dims), key=lambda dim: dim == reading)


def _is_narrower(shape: torch.Size, wide: torch.Size) -> bool:
    if len(shape) != len(wide):
        return False
    return all(after % before == 0 for before, after in zip(shape, wide, strict=True))


def _copied(value: torch.Tensor, dim: int, factor: int, cells: int, shared: bool) -> torch.Tensor:
    """Copy channels along a dimension; if ``shared``, so that the copies' sum is what was copied."""
    channels: torch.Tensor = value.unflatten(dim, (-1, 1, cells)).repeat_interleave(factor, dim + 1)
    if shared:
        # The cells of a channel have the same share.
        drawn = torch.empty_like(channels.narrow(dim + 2, 0, 1)).uniform_(*_UNEQUAL)
        channels = channels * (drawn / drawn.sum(dim + 1, keepdim=True))
    return channels.flatten(dim, dim + 2)
