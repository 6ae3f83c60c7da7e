"""From which probability on the pixels of a mask should count for its box: asked of held-out frames.

½ is where a mask ends that is right about how sure it is, and not where its box should end: a box that is
too small hides from the next frame what it left out, and a track of such boxes shrinks until it is lost.
The threshold at which single boxes agree best with true ones is also that with which tracks last longest
(docs/experiments.md).
"""

from __future__ import annotations

import numpy as np
import torch

from bmvtrack import motion
from bmvtrack.data import patches
from bmvtrack.data.batch import Batch
from bmvtrack.iou import rotated_iou
from bmvtrack.masks import mask_boxes
from bmvtrack.models import Output, foreground_probability

THRESHOLDS = (0.02, 0.04, 0.08, 0.125, 0.25, 0.35, 0.5, 0.65, 0.8)
"""Probabilities that are compared."""


def box_overlaps(output: Output, batch: Batch) -> torch.Tensor:
    """Rotated IoU of the boxes of masks, cut at each of :data:`THRESHOLDS`, with the true boxes.

    Args:
        output: of the network for the batch.
        batch: of tracking mode.

    Returns:
        ``(B, len(THRESHOLDS))`` float64: 0 where nothing is left of the mask, NaN where the true motion is
        not known.
    """
    known = batch.motion.isfinite().all(dim=-1)
    boxes = batch.boxes[known]
    true = motion.apply(boxes, batch.motion[known].to(boxes), 1.0, 1.0, "object").cpu().numpy()
    probabilities = foreground_probability(output.logits[known]).cpu()
    windows = patches.window(boxes).cpu()
    overlaps = [
        rotated_iou(mask_boxes(probabilities, windows, above), true) for above in THRESHOLDS
    ]
    result = torch.full((len(known), len(THRESHOLDS)), torch.nan, dtype=torch.float64)
    result[known.cpu()] = torch.from_numpy(np.nan_to_num(np.stack(overlaps, axis=-1)))
    return result.to(known.device)


def best_threshold(overlaps: torch.Tensor) -> tuple[float, float]:
    """The threshold whose boxes agree best with the true ones, by the interquartile mean of their IoU.

    The mean of the middle half: a sequence or two on which no threshold is any good would else decide.

    Args:
        overlaps: ``(N, len(THRESHOLDS))`` of :func:`box_overlaps`, at least one row without NaN.

    Returns:
        The threshold, and that mean.
    """
    known = overlaps[overlaps.isfinite().all(dim=1)].sort(dim=0).values
    quarter = len(known) // 4
    means = known[quarter : len(known) - quarter].mean(dim=0)
    best = int(means.argmax())
    return THRESHOLDS[best], float(means[best])
