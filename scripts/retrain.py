"""Train the weights that come with the package anew: encoder, then agent, by one command.

On two CPU cores without a GPU it takes about eight hours. It may be stopped: the same command goes on.

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
