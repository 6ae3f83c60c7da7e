"""The command ``bmvtrack``: a word each for what the scripts do, over the same functions.

What a word needs is imported when it is called, so that ``bmvtrack --help`` need not wait for torch.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from bmvtrack.errors import run_script


@dataclass(frozen=True)
class Command:
    """A word after ``bmvtrack``.

    Args:
        summary: what it does, in a line.
        details: what it needs and writes, in a paragraph.
        examples: of what may follow the word.
        options: its dataclass of options, as ``module:name``.
        function: that takes these options, as ``module:name``.
    """

    summary: str
    details: str
    examples: tuple[str, ...]
    options: str
    function: str

    def help(self, word: str) -> str:
        """What ``bmvtrack WORD --help`` says above the options."""
        examples = [f"    bmvtrack {word} {example}".rstrip() for example in self.examples]
        return "\n\n".join([f"{self.summary}.", self.details, "\n".join(examples)])


COMMANDS = {
    "track": Command(
        "Follow objects in a video of your own",
        "The video is a file, a folder of images, or the index of a camera. Writes to --out:\n"
        "NAME-tracked.mp4 with box, mask and uncertainty drawn in, boxes as .csv and .json and, with\n"
        "--report, a page to look at as .html. Ctrl-C ends the video where it is.",
        (
            "clip.mp4 --box 120,80,64,48 --report",
            "clip.mp4 --box 120,80,64,48 --box 300,90,50,40",
            "0 --select",
            "DAVIS/JPEGImages/480p/libby --truth DAVIS/Annotations/480p/libby",
        ),
        "bmvtrack.video.options:TrackOptions",
        "bmvtrack.video.session:track_video",
    ),
    "evaluate": Command(
        "Score trackers by IoU, on real or synthetic sequences",
        "On DAVIS16, OTB, VOT or, if not told otherwise, synthetic sequences. Prints tables and writes\n"
        "to --out: summary.json, results/TRACKER/SEQUENCE.csv, success.png and precision.png;\n"
        "with --video also videos/TRACKER/SEQUENCE.mp4, with --failures failures/failures.md.",
        (
            "",
            "--root DAVIS --split val --weights runs/sac/best --video --failures",
            "--data otb:OTB100 --weights davis16-duts --trackers prior mask csrt",
        ),
        "agents.evaluation:EvaluationOptions",
        "agents.evaluation:run_evaluation",
    ),
    "pretrain": Command(
        "Train an encoder: from frames to masks and motion (paper §3–4)",
        "Without --data on synthetic sequences. Writes to --out: best and last, folders of weights,\n"
        "and a checkpoint from which --resume goes on.",
        (
            "",
            "--data duts:DUTS-TR davis16:DAVIS:train --shares 3 1",
            "--mode paper --data davis16:DAVIS:train",
        ),
        "bmvtrack.training:PretrainOptions",
        "bmvtrack.training:pretrain",
    ),
    "train": Command(
        "Train an agent that starts as the encoder's own Gaussian",
        "Without --data on synthetic sequences. Writes to --out: best and last, folders of weights with\n"
        "encoder and agent, and a checkpoint from which --resume goes on.",
        (
            "",
            "--weights runs/pretrain/best --data davis16:DAVIS:train",
            "--policy plain --coordinates object",
        ),
        "agents.options:TrainOptions",
        "agents.training:train_agent",
    ),
    "fit-prior": Command(
        "Fit the motion prior N(μ, Σ) to a DAVIS16 folder",
        "Boxes are the smallest rotated rectangles around the masks; the fit is the plain mean and\n"
        "covariance over pairs of frames.",
        ("--root DAVIS --split train --out prior.json", "--root DAVIS --split val --table"),
        "bmvtrack.data.prior_fit:FitOptions",
        "bmvtrack.data.prior_fit:fit_prior",
    ),
    "benchmark": Command(
        "Measure the speed of this machine",
        "Pretraining, environments, agent and tracking, each beside what it competes with. Compare\n"
        "numbers of one run, as ratios.",
        ("", "--parts environment --environments 1 16 64 256 --device cuda"),
        "agents.benchmark:BenchmarkOptions",
        "agents.benchmark:run_benchmark",
    ),
}


def main() -> None:
    """Run the command that the first argument names on the others; exit with the shell's status.

    0 where all went well, 2 where the user can mend something, 130 after Ctrl-C, 141 where nobody
    reads the output any more.
    """
    word = parser().parse_args(sys.argv[1:2] or ["--help"]).command
    run_script(lambda: run_command(word, sys.argv[2:]))


def parser() -> argparse.ArgumentParser:
    """Parses the first argument alone; the others belong to the command."""
    lines = [f"  {word:<11}{command.summary}" for word, command in COMMANDS.items()]
    more = "bmvtrack COMMAND --help says more; python -m bmvtrack says what is installed."
    result = argparse.ArgumentParser(
        "bmvtrack",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="A visual tracker that draws its actions from a learned Gaussian.",
        epilog="\n".join(["commands:", *lines, "", more]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"%(prog)s {version('bmvtrack')}")
    result.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    return result


def run_command(word: str, arguments: list[str]) -> None:
    """Parse the arguments of a command and call its function.

    Raises:
        UserError: if the function does.
        SystemExit: if the arguments are no options of the command, or ask for help.
    """
    from bmvtrack.console import parse_options

    command = COMMANDS[word]
    options: type[Any] = pkgutil.resolve_name(command.options)
    function: Callable[[Any], object] = pkgutil.resolve_name(command.function)
    function(parse_options(options, command.help(word), f"bmvtrack {word}", arguments))
