"""Saliency maps of still images under three protocols, written image by image, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.files import atomic_file
from bmvtrack.models import MultivariationalNetwork
from bmvtrack.segmentation.looks import TWO_LOOKS, look_twice
from bmvtrack.segmentation.protocols import HONEST, encode, honest, oracle, oracle_name
from bmvtrack.segmentation.saliency import SaliencyScores, normalized, score
from bmvtrack.segmentation.views import view_whole


def check_still(still: VideoSequence) -> None:
    """Read an image and its mask once, so that nothing fails in the middle of an evaluation.

    Raises:
        UserError: if either is unreadable, they differ in size, or the mask is empty.
    """
    if not still.mask(0).any():
        raise UserError(
            f"image {still.name!r}: its mask is empty, so there is nothing salient to find; "
            "leave the image out"
        )


def evaluate_stills(
    network: MultivariationalNetwork,
    stills: Sequence[VideoSequence],
    out: Path,
    draws: int = 32,
    batch_size: int = 8,
    seed: int = 0,
    steepness: float = 1.0,
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, dict[str, SaliencyScores]]:
    """Run three protocols on still images and write ``PROTOCOL/IMAGE.png`` for every map.

    The network sees each image whole (:func:`~bmvtrack.segmentation.views.view_whole`); in the third
    protocol it looks again where it found something (:mod:`~bmvtrack.segmentation.looks`). A map is the
    probability of the object, with its log-odds multiplied by ``steepness``, resized to the image, min-max
    normalised, in 256 grey levels. The scored maps are exactly the written ones.

    Args:
        network: a network from :func:`~bmvtrack.segmentation.protocols.load_segmenter`.
        stills: sequences of one frame that passed :func:`check_still`.
        out: folder to write to.
        draws: stochastic masks that the oracle chooses from.
        batch_size: images per encoder pass.
        seed: seed of the noise.
        steepness: positive; above 1, maps are more confident than the network.
        advance: called with the number of images done since the last call.

    Returns:
        Scores by protocol (the oracle, honest, two looks) and image.
    """
    generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)
    protocols = oracle_name(draws), HONEST, TWO_LOOKS
    results: dict[str, dict[str, SaliencyScores]] = {name: {} for name in protocols}
    for start in range(0, len(stills), batch_size):
        part = stills[start : start + batch_size]
        frames, masks = [still.frame(0) for still in part], [still.mask(0) for still in part]
        views = view_whole(network, frames, masks)
        encoding = encode(network, views)
        maps: list[Sequence[torch.Tensor] | torch.Tensor] = [
            oracle(network, encoding, views, draws, generator).log_odds,
            honest(network, encoding),
            [torch.from_numpy(odds) for odds in look_twice(network, frames)],
        ]
        for (protocol, scores), log_odds in zip(results.items(), maps, strict=True):
            probabilities = [_probability(steepness * odds) for odds in log_odds]
            for still, true, patch in zip(part, masks, probabilities, strict=True):
                height, width = true.shape
                resized = np.asarray(cv2.resize(patch, (width, height)), dtype=np.float64)
                levels = normalized(resized)
                write_map(out / protocol / f"{still.name}.png", levels)
                scores[still.name] = score(levels, true)
        advance(len(part))
    return results


def write_map(path: Path, levels: ByteArray) -> None:
    """Write a map ``(H, W)`` as an 8-bit grey image, atomically."""
    with atomic_file(path) as temporary:
        Image.fromarray(levels).save(temporary)


def _probability(log_odds: torch.Tensor) -> FloatArray:
    return np.asarray(log_odds.sigmoid().cpu(), dtype=np.float64)
