"""What scripts show on the terminal, and the check of the folder they write to."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bmvtrack.errors import UserError

_PIPE_WIDTH = 160  # a pipe has no width: keep a row on its line


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


def print_results(*tables: Table, out: Path) -> None:
    """Print tables on stdout, and where the files are."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    for table in tables:
        console.print(table)
    console.print(f"written to {out}", soft_wrap=True)


def check_output_folder(out: Path) -> None:
    """Refuse a folder that cannot be made.

    Raises:
        UserError: if it, or what it would lie in, is a file.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--out {out}: {existing} is a file; give a folder")
