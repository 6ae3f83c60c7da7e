"""Saliency maps of still images under both protocols, written as they are made, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import torch
from PIL import Image

from bmvtrack.arrays import ByteArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.files import whole_file
from bmvtrack.models import MultivariationalNetwork
from bmvtrack.segmentation.protocols import HONEST, encode, honest, oracle, oracle_name
from bmvtrack.segmentation.saliency import SaliencyScores, normalized, score
from bmvtrack.segmentation.views import view_whole


def check_still(still: VideoSequence) -> None:
    """Read an image and its mask once, so that nothing fails in the middle of an evaluation.

    Raises:
        UserError: if either is unreadable, their sizes differ, or the mask is empty.
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
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, dict[str, SaliencyScores]]:
    """Both protocols on still images, with ``PROTOCOL/IMAGE.png`` of every map.

    The network sees each image whole (:func:`~bmvtrack.segmentation.views.view_whole`). A map is the
    probability of object, resized to the image, min-max normalised, in 256 grey levels: what is
    scored is what is written.

    Args:
        network: that :func:`~bmvtrack.segmentation.protocols.load_segmenter` loaded.
        stills: sequences of one frame that :func:`check_still` has passed.
        out: folder to write to.
        draws: stochastic masks that the oracle chooses from.
        batch_size: images in one encoder pass.
        seed: of the noise.
        advance: called with the number of images done since the last call.

    Returns:
        Scores by protocol, the oracle first, and image.
    """
    generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)
    results: dict[str, dict[str, SaliencyScores]] = {oracle_name(draws): {}, HONEST: {}}
    for start in range(0, len(stills), batch_size):
        part = stills[start : start + batch_size]
        frames, masks = [still.frame(0) for still in part], [still.mask(0) for still in part]
        views = view_whole(network, frames, masks)
        encoding = encode(network, views)
        maps = (
            oracle(network, encoding, views, draws, generator).log_odds.sigmoid().cpu(),
            honest(network, encoding).sigmoid().cpu(),
        )
        for (protocol, scores), probabilities in zip(results.items(), maps, strict=True):
            for still, true, patch in zip(part, masks, probabilities, strict=True):
                height, width = true.shape
                levels = normalized(cv2.resize(patch.numpy(), (width, height)))
                write_map(out / protocol / f"{still.name}.png", levels)
                scores[still.name] = score(levels, true)
        advance(len(part))
    return results


def write_map(path: Path, levels: ByteArray) -> None:
    """A map ``(H, W)`` as an 8-bit grey image, whole or not at all."""
    with whole_file(path) as temporary:
        Image.fromarray(levels).save(temporary)
