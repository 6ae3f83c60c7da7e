"""Differentiable sums over the processes (ranks) of a distributed run, and what one does for all.

In a run that is not distributed these functions cover the one process and change no value. Every rank
must call them equally often, with tensors of the same shape.

The sum is a quantity of the whole batch, and every rank gets the same one. The backward pass of
``all_sum`` gives each rank the gradients of all ranks' losses; ``DistributedDataParallel`` then averages
over ranks. Together that is the gradient of the mean of the ranks' losses, without any other factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from bmvtrack.errors import UserError


def rank_count() -> int:
    """Number of processes that train together; 1 in a run that is not distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def rank() -> int:
    """Rank of this process; 0 in a run that is not distributed."""
    return distributed.get_rank() if rank_count() > 1 else 0


def on_first_rank(work: Callable[[], object]) -> None:
    """Do something on rank 0 alone, for which the others wait; if it fails, all ranks raise.

    Otherwise the others would wait for rank 0 in their next sum, until that times out.

    Raises:
        Exception: what ``work`` raises, on rank 0.
        UserError: on the other ranks.
    """
    raised = None
    if rank() == 0:
        try:
            work()
        except Exception as error:
            raised = error
    failed = [raised is not None]
    if rank_count() > 1:
        distributed.broadcast_object_list(failed)
    if raised is not None:
        raise raised
    if failed[0]:
        raise UserError(f"rank {rank()} stops because rank 0 did")


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks of a tensor of any shape, the same on every rank; differentiable."""
    if rank_count() == 1:
        return values
    result: torch.Tensor = _AllSum.apply(values)
    return result


def all_gather(values: torch.Tensor) -> torch.Tensor:
    """The values of all ranks in rank order, ``(ranks, …)``; not differentiable."""
    if rank_count() == 1:
        return values[None]
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(rank_count())]
    distributed.all_gather(parts, values)
    return torch.stack(parts)


class _AllSum(torch.autograd.Function):
    """The gradient of a sum over ranks is the sum over ranks of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _summed(gradient)


def _summed(values: torch.Tensor) -> torch.Tensor:
    result = values.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(result)
    return result
