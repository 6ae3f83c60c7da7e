"""Array types, and one implementation of a formula for NumPy arrays and torch tensors.

Geometry and motion are written once, against the array API standard; :func:`namespace` returns the
functions for the given arrays. NumPy callers never import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.floating[Any]]
ByteArray = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

Array = TypeVar("Array", FloatArray, "torch.Tensor")


def namespace(*arrays: Any) -> Any:
    """The array API namespace of ``arrays``: ``numpy``'s or ``torch``'s, never both.

    Raises:
        TypeError: if NumPy arrays and torch tensors are mixed, or something else is passed.
    """
    return array_api_compat.array_namespace(*arrays)
