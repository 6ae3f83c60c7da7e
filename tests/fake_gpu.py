"""A GPU that computes nothing: torch's fake tensors, which know shape, type and device only.

On a machine without a GPU they show what would go wrong on one that has nothing to do with numbers:
tensors of two devices in one operation, and hosts that have to know a number before they go on
(``item``, a boolean index, a copy that is waited for). Backward passes are out of
reach, for autograd asks the CUDA driver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bmvtrack import masks
from bmvtrack.cuda_graphs import RowGraphs

GPU = torch.device("cuda")
_PLAIN = (FunctionType, MethodType, ModuleType, type, torch.Generator, torch.dtype, torch.device)
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::to")  # the last in inference mode


class FakeGPU:
    """Where fake tensors live; those of two of these do not mix.

    Attributes:
        reads: shapes of the tensors that the host has asked for so far, by ``cpu()`` or ``ToHost``.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode()
        self.reads: list[tuple[int, ...]] = []

    def move(self, thing: Any, known: dict[int, Any] | None = None) -> Any:
        """``thing`` with every tensor in it, however deep, as a fake one on the GPU.

        Objects, lists and dicts are changed in place; a tensor that is found twice (a parameter, in a
        network and in its optimiser) is the same one at both places afterwards.
        """
        known = {} if known is None else known
        if thing is None or isinstance(thing, (FakeTensor, *_PLAIN)):
            return thing
        if id(thing) not in known:
            # Kept beside its image, so that no other object gets its id.
            known[id(thing)] = [thing, thing]
            known[id(thing)][0] = self._moved(thing, known)
        return known[id(thing)][0]

    def _moved(self, thing: Any, known: dict[int, Any]) -> Any:
        if isinstance(thing, torch.Tensor):
            with self.mode:
                fake = self.mode.from_tensor(thing).detach().to(GPU)
                if isinstance(thing, nn.Parameter):
                    return nn.Parameter(fake, thing.requires_grad)
                return fake.requires_grad_(thing.requires_grad)
        if isinstance(thing, list):
            thing[:] = [self.move(part, known) for part in thing]
        elif isinstance(thing, dict):
            for name in thing:
                thing[name] = self.move(thing[name], known)
        elif isinstance(thing, tuple):
            parts = [self.move(part, known) for part in thing]
            if any(a is not b for a, b in zip(parts, thing, strict=True)):
                return type(thing)(*parts) if hasattr(thing, "_fields") else tuple(parts)
        else:
            for name, part in getattr(thing, "__dict__", {}).items():
                vars(thing)[name] = self.move(part, known)  # a frozen one, too
        return thing

    @contextmanager
    def running(self, may_read: bool = False) -> Iterator[None]:
        """Where fake tensors are computed with.

        ``numpy()`` of what came to the host gives zeros, of uint8 (masks) ones, and is on record.

        Raises:
            AssertionError: where the host waits for a copy to the GPU, and at any from it (unless it may
                read, by ``cpu()``).
        """

        def cpu(tensor: torch.Tensor) -> _Host:
            assert may_read, f"the host asks for {tuple(tensor.shape)}"
            self.reads.append(tuple(tensor.shape))
            return _Host(tensor)

        # Fake tensors cannot be pinned, and a fake GPU has no graphs.
        with (
            self.mode,
            _NoWaiting(),
            patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
            patch.object(torch.Tensor, "cpu", cpu),
            patch.object(masks, "ToHost", cpu),
            patch.object(RowGraphs, "_worthwhile", lambda *_: False),
        ):
            yield


class _NoWaiting(TorchDispatchMode):
    """Forbids copies between host and GPU that one of them waits for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if len(devices) > 1 and func._schema.name in _COPIES:
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            assert given.get("non_blocking"), (
                f"{func} copies between {' and '.join(sorted(devices))}"
            )
        return result


class _Host:
    """What ``cpu()`` gives of a fake tensor: something with as many numbers."""

    _TYPES: Mapping[torch.dtype, Any] = {
        torch.uint8: np.uint8,
        torch.bool: np.bool_,
        torch.int64: np.int64,
        torch.float32: np.float32,
        torch.float64: np.float64,
    }

    def __init__(self, tensor: torch.Tensor) -> None:
        value = 1 if tensor.dtype == torch.uint8 else 0
        self.numbers = np.full(tuple(tensor.shape), value, self._TYPES[tensor.dtype])

    def numpy(self) -> np.ndarray:
        return self.numbers
