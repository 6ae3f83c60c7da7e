"""The probability above which a mask's pixels count for its box, chosen on held-out frames.

A calibrated mask ends at ½, but its box should not: whatever a too small box leaves out is invisible in
the next frame, and a track of such boxes shrinks until the object is lost. The threshold at which single
boxes agree best with the true ones is also the one with which tracks last longest (docs/experiments.md).
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
"""The thresholds that are compared."""


def box_overlaps(output: Output, batch: Batch) -> torch.Tensor:
    """Rotated IoU with the true boxes of the boxes of masks thresholded at each of :data:`THRESHOLDS`.

    Args:
        output: the network's output for the batch.
        batch: a batch of tracking mode.

    Returns:
        ``(B, len(THRESHOLDS))`` float64: 0 where the thresholded mask is empty, NaN where the true motion
        is unknown.
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

    The mean of the middle half is used because otherwise one or two sequences on which every threshold
    fails would decide.

    Args:
        overlaps: ``(N, len(THRESHOLDS))`` from :func:`box_overlaps`, at least one row without NaN.

    Returns:
        The threshold and its mean IoU.
    """
    known = overlaps[overlaps.isfinite().all(dim=1)].sort(dim=0).values
    quarter = len(known) // 4
    means = known[quarter : len(known) - quarter].mean(dim=0)
    best = int(means.argmax())
    return THRESHOLDS[best], float(means[best])
