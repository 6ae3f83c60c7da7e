"""Optimiser steps with little overhead, and optimiser state where a CUDA graph can read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.optim.adam import adam


def minimize(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Do one step, computing only the gradients of this optimiser's parameters."""
    parameters = parameters_of(optimizer)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    take_step(optimizer)


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Do ``optimizer.step()``; for torch's Adam, :func:`adam_step`."""
    if type(optimizer) is torch.optim.Adam:  # subclasses may step differently
        adam_step(optimizer)
    else:
        optimizer.step()


@torch.no_grad()
def adam_step(optimizer: torch.optim.Adam) -> None:
    """Do ``optimizer.step()`` without its overhead, which exceeds the step itself for networks this small.

    Without a GPU, ``Optimizer.step`` searches the machine for one at each call. It still does the first
    step, which creates the state, and steps with decoupled weight decay, which older versions of torch lack.
    Step hooks are not called.
    """
    started = all(optimizer.state.get(parameter) for parameter in parameters_of(optimizer))
    if not started or any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        optimizer.step()
        return
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [optimizer.state[parameter] for parameter in parameters]
        adam(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All parameters of the optimiser, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Make an Adam optimiser fused, with its step counts on the device.

    Stable-Baselines3's optimiser of the temperature is not, nor is one that was loaded from a checkpoint made
    on a CPU.
    """
    for group in optimizer.param_groups:
        group["fused"] = True
    for parameter in parameters_of(optimizer):
        state = optimizer.state.get(parameter)
        if state:
            state["step"] = state["step"].to(parameter.device, torch.float32)


@contextmanager
def rates_on_device(
    optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[torch.Tensor]
) -> Iterator[None]:
    """A context in which fused Adams read their learning rates from tensors and can be captured.

    Outside it, the rates are numbers, as Stable-Baselines3 sets them and checkpoints store them.
    """
    pairs = [
        (group, rate)
        for optimizer, rate in zip(optimizers, rates, strict=True)
        for group in optimizer.param_groups
    ]
    before = [(group["lr"], group["capturable"]) for group, _ in pairs]
    for group, rate in pairs:
        group["lr"], group["capturable"] = rate, True
    try:
        yield
    finally:
        for (group, _), (number, capturable) in zip(pairs, before, strict=True):
            group["lr"], group["capturable"] = number, capturable
