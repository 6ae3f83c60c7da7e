"""Pretrain an encoder on patches: a mask and a Gaussian over the motion (paper §3–4).

Examples:
    python scripts/pretrain_vae.py
    python scripts/pretrain_vae.py --data duts:DUTS-TR davis16:DAVIS:train --shares 3 1
    python scripts/pretrain_vae.py --mode paper --data davis16:DAVIS:train
"""

import tyro

from bmvtrack.errors import run_script
from bmvtrack.training import PretrainOptions, pretrain


def main() -> None:
    """Parse the options and train."""
    pretrain(tyro.cli(PretrainOptions, description=__doc__))


if __name__ == "__main__":
    run_script(main)
