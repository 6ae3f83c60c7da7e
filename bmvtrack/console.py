"""What scripts take from the command line and show on the terminal, and where they write to."""

from __future__ import annotations

import math
import os
import shutil
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bmvtrack.errors import UserError

Options = TypeVar("Options")

_PIPE_WIDTH = 160


def parse_options(
    options: type[Options],
    description: str | None,
    program: str | None = None,
    arguments: Sequence[str] | None = None,
) -> Options:
    """The options that a command line gives.

    Args:
        options: their dataclass.
        description: what ``--help`` says above them; paragraphs are filled to the terminal's width,
            one that begins with a space is of examples and is left as it is.
        program: its name in ``--help``; None: that of the script.
        arguments: None: those of the script.

    Raises:
        SystemExit: with status 2 if they are no such options, with 0 after ``--help``.
    """
    import tyro

    return tyro.cli(options, prog=program, description=_filled(description or ""), args=arguments)


def _filled(text: str) -> str:
    # tyro joins lines, but for those that begin with no letter, and does not break them: so all
    # but the first of a paragraph are indented. Before an indented paragraph it leaves two lines.
    width = shutil.get_terminal_size().columns
    paragraphs = [
        f"Examples:\n{paragraph}"
        if paragraph.startswith(" ")
        else textwrap.fill(paragraph, width, subsequent_indent="  ")
        for paragraph in text.strip("\n").split("\n\n")
    ]
    return "\n\n".join(paragraphs)


def progress_bar() -> Progress:
    """A bar on stderr, if that is a terminal, that goes away when done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def output_console() -> Console:
    """A console on stdout that keeps a table's row on one line where that is a pipe or a file."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def print_results(*tables: Table, out: Path) -> None:
    """Print tables on stdout, and where the files are."""
    console = output_console()
    for table in tables:
        console.print(table)
    console.print(f"written to {out}", soft_wrap=True, markup=False)


def check_output_folder(out: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        UserError: if it, or what it would lie in, is a file, or may not be written to.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--out {out}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: {existing} may not be written to; give another folder")


def deadline(max_minutes: float | None) -> float:
    """When work that may take so long has to stop, by :func:`time.monotonic`; None is no limit."""
    return time.monotonic() + 60 * (math.inf if max_minutes is None else max_minutes)


def check_minutes(max_minutes: float | None) -> None:
    """Refuse a limit of time in which nothing can be done; None is no limit.

    Raises:
        UserError: if it is not positive.
    """
    if max_minutes is not None and not max_minutes > 0:
        raise UserError(f"--max-minutes must be positive, not {max_minutes}")
