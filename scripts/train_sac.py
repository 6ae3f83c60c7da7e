"""Train a soft actor-critic in BMVTrack-v0 that starts as the encoder's own Gaussian.

Without --data on synthetic sequences. Writes to --out: best and last, folders of weights with
encoder and agent, and checkpoints from which --resume goes on.

    python scripts/train_sac.py
    python scripts/train_sac.py --weights runs/pretrain/best --data davis16:DAVIS:train
    python scripts/train_sac.py --policy plain --coordinates object
"""

from agents.options import TrainOptions
from agents.training import train_agent
from bmvtrack.console import parse_options
from bmvtrack.errors import run_script


def main() -> None:
    """Parse the options and train."""
    train_agent(parse_options(TrainOptions, __doc__))


if __name__ == "__main__":
    run_script(main)
