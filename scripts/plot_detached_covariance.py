"""Plot the effect of KL on the posterior's covariance, with and without gradients at the Σ' head.

The paper's released code has no gradients there. This takes less than a minute on one core.

    python scripts/plot_detached_covariance.py --out detached.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bmvtrack import prior
from bmvtrack.console import check_at_least, parse_options
from bmvtrack.errors import run_script
from bmvtrack.figures import check_picture
from bmvtrack.models import Bottleneck
from bmvtrack.training.detached import DetachedBottleneck, converge, plot_convergence


@dataclass
class Options:
    """Plot the effect of KL on the posterior's covariance, with and without gradients at the Σ' head."""

    out: Path = Path("detached.png")
    """PNG file to write"""
    prior: str = "paper"
    """name or .json file of the motion prior"""
    steps: int = 8000
    """training steps, each on 32 new feature vectors"""
    seed: int = 0
    """random seed of weights and features"""


def main() -> None:
    """Train both bottlenecks, print their final values, and plot how they converge."""
    options = parse_options(Options, __doc__)
    check_at_least(1, options, "steps")
    check_picture(options.out)
    motion_prior = prior.load(options.prior)
    kinds = {"trained Σ' head": Bottleneck, "detached Σ' head": DetachedBottleneck}
    results = {
        name: converge(kind, motion_prior, options.steps, options.seed)
        for name, kind in kinds.items()
    }
    plot_convergence(results, motion_prior, options.out)
    for name, result in results.items():
        print(
            f"{name}: KL {result.kl:.4f} nats, Mahalanobis {result.mahalanobis[-1]:.2g}, "
            f"largest error of the covariance {100 * result.error[-1]:.1f} %"
        )
    print(options.out)


if __name__ == "__main__":
    run_script(main)
