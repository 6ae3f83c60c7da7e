"""Retrain the weights that come with the package: encoder, then agent, with one command.

This takes about ten hours on two CPU cores without a GPU, and 12 GB of memory. It may be interrupted;
repeat the same command to continue.

    python scripts/retrain.py --davis DAVIS --duts DUTS-TR
    python scripts/retrain.py --davis DAVIS --duts DUTS-TR --effort 0.01
"""

from agents.recipes import RecipeOptions, retrain
from bmvtrack.console import parse_options
from bmvtrack.errors import run_script


def main() -> None:
    """Parse the options and run the stages that are not done yet."""
    retrain(parse_options(RecipeOptions, __doc__))


if __name__ == "__main__":
    run_script(main)
