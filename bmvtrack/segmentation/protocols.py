"""How one mask is got from a network that can draw many: the paper's oracle, and the honest way.

Both get the patch around the true box and run the encoder once a frame. A mask is told as
*log-odds* ``(B, S, S)``: above 0 is object, their sigmoid is the probability that the saliency map
shows.

- ``honest``: one pass with the latents at the posterior's mean. Foreground is what is not
  background: the log-odds of all other classes together.
- ``oracle``: the paper's (§5.2). The frame, tiled N = 32 times, gives N stochastic masks; of these,
  times the classes, the one is kept that has the greatest IoU with the truth. So the truth chooses,
  and the score is an upper bound. A mask of class c is where c is the likeliest class; its log-odds
  are those of c against its likeliest rival. Background is no candidate.
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
    """What the oracle kept for B frames.

    Attributes:
        log_odds: ``(B, S, S)`` of the masks kept.
        draw: ``(B,)`` int64, which of the N.
        label: ``(B,)`` int64, its class.
        mahalanobis: ``(B,)`` distance of the tiled frame's posterior to the prior (paper Eq. 7).
    """

    log_odds: torch.Tensor
    draw: torch.Tensor
    label: torch.Tensor
    mahalanobis: torch.Tensor


def oracle_name(draws: int) -> str:
    """``oracle-32``, with another number of draws accordingly."""
    return f"oracle-{draws}"


def load_segmenter(weights: str | Path, device: str = "cpu") -> MultivariationalNetwork:
    """A network to evaluate, of any mode, in evaluation mode on the device.

    Args:
        weights: name of bundled weights, or a folder.
        device: to run on.

    Raises:
        UserError: if there are no such weights, they are not as they should be, or the device is
            not there.
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
    # The mean is each frame's own; only the covariance may be one for the batch, and is not used.
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
    """The oracle's choice, one frame after the other, ``draws`` masks of each in one decoder pass.

    IoU is taken on the patch, where it shows the frame.

    Args:
        network: to draw from.
        encoding: of the patches.
        views: the patches, with the truth.
        draws: N, masks a frame.
        generator: of the noise, on the network's device.
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

    The encoder's output is tiled, which is the same as tiling its input; with the ``batch``
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
    """Log-odds of one class against the likeliest of the others: ``(C, S, S)`` → ``(S, S)``."""
    rivals = torch.cat([logits[:label], logits[label + 1 :]])
    return logits[label] - rivals.amax(dim=0)


def negative_log_likelihood(log_odds: torch.Tensor, views: Views) -> torch.Tensor:
    """−log p(truth), ``(B,)`` nats a pixel: mean over the patch, where it shows the frame.

    Of object and background, whatever the classes: DAVIS has no others. The paper's Table 3 does not
    say over what its NLL is summed or averaged; this is a mean, so that patch sizes compare.
    """
    target = views.true.float()
    return _mean_inside(
        functional.binary_cross_entropy_with_logits(log_odds, target, reduction="none"), views
    )


def mean_squared_error(log_odds: torch.Tensor, views: Views) -> torch.Tensor:
    """Mean of (p − truth)², ``(B,)``, over the patch where it shows the frame.

    p is the probability of object. The paper's Table 3 does not say whether its MSE is of
    probabilities, of masks or of class numbers.
    """
    return _mean_inside((log_odds.sigmoid() - views.true.float()).square(), views)


def _mean_inside(values: torch.Tensor, views: Views) -> torch.Tensor:
    inside = views.inside
    return (values * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp_min(1)


def _best(
    labels: torch.Tensor, classes: int, true: torch.Tensor, inside: torch.Tensor
) -> tuple[int, int]:
    """Draw and class of the greatest IoU with the truth; the first of equals.

    Args:
        labels: ``(N, S, S)`` likeliest class.
        classes: C.
        true: ``(S, S)``.
        inside: ``(S, S)``.
    """
    draws = len(labels)
    offsets = classes * torch.arange(draws, device=labels.device)[:, None]
    shown = labels[:, inside] + offsets  # (N, pixels), one number for each draw and class
    count = draws * classes
    area = torch.bincount(shown.flatten(), minlength=count).reshape(draws, classes)
    common = torch.bincount(shown[:, true[inside]].flatten(), minlength=count)
    intersection = common.reshape(draws, classes)[:, 1:]
    union = area[:, 1:] + true[inside].sum() - intersection
    best = int((intersection / union.clamp_min(1)).argmax())
    return best // (classes - 1), best % (classes - 1) + 1
