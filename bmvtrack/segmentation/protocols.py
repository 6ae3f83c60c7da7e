"""Two protocols that get one mask from a network that can draw many: the paper's oracle, and an honest one.

Both get the patch around the true box and run the encoder once per frame. A mask is represented by its
*log-odds* ``(B, S, S)``: values above 0 are object, and their sigmoid is the probability shown in the
saliency map.

- ``honest``: one pass with the latents at the posterior's mean. Foreground is everything but background:
  the log-odds of all other classes together.
- ``oracle``: the paper's protocol (§5.2). The frame, tiled N = 32 times, gives N stochastic masks per
  class; of all these, the one with the largest IoU with the true mask is kept. The truth thus selects the
  mask, and the score is an upper bound. The mask of class c is where c is the most likely class; its
  log-odds are those of c against the most likely other class. Background is not a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from bmvtrack.bundled import weights_folder
from bmvtrack.devices import checked_device
from bmvtrack.models import (
    Encoding,
    MultivariationalNetwork,
    Posterior,
    foreground_log_odds,
    load_network,
)
from bmvtrack.segmentation.views import Views

HONEST = "honest"


@dataclass(frozen=True)
class Choice:
    """The masks that the oracle selects for B frames.

    Attributes:
        log_odds: ``(B, S, S)`` log-odds of the selected masks.
        draw: ``(B,)`` int64, index of the draw.
        label: ``(B,)`` int64, class of the mask.
        mahalanobis: ``(B,)`` distance of the tiled frame's posterior to the prior (paper Eq. 7).
    """

    log_odds: torch.Tensor
    draw: torch.Tensor
    label: torch.Tensor
    mahalanobis: torch.Tensor


def oracle_name(draws: int) -> str:
    """The oracle's name with its number of draws, such as ``oracle-32``."""
    return f"oracle-{draws}"


def load_segmenter(weights: str | Path, device: str = "cpu") -> MultivariationalNetwork:
    """Load a network pretrained in either mode, in evaluation mode, onto the device.

    Args:
        weights: name of bundled weights, or a folder.
        device: device to run on.

    Raises:
        UserError: if the weights are missing or invalid, or the device is missing.
    """
    on = checked_device(device)
    network = load_network(weights_folder(weights)).to(on)
    return network.to(memory_format=torch.channels_last)


@torch.inference_mode()
def encode(network: MultivariationalNetwork, views: Views) -> Encoding:
    """One encoder pass over all patches."""
    return network.encode(views.inputs)


@torch.inference_mode()
def honest(network: MultivariationalNetwork, encoding: Encoding) -> torch.Tensor:
    """Log-odds ``(B, S, S)`` of the honest protocol."""
    # Each frame has its own mean; only the covariance may be shared by the batch, and it is not used.
    latents = network.bottleneck.center(network.bottleneck(encoding.features))
    return foreground_log_odds(network.decode(latents, encoding))


@torch.inference_mode()
def oracle(
    network: MultivariationalNetwork,
    encoding: Encoding,
    views: Views,
    draws: int,
    generator: torch.Generator,
) -> Choice:
    """The oracle's choice, frame by frame, with ``draws`` masks of a frame in one decoder pass.

    The IoU is computed on the part of the patch that lies inside the frame.

    Args:
        network: network to draw from.
        encoding: encoding of the patches.
        views: the patches, with the true masks.
        draws: N, the number of masks per frame.
        generator: generator of the noise, on the network's device.
    """
    log_odds, chosen, distances = [], [], []
    for i in range(len(views)):
        logits, posterior = stochastic(network, encoding, i, draws, generator)
        draw, label = _best(logits.argmax(dim=1), network.classes, views.true[i], views.inside[i])
        log_odds.append(against_rivals(logits[draw], label))
        chosen.append((draw, label))
        distances.append(network.bottleneck.mahalanobis(posterior)[0])
    draw, label = torch.tensor(chosen).reshape(-1, 2).T
    return Choice(torch.stack(log_odds), draw, label, torch.stack(distances))


@torch.inference_mode()
def stochastic(
    network: MultivariationalNetwork,
    encoding: Encoding,
    frame: int,
    draws: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, Posterior]:
    """Stochastic masks of one frame of a batch, as if it were tiled ``draws`` times.

    The encoder's output is tiled, which is equivalent to tiling its input; with the ``batch``
    covariance the posterior is that of a batch of ``draws`` copies, as in the paper.

    Returns:
        Logits ``(draws, C, S, S)`` and the posterior.
    """
    tiled = Encoding(
        encoding.features[frame].expand(draws, -1),
        tuple(skip[frame].expand(draws, -1, -1, -1) for skip in encoding.skips),
    )
    posterior = network.bottleneck(tiled.features)
    latents = network.bottleneck.draw(posterior, generator)
    return network.decode(latents, tiled).float(), posterior


def against_rivals(logits: torch.Tensor, label: int) -> torch.Tensor:
    """Log-odds of one class against the most likely other class: ``(C, S, S)`` → ``(S, S)``."""
    rivals = torch.cat([logits[:label], logits[label + 1 :]])
    return logits[label] - rivals.amax(dim=0)


def negative_log_likelihood(log_odds: torch.Tensor, views: Views) -> torch.Tensor:
    """−log p(truth), ``(B,)`` in nats per pixel: the mean over the part of the patch inside the frame.

    Only object and background are distinguished, whatever the network's classes, as DAVIS has no others.
    The paper's Table 3 does not say over what its NLL is summed or averaged; this is a mean, so that
    patches of different sizes are comparable.
    """
    target = views.true.float()
    return _mean_inside(
        functional.binary_cross_entropy_with_logits(log_odds, target, reduction="none"), views
    )


def mean_squared_error(log_odds: torch.Tensor, views: Views) -> torch.Tensor:
    """Mean of (p − truth)², ``(B,)``, over the part of the patch inside the frame.

    p is the probability of the object. The paper's Table 3 does not say whether its MSE is that of
    probabilities, masks or class numbers.
    """
    return _mean_inside((log_odds.sigmoid() - views.true.float()).square(), views)


def _mean_inside(values: torch.Tensor, views: Views) -> torch.Tensor:
    inside = views.inside
    return (values * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp_min(1)


def _best(
    labels: torch.Tensor, classes: int, true: torch.Tensor, inside: torch.Tensor
) -> tuple[int, int]:
    """Draw and class with the largest IoU with the truth; the first one of equals.

    Args:
        labels: ``(N, S, S)`` most likely class.
        classes: C, the number of classes.
        true: ``(S, S)`` true mask.
        inside: ``(S, S)`` where the patch lies inside the frame.
    """
    draws = len(labels)
    offsets = classes * torch.arange(draws, device=labels.device)[:, None]
    shown = labels[:, inside] + offsets  # (N, pixels), a distinct number for each draw and class
    count = draws * classes
    area = torch.bincount(shown.flatten(), minlength=count).reshape(draws, classes)
    common = torch.bincount(shown[:, true[inside]].flatten(), minlength=count)
    intersection = common.reshape(draws, classes)[:, 1:]
    union = area[:, 1:] + true[inside].sum() - intersection
    best = int((intersection / union.clamp_min(1)).argmax())
    return best // (classes - 1), best % (classes - 1) + 1
