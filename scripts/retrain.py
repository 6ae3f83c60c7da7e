"""Retrain the weights that come with the package: encoder, then agent, with one command.

On two CPU cores without a GPU this takes about fifteen hours (estimated from the rates of single stages), and
12 GB of memory. On an H200, eleven of the thirteen stages of the encoders took eight and a half minutes with
--effort 0.45; docs/results.md says what became of them. With --effort 0.001, which tests the pipeline, it
took 48 minutes of one core when every stage read its data anew, about a quarter of which is now saved; the
rest goes into cut-outs and calibrating. It may be interrupted; repeat the same command to continue.

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
