"""Masks of whole sequences under both protocols, written sequence by sequence, and their scores."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bmvtrack.arrays import BoolArray, FloatArray
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.files import atomic_folder
from bmvtrack.masks import mask_in_frame
from bmvtrack.models import MultivariationalNetwork
from bmvtrack.segmentation.metrics import (
    Statistics,
    contour_accuracy,
    region_similarity,
    statistics,
)
from bmvtrack.segmentation.protocols import (
    HONEST,
    encode,
    honest,
    mean_squared_error,
    negative_log_likelihood,
    oracle,
    oracle_name,
)
from bmvtrack.segmentation.views import view_objects

_FEWEST_FRAMES = 3  # the first and the last are not scored
PER_FRAME = ("J", "F", "nll", "mse", "mahalanobis", "draw", "class")


@dataclass(frozen=True, eq=False)
class SequenceScores:
    """The scores of one sequence under one protocol.

    A frame without an object has no box to crop by: its predicted mask is empty, which scores J = F = 1,
    and it has none of the other values.

    Args:
        sequence: name of the sequence.
        values: ``(T,)`` arrays by the names in :data:`PER_FRAME`: J and F of every frame; NLL, MSE and
            Mahalanobis distance, NaN without an object; the draw and class that the oracle chose, also NaN
            for the honest protocol.
    """

    sequence: str
    values: dict[str, FloatArray] = field(repr=False)

    @cached_property
    def region(self) -> Statistics:
        """J, without the first and the last frame."""
        return statistics(self.values["J"])

    @cached_property
    def contour(self) -> Statistics:
        """F, without the first and the last frame."""
        return statistics(self.values["F"])

    def mean(self, name: str) -> float:
        """Mean NLL, MSE or Mahalanobis distance over all frames with an object."""
        return float(np.nanmean(self.values[name]))


def check_sequence(sequence: VideoSequence) -> None:
    """Read a whole sequence once, so that nothing fails in the middle of an evaluation.

    Raises:
        UserError: if a frame or mask is unreadable, frames differ in size from each other or from their
            masks, there are fewer than three, or none shows the object.
    """
    if len(sequence) < _FEWEST_FRAMES:
        raise UserError(
            f"sequence {sequence.name!r} has {len(sequence)} frames, but the first and the last are not "
            f"scored, so at least {_FEWEST_FRAMES} are needed; leave it out"
        )
    sequence.check_frame_sizes()
    if not sequence.present.any():
        raise UserError(f"sequence {sequence.name!r}: all its masks are empty; leave it out")


def sequence_generator(name: str, seed: int, device: torch.device) -> torch.Generator:
    """The random generator for one sequence, independent of which other sequences are evaluated."""
    return torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def evaluate_sequence(
    network: MultivariationalNetwork,
    sequence: VideoSequence,
    out: Path,
    draws: int = 32,
    batch_size: int = 8,
    seed: int = 0,
    advance: Callable[[int], None] = lambda frames: None,
) -> dict[str, SequenceScores]:
    """Run both protocols on one sequence and write ``PROTOCOL/SEQUENCE/00000.png`` for every frame.

    Masks are grey images of the frame's size with the values 0 and 255, numbered from 0 like the frames, as
    in DAVIS's result layout. A sequence's masks are written all together or not at all.

    Args:
        network: a network from :func:`~bmvtrack.segmentation.protocols.load_segmenter`.
        sequence: a sequence that passed :func:`check_sequence`.
        out: folder to write to.
        draws: stochastic masks that the oracle chooses from.
        batch_size: frames per encoder pass.
        seed: seed of the noise.
        advance: called with the number of frames done since the last call.

    Returns:
        Scores by protocol, the oracle first.
    """
    generator = sequence_generator(sequence.name, seed, next(network.parameters()).device)
    values: dict[str, dict[str, FloatArray]] = {
        protocol: {name: np.full(len(sequence), np.nan) for name in PER_FRAME}
        for protocol in (oracle_name(draws), HONEST)
    }
    folders = [out / protocol / sequence.name for protocol in values]
    with atomic_folder(folders[0]) as first, atomic_folder(folders[1]) as second:
        for start in range(0, len(sequence), batch_size):
            frames = range(start, min(start + batch_size, len(sequence)))
            masks = _predict(network, sequence, frames, draws, generator, values)
            for t, pair in zip(frames, masks, strict=True):
                true = sequence.mask(t)
                for folder, scores, mask in zip(
                    (first, second), values.values(), pair, strict=True
                ):
                    scores["J"][t] = region_similarity(mask, true)
                    scores["F"][t] = contour_accuracy(mask, true)
                    write_mask(folder / f"{t:05d}.png", mask)
            advance(len(frames))
    return {name: SequenceScores(sequence.name, table) for name, table in values.items()}


def write_mask(path: Path, mask: BoolArray) -> None:
    """Write a mask ``(H, W)`` as an 8-bit grey image with the values 0 and 255."""
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def _predict(
    network: MultivariationalNetwork,
    sequence: VideoSequence,
    frames: Sequence[int],
    draws: int,
    generator: torch.Generator,
    values: dict[str, dict[str, FloatArray]],
) -> list[tuple[BoolArray, BoolArray]]:
    """The masks of each frame by the oracle and the honest protocol; fills in the scores on the patch."""
    width, height = sequence.size
    shown = [t for t in frames if sequence.present[t]]
    masks: dict[int, tuple[BoolArray, BoolArray]] = {
        t: (np.zeros((height, width), bool), np.zeros((height, width), bool)) for t in frames
    }
    if not shown:
        return list(masks.values())
    views = view_objects(
        network,
        [sequence.frame(t) for t in shown],
        sequence.boxes[shown],
        [sequence.mask(t) for t in shown],
    )
    encoding = encode(network, views)
    choice = oracle(network, encoding, views, draws, generator)
    log_odds = choice.log_odds, honest(network, encoding)
    for odds, scores in zip(log_odds, values.values(), strict=True):
        scores["nll"][shown] = negative_log_likelihood(odds, views).cpu()
        scores["mse"][shown] = mean_squared_error(odds, views).cpu()
        scores["mahalanobis"][shown] = choice.mahalanobis.cpu()
    chosen = values[oracle_name(draws)]
    chosen["draw"][shown], chosen["class"][shown] = choice.draw, choice.label
    probabilities = [odds.sigmoid().cpu() for odds in log_odds]
    for i, t in enumerate(shown):
        best, plain = (mask_in_frame(p[i], views.windows[i], width, height) for p in probabilities)
        masks[t] = best, plain
    return list(masks.values())
