"""A policy in units of the encoder's Gaussian, N(δ, TTᵀ), and the two heads that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from bmvtrack import gaussian

_MOST_SHIFT = 6.0  # |δ_i|, in standard deviations of the prior
_LOG_SCALE = (-4.0, 1.0)  # of T_ii
_FIRST_LOG_REACH = 0.7  # two standard deviations


@dataclass(frozen=True)
class State:
    """The inputs of actor and critics for B observations.

    Attributes:
        inputs: ``(B, F')`` output of the extractor.
        suggestion: ``(B, 5)`` motion to the box of the mask, whitened by the prior.
    """

    inputs: torch.Tensor
    suggestion: torch.Tensor

    @classmethod
    def cat(cls, parts: Sequence[State]) -> State:
        """Concatenate several batches."""
        inputs, suggestions = zip(*((part.inputs, part.suggestion) for part in parts), strict=True)
        return cls(torch.cat(inputs), torch.cat(suggestions))


@dataclass(frozen=True)
class Residual:
    """The policy of B states in units of the prior, N(δ, TTᵀ).

    Attributes:
        shift: δ ``(B, 5)``.
        log_diagonal: log T_ii ``(B, 5)``, or ``(1, 5)`` if T is the same for all states.
        below: the rest of T, strictly lower triangular, ``(B, 5, 5)`` or ``(1, 5, 5)``; None if T is
            diagonal.
    """

    shift: torch.Tensor
    log_diagonal: torch.Tensor
    below: torch.Tensor | None

    @classmethod
    def of(cls, shift: torch.Tensor, packed: torch.Tensor, correlated: bool) -> Residual:
        """Create the residual from a head's output, limited to a safe range.

        Args:
            shift: ``(B, 5)``; saturates smoothly at ±6.
            packed: ``(B, 15)`` or ``(1, 15)`` lower triangle of T, with its diagonal in logarithms.
            correlated: False drops the entries below the diagonal.
        """
        raw = gaussian.unpack_lower(packed)
        log_diagonal = raw.diagonal(dim1=-2, dim2=-1)
        # Clamped in the forward pass only: values out of range keep their gradient, or they would stay there.
        beyond = (log_diagonal.clamp(*_LOG_SCALE) - log_diagonal).detach()
        return cls(
            _MOST_SHIFT * torch.tanh(shift / _MOST_SHIFT),
            log_diagonal + beyond,
            raw.tril(-1) if correlated else None,
        )

    @property
    def spread(self) -> torch.Tensor:
        """T ``(B, 5, 5)`` or ``(1, 5, 5)``."""
        diagonal = torch.diag_embed(self.log_diagonal.exp())
        return diagonal if self.below is None else diagonal + self.below

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """Whitened actions δ + T u ``(B, 5)`` for standard normal noise u ``(B, 5)``."""
        drawn = torch.addcmul(self.shift, self.log_diagonal.exp(), noise)
        return drawn if self.below is None else gaussian.unwhiten(noise, drawn, self.below)

    def kl(self) -> torch.Tensor:
        """KL(π ‖ prior) ``(B,)`` in nats; see :mod:`agents.policy`."""
        squares = self.shift.square() + (2 * self.log_diagonal).exp() - 2 * self.log_diagonal - 1
        kl = 0.5 * squares.sum(-1)
        return kl if self.below is None else kl + 0.5 * self.below.square().sum((-2, -1))


class MaskHead(nn.Module):
    """Learns how far each motion parameter follows the mask's suggestion, and one T for all states.

    δ_i = g_i c_i tanh(s_i / c_i), where s is the mask's suggestion in units of the prior: δ is a share g of
    the suggestion, of which at most c standard deviations count. The head has only 25 parameters, and δ is
    odd in s, so that a scene and its mirror image are corrected alike; what it learns on a few sequences
    therefore generalises to others (docs/experiments.md).

    Args:
        dimension: dimension of an action.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(dimension))  # g
        self.log_reach = nn.Parameter(torch.full((dimension,), _FIRST_LOG_REACH))  # log c
        self.factor = nn.Parameter(torch.zeros(dimension * (dimension + 1) // 2))

    def forward(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """δ ``(B, 5)`` and packed T ``(1, 15)``, its diagonal in logarithms."""
        reach = self.log_reach.exp()
        shift = self.share * reach * (state.suggestion / reach).tanh()
        return shift, self.factor[None]


class NetworkHead(nn.Module):
    """Computes δ and T from all of the agent's inputs with a multilayer perceptron.

    Args:
        inputs: number of inputs.
        hidden: sizes of the hidden layers, at least one.
        dimension: dimension of an action.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], dimension: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*create_mlp(inputs, -1, list(hidden)))
        self.shift = nn.Linear(hidden[-1], dimension)
        self.factor = nn.Linear(hidden[-1], dimension * (dimension + 1) // 2)
        for parameter in (*self.shift.parameters(), *self.factor.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """δ ``(B, 5)`` and packed T ``(B, 15)``; see :class:`MaskHead`."""
        hidden = self.hidden(state.inputs)
        return self.shift(hidden), self.factor(hidden)
