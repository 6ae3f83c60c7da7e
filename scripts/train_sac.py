"""Train a soft actor-critic in BMVTrack-v0 whose policy starts as the encoder's Gaussian.

Without --data, it trains on synthetic sequences. Writes to --out: the folders of weights best and last,
with encoder and agent, and checkpoints from which --resume continues.

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
