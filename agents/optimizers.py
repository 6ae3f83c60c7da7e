"""How optimisers are stepped: little around each step, and their numbers where a CUDA graph can read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.optim.adam import adam


def minimize(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step; gradients of anything else that the loss depends on are not worked out."""
    parameters = parameters_of(optimizer)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    take_step(optimizer)


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``, for torch's own Adam by :func:`adam_step`."""
    if type(optimizer) is torch.optim.Adam:  # others may step in another way
        adam_step(optimizer)
    else:
        optimizer.step()


@torch.no_grad()
def adam_step(optimizer: torch.optim.Adam) -> None:
    """``optimizer.step()`` with less around it, which for networks this small takes longer than the step.

    Without a GPU, ``Optimizer.step`` searches the machine for one at each call. The first step, which
    makes the state, is left to it, and so is decoupled weight decay, which older torch lacks. Hooks of
    steps are not called.
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
    """All that it changes, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Have an Adam count its steps on the device, too, in one kernel with all else.

    Stable-Baselines3's of the temperature does not, nor does one after a checkpoint of a CPU was loaded.
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
    """Where fused Adams read their learning rates from tensors, and can be captured.

    Anywhere else rates are numbers, as Stable-Baselines3 sets them and checkpoints hold them.
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
