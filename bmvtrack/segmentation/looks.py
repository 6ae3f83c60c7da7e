"""The two-look protocol: the network looks again where it found something, without any ground truth.

A whole image is resized to the network's input, so a small object has few pixels. The box of the mask found
in it is then used as in tracking: seen through it, the object fills a fixed share of the patch. The two
looks are treated as independent evidence, so their log-odds are *added* (Bayes' rule with even prior odds);
outside the second patch, the first look is used alone. Each look runs on the patch and on its mirror image,
whose log-odds are averaged because they are not independent evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bmvtrack.arrays import ByteArray
from bmvtrack.masks import mask_boxes, patch_in_frame
from bmvtrack.models import MultivariationalNetwork
from bmvtrack.segmentation.protocols import honest
from bmvtrack.segmentation.views import Views, view_objects, view_whole

TWO_LOOKS = "two-looks"


@torch.inference_mode()
def look_twice(
    network: MultivariationalNetwork, frames: Sequence[ByteArray]
) -> list[NDArray[np.float32]]:
    """Log-odds of the object class from the whole image and from the box of what was found there.

    It takes four encoder passes per image. If nothing is found in the whole image, its log-odds are returned.

    Args:
        network: a network from :func:`~bmvtrack.segmentation.protocols.load_segmenter`.
        frames: B images ``(H, W, 3)`` uint8 RGB, of any sizes.

    Returns:
        B arrays ``(H, W)``.
    """
    whole = view_whole(network, frames)
    log_odds = _both_ways(network, whole)
    result = _in_frames(log_odds, whole.windows, frames)
    boxes = mask_boxes(log_odds.sigmoid(), whole.windows, above=0.5)
    found = [i for i, box in enumerate(boxes) if not np.isnan(box).any()]
    if found:
        near = [frames[i] for i in found]
        views = view_objects(network, near, boxes[found])
        seen = _in_frames(_both_ways(network, views), views.windows, near)
        for i, evidence in zip(found, seen, strict=True):
            result[i] += evidence
    return result


def _both_ways(network: MultivariationalNetwork, views: Views) -> torch.Tensor:
    """Log-odds ``(B, S, S)`` of the honest protocol, averaged over patches and their mirror images."""
    as_seen, mirrored = (
        honest(network, network.encode(inputs)) for inputs in (views.inputs, views.inputs.flip(-1))
    )
    return (as_seen + mirrored.flip(-1)) / 2


def _in_frames(
    log_odds: torch.Tensor, windows: torch.Tensor, frames: Sequence[ByteArray]
) -> list[NDArray[np.float32]]:
    return [
        patch_in_frame(odds, window, frame.shape[1], frame.shape[0])
        for odds, window, frame in zip(log_odds, windows, frames, strict=True)
    ]
