"""Draw the curves of pretraining: total loss, construction loss and KL over the steps.

The paper's Figures 11 and 12. Several runs come into the same panels, named by their folders.

    python scripts/plot_training.py runs/beta-mvae runs/beta-mvunet --out curves.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from bmvtrack.console import parse_options
from bmvtrack.errors import UserError, run_script
from bmvtrack.training.curves import LOSSES, check_logged, plot_runs, read_scalars


@dataclass
class Options:
    """Draw the curves of pretraining: total loss, construction loss and KL over the steps."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders that pretrain_vae.py wrote (its --out), one or more"""
    out: Path = Path("curves.png")
    """picture to write, .png"""
    log: bool = False
    """logarithmic axes of the losses"""


def main() -> None:
    """Read the logs and draw them."""
    options = parse_options(Options, __doc__)
    if not options.runs:
        raise UserError("give the folder of at least one run")
    if options.out.suffix != ".png":
        raise UserError(f"--out {options.out}: give a name that ends in .png")
    runs = {str(folder): read_scalars(folder) for folder in options.runs}
    check_logged(runs, LOSSES)
    plot_runs(runs, LOSSES, options.out, options.log)
    print(options.out)


if __name__ == "__main__":
    run_script(main)
