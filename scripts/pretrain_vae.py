"""Pretrain an encoder on patches: a mask and a Gaussian over the motion (paper §3–4).

Without --data on synthetic sequences. Writes to --out: best and last, folders of weights, and
checkpoints from which --resume goes on.

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
