"""RAdam in one pass over the weights, where torch's implementation takes fifteen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch

_SETTLED = 5.0  # RAdam uses its second moments once ρ exceeds this
_Lists = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]


class FusedRAdam(torch.optim.RAdam):
    """:class:`torch.optim.RAdam` with torch's fused Adam kernel, which reads and writes everything once.

    After its first steps, RAdam is Adam without bias correction of the moments, at a learning rate that
    accounts for both. The kernel's bias correction vanishes as the number of steps grows, so the kernel is
    passed an infinite number. Weight decay and maximisation are not supported.

    The state is RAdam's, and each optimiser can continue from the other's: ``step`` stays on the CPU, which
    needs its value, and is never read from a GPU.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do one step; return the closure's result, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (device, count), lists in self._by_step(group).items():
                self._update(device, count, lists, group)
        return loss

    def _by_step(self, group: dict[str, Any]) -> dict[tuple[torch.device, int], _Lists]:
        """Count this step; return weights, gradients and both moments by device and step number."""
        lists: tuple[list[torch.Tensor], ...] = ([], [], [], [], [])
        self._init_group(group, *lists)  # type: ignore[no-untyped-call]
        result: dict[tuple[torch.device, int], _Lists] = {}
        for *tensors, step in zip(*lists, strict=True):
            step += 1
            key = tensors[0].device, int(step)
            for values, tensor in zip(
                result.setdefault(key, ([], [], [], [])), tensors, strict=True
            ):
                values.append(tensor)
        return result

    def _update(
        self, device: torch.device, count: int, lists: _Lists, group: dict[str, Any]
    ) -> None:
        first, second = cast("tuple[float, float]", group["betas"])
        rate = float(group["lr"]) / (1 - first**count)
        factor = rectification(count, second)
        if factor is None:
            weights, gradients, means, squares = lists
            torch._foreach_lerp_(means, gradients, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
            torch._foreach_add_(weights, means, alpha=-rate)
            return
        forever = torch.full((), math.inf, device=device)
        torch._fused_adam_(
            *lists,
            [],
            [forever] * len(lists[0]),
            lr=rate * factor * math.sqrt(1 - second**count),
            beta1=first,
            beta2=second,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def rectification(step: int, beta: float) -> float | None:
    """RAdam's rectification term r (Liu et al. 2020, Algorithm 2); None in the first steps, while ρ ≤ 5.

    Args:
        step: number of the step, from 1 on.
        beta: decay rate of the second moments.
    """
    longest = 2 / (1 - beta) - 1
    length = longest - 2 * step * beta**step / (1 - beta**step)
    if length <= _SETTLED:
        return None
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return math.sqrt(ratio)
