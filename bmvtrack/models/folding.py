"""Networks for inference: batch norms are folded into the convolutions that they follow."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Module = TypeVar("Module", bound=nn.Module)


def fold_batch_norms(network: Module) -> Module:
    """A copy with the same output, up to rounding, and fewer passes over its feature maps.

    With fixed statistics a batch norm is an affine map of each channel, which the preceding convolution can
    do as well. A batch norm is assumed to follow the convolution that is the child module before it, as in
    torchvision's blocks and in sequences.

    Args:
        network: not changed; the copy is in evaluation mode and must stay there.
    """
    copied = copy.deepcopy(network).eval()
    for parent in list(copied.modules()):
        for (name, layer), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, norm_name, nn.Identity())
    return copied
