"""Fit the motion prior N(μ, Σ) to the boxes of a DAVIS16 folder.

The boxes are the smallest rotated rectangles around the masks. The fit is the plain mean and covariance: a
pair of frames whose mask breaks up or is occluded has the same weight as any other.

    python scripts/fit_prior.py --root DAVIS --split train --out prior.json
    python scripts/fit_prior.py --root DAVIS --split val --table
"""

from bmvtrack.console import parse_options
from bmvtrack.data.prior_fit import FitOptions, fit_prior
from bmvtrack.errors import run_script


def main() -> None:
    """Parse the options and fit."""
    fit_prior(parse_options(FitOptions, __doc__))


if __name__ == "__main__":
    run_script(main)
