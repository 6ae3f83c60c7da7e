"""``python -m bmvtrack``: show what is installed and which commands to try first.

With arguments it runs the command ``bmvtrack``.
"""

from __future__ import annotations

import platform
import re
import sys
from importlib import import_module
from importlib.metadata import version

import cv2
import torch
from rich.table import Table

from bmvtrack import __version__
from bmvtrack.bundled import BUNDLED
from bmvtrack.console import output_console

_COMMAND = "agents.cli"  # by name, so that bmvtrack does not import agents
TRY = (
    ("bmvtrack evaluate --synthetic-count 3", "the bundled agent on sequences made on the fly"),
    ("bmvtrack track VIDEO --select --report", "your own video; draw the box with the mouse"),
    ("bmvtrack train --max-minutes 5", "an agent of your own; no data needed"),
)


def main() -> None:
    """Print versions, device, bundled weights and three commands, or run the command in the arguments."""
    if sys.argv[1:]:
        import_module(_COMMAND).main()
        return
    console = output_console()
    for title, rows in (
        ("versions", versions()),
        ("device", {device(): "" if torch.cuda.is_available() else "no CUDA device"}),
        ("bundled weights (--weights NAME)", weights()),
        ("commands to try (see also bmvtrack --help)", dict(TRY)),
    ):
        console.print(f"\n[bold]{title}[/bold]")
        table = Table.grid(padding=(0, 2))
        for name, text in rows.items():
            table.add_row("", name, text)
        console.print(table)


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, by name."""
    return {
        "bmvtrack": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gymnasium": version("gymnasium"),
        "stable-baselines3": version("stable-baselines3"),
        "opencv": cv2.__version__,
    }


def device() -> str:
    """The device that ``--device auto`` selects."""
    if torch.cuda.is_available():
        return f"cuda, {torch.cuda.get_device_name()}"
    return f"cpu, threads: {torch.get_num_threads()}"


def weights() -> dict[str, str]:
    """Descriptions of the bundled weights, by name: the first sentence of each README."""
    described = {}
    for readme in sorted(BUNDLED.glob("*/README.md")):
        paragraph = readme.read_text(encoding="utf-8").split("\n\n")[1].replace("\n", " ")
        described[readme.parent.name] = re.split(r"(?<=\.) ", paragraph)[0].replace("`", "")
    return described


if __name__ == "__main__":
    main()
