"""Command-line options, terminal output and output folders of the scripts."""

from __future__ import annotations

import math
import os
import shutil
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

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
    """Parse the options of a command line.

    Args:
        options: dataclass of the options.
        description: text that ``--help`` shows above the options; paragraphs are wrapped to the
            terminal's width, except those that begin with a space, which hold examples.
        program: name of the program in ``--help``; None: the script's.
        arguments: the command line; None: the script's.

    Raises:
        SystemExit: with status 2 if the arguments are invalid, with 0 after ``--help``.
    """
    import tyro

    _join_help_lines(options)
    return tyro.cli(options, prog=program, description=_filled(description or ""), args=arguments)


def _join_help_lines(options: type) -> None:
    """Give tyro the help text of each option as one line, for it to wrap.

    From the dataclass it would take the text with the line breaks of the source.
    """
    import docstring_parser
    import tyro

    annotations = get_type_hints(options, include_extras=True)
    for parent in reversed(options.__mro__[:-1]):
        for option in docstring_parser.parse_from_object(parent).params:
            text = " ".join((option.description or "").split())
            annotation = annotations[option.arg_name]
            annotations[option.arg_name] = Annotated[annotation, tyro.conf.arg(help=text)]
    options.__annotations__ = annotations


def _filled(text: str) -> str:
    # tyro joins lines, except those that do not begin with a letter, and does not wrap them. So all
    # lines of a paragraph but the first are indented. tyro puts two lines before an indented paragraph.
    width = shutil.get_terminal_size().columns
    paragraphs = [
        f"Examples:\n{paragraph}"
        if paragraph.startswith(" ")
        else textwrap.fill(paragraph, width, subsequent_indent="  ")
        for paragraph in text.strip("\n").split("\n\n")
    ]
    return "\n\n".join(paragraphs)


def progress_bar() -> Progress:
    """A progress bar on stderr; shown only on a terminal, and removed when done."""
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
    """A console on stdout; in a pipe or a file it keeps each table row on one line."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def print_results(*tables: Table, out: Path) -> None:
    """Print tables on stdout, then the output folder."""
    console = output_console()
    for table in tables:
        console.print(table)
    console.print(f"written to {out}", soft_wrap=True, markup=False)


def check_output_folder(out: Path) -> None:
    """Reject an output folder that cannot be created or written to.

    Raises:
        UserError: if the folder, or its nearest existing parent, is a file, is not writable, or is a link to
            a folder that does not exist.
    """
    existing = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not existing.exists():
        raise UserError(
            f"--out {out}: {existing} is a link to {os.readlink(existing)}, which does not exist; create "
            "that folder, or give another one"
        )
    if not existing.is_dir():
        raise UserError(f"--out {out}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: {existing} is not writable; give another folder")


def flag(name: str) -> str:
    """An option as it is written on the command line: ``batch_size`` → ``--batch-size``."""
    return "--" + name.replace("_", "-")


def check_at_least(least: int, options: object, *names: str) -> None:
    """Reject numbers that are too small.

    Args:
        least: the smallest allowed number.
        options: dataclass of the options.
        names: those to check; one that is None is not set.

    Raises:
        UserError: if one is smaller, or NaN; it names the option.
    """
    wanted = f"be at least {least}" if least else "not be negative"
    for name in names:
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise UserError(f"{flag(name)} must {wanted}, not {value}")


def deadline(max_minutes: float | None) -> float:
    """The :func:`time.monotonic` at which work limited to ``max_minutes`` stops; None is no limit."""
    return time.monotonic() + 60 * (math.inf if max_minutes is None else max_minutes)


def check_minutes(max_minutes: float | None) -> None:
    """Reject a time limit that leaves no time; None is no limit.

    Raises:
        UserError: if the limit is not positive.
    """
    if max_minutes is not None and not max_minutes > 0:
        raise UserError(f"--max-minutes must be positive, not {max_minutes}")
