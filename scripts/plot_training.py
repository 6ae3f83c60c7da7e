"""Plot the curves of pretraining: total loss, construction loss and KL over the steps.

These are the paper's Figures 11 and 12. Several runs share the panels and are labelled by their folders.

    python scripts/plot_training.py runs/beta-mvae runs/beta-mvunet --out curves.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from bmvtrack.console import parse_options
from bmvtrack.errors import UserError, run_script
from bmvtrack.figures import check_picture
from bmvtrack.training.curves import LOSSES, check_logged, plot_runs, read_scalars


@dataclass
class Options:
    """Plot the curves of pretraining: total loss, construction loss and KL over the steps."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """one or more folders written by pretrain_vae.py (its --out)"""
    out: Path = Path("curves.png")
    """PNG file to write"""
    log: bool = False
    """use logarithmic axes for the losses"""


def main() -> None:
    """Read the logs and plot them."""
    options = parse_options(Options, __doc__)
    if not options.runs:
        raise UserError("give the folder of at least one run")
    check_picture(options.out)
    runs = {str(folder): read_scalars(folder) for folder in options.runs}
    check_logged(runs, LOSSES)
    plot_runs(runs, LOSSES, options.out, options.log)
    print(options.out)


if __name__ == "__main__":
    run_script(main)
