"""The command ``bmvtrack``, whose subcommands call the same functions as the scripts.

The modules of a subcommand are imported only when it is called, so that ``bmvtrack --help`` need not wait
for torch.
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
    """A subcommand of ``bmvtrack``.

    Args:
        summary: what it does, in one line.
        details: what it needs and writes, in one paragraph.
        examples: example arguments.
        options: dataclass of its options, as ``module:name``.
        function: function that takes these options, as ``module:name``.
    """

    summary: str
    details: str
    examples: tuple[str, ...]
    options: str
    function: str

    def help(self, word: str) -> str:
        """The text above the options in ``bmvtrack WORD --help``."""
        examples = [f"    bmvtrack {word} {example}".rstrip() for example in self.examples]
        return "\n\n".join([f"{self.summary}.", self.details, "\n".join(examples)])


COMMANDS = {
    "track": Command(
        "Track objects in your own video",
        "The video is a file, a folder of images, or the index of a camera. Writes to --out:\n"
        "NAME-tracked.mp4 with box, mask and uncertainty overlaid, the boxes as .csv and .json and, with\n"
        "--report, an HTML report as .html. Ctrl-C stops and keeps everything so far.",
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
        "The sequences are those of DAVIS16, OTB or VOT or, by default, synthetic. Prints tables and writes\n"
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
        "Without --data, it trains on synthetic sequences. Writes to --out: the folders of weights best and\n"
        "last, and checkpoints from which --resume continues.",
        (
            "",
            "--data duts:DUTS-TR davis16:DAVIS:train --shares 3 1",
            "--mode paper --data davis16:DAVIS:train",
        ),
        "bmvtrack.training:PretrainOptions",
        "bmvtrack.training:pretrain",
    ),
    "train": Command(
        "Train an agent whose policy starts as the encoder's Gaussian",
        "Without --data, it trains on synthetic sequences. Writes to --out: the folders of weights best and\n"
        "last, with encoder and agent, and checkpoints from which --resume continues.",
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
    "calibrate": Command(
        "Scale the covariance that trackers report to the errors they make",
        "Tracks the data, finds the scale of the covariance that makes the true motion likeliest where the\n"
        "tracker is on track, prints the coverage without and with it, and saves it in the weights'\n"
        "config.json. Boxes and masks do not change.",
        (
            "--weights runs/sac/best",
            "--weights runs/sac/best --data davis16:DAVIS:train synthetic --upside-down",
        ),
        "bmvtrack.tracking.calibration:CalibrationOptions",
        "bmvtrack.tracking.calibration:calibrate",
    ),
    "benchmark": Command(
        "Measure the speed of this machine",
        "Measures pretraining, environments, agent and tracking, each against its alternative. Compare only\n"
        "numbers of the same run, as ratios.",
        ("", "--parts environment --environments 1 16 64 256 --device cuda"),
        "agents.benchmark:BenchmarkOptions",
        "agents.benchmark:run_benchmark",
    ),
}


def main() -> None:
    """Run the command named by the first argument with the remaining arguments, and exit with its status.

    The status is 0 on success, 2 after an error that the user can fix, 130 after Ctrl-C, and 141 if the
    output pipe was closed.
    """
    word = parser().parse_args(sys.argv[1:2] or ["--help"]).command
    run_script(lambda: run_command(word, sys.argv[2:]))


def parser() -> argparse.ArgumentParser:
    """The parser of the first argument; the others belong to the command."""
    lines = [f"  {word:<11}{command.summary}" for word, command in COMMANDS.items()]
    more = "See bmvtrack COMMAND --help; python -m bmvtrack shows what is installed."
    result = argparse.ArgumentParser(
        "bmvtrack",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="A visual tracker that samples its actions from a learned Gaussian.",
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
        SystemExit: if the arguments are not valid options of the command, or ask for help.
    """
    from bmvtrack.console import parse_options

    command = COMMANDS[word]
    options: type[Any] = pkgutil.resolve_name(command.options)
    function: Callable[[Any], object] = pkgutil.resolve_name(command.function)
    function(parse_options(options, command.help(word), f"bmvtrack {word}", arguments))
