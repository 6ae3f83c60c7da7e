"""Pretrain an encoder that maps patches to a mask and a Gaussian over the motion (paper §3–4).

Without --data, it trains on synthetic sequences. Writes to --out: the folders of weights best and last, and
checkpoints from which --resume continues.

    python scripts/pretrain_vae.py
    python scripts/pretrain_vae.py --data duts:DUTS-TR davis16:DAVIS:train --shares 3 1
    python scripts/pretrain_vae.py --mode paper --data davis16:DAVIS:train
"""

from bmvtrack.console import parse_options
from bmvtrack.errors import run_script
from bmvtrack.training import PretrainOptions, pretrain


def main() -> None:
    """Parse the options and train."""
    pretrain(parse_options(PretrainOptions, __doc__))


if __name__ == "__main__":
    run_script(main)
