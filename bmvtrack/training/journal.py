"""Reporting of a run: a progress bar, lines on the console, TensorBoard logs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from bmvtrack.distributed import on_first_rank


class Journal:
    """A context manager that shows and logs the progress of a training run.

    Args:
        folder: folder of the logs.
        console: console to print on.
        steps: total number of steps.
        step: steps already done; logs of later steps, from before the run was resumed, are dropped.
        first: whether this is rank 0; the other ranks print and write nothing.

    Raises:
        Exception: if the folder cannot be written to; see :func:`~bmvtrack.distributed.on_first_rank`.
    """

    def __init__(self, folder: Path, console: Console, steps: int, step: int, first: bool) -> None:
        self._console = console if first else Console(quiet=True)
        self._writer: SummaryWriter | None = None
        on_first_rank(lambda: self._begin_log(folder, step))
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("training", total=steps, completed=step, loss="")
        self._open = ExitStack()

    def _begin_log(self, folder: Path, step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def __enter__(self) -> Journal:
        self._open.enter_context(self._progress)
        if self._writer is not None:
            self._open.enter_context(self._writer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def advance(self, step: int, loss: float | None = None) -> None:
        """Show the step and, if given, the loss."""
        self._progress.update(self._task, completed=step)
        if loss is not None:
            self._progress.update(self._task, loss=f"loss {loss:.3f}")

    def record(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Log values under ``group/name``."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)
