"""RAdam in one pass over the weights, where torch's own takes fifteen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch

_SETTLED = 5.0  # the least ρ from which RAdam trusts its second moments
_Lists = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]


class FusedRAdam(torch.optim.RAdam):
    """:class:`torch.optim.RAdam` by torch's kernel for Adam, which reads and writes everything once.

    After its first steps RAdam is Adam without a correction of the moments, at a rate that takes care
    of both. The correction fades with the number of steps, so the kernel is told that there have been
    infinitely many. Neither weight decay nor maximising is known here.

    The state is RAdam's, and each can go on with the other's: ``step`` stays on the host, which has to
    know it, and is never asked of a GPU.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; what the closure returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (device, count), lists in self._by_step(group).items():
                self._update(device, count, lists, group)
        return loss

    def _by_step(self, group: dict[str, Any]) -> dict[tuple[torch.device, int], _Lists]:
        """Weights, gradients and both moments, by device and number of this step, which is counted."""
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
    """r of RAdam's step, from 1 on (Liu et al. 2020, eq. in algorithm 2); None in the first, unsteady ones.

    Args:
        step: its number.
        beta: of the second moments.
    """
    longest = 2 / (1 - beta) - 1
    length = longest - 2 * step * beta**step / (1 - beta**step)
    if length <= _SETTLED:
        return None
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return math.sqrt(ratio)
