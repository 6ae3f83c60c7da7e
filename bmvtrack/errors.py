"""Errors meant for people, and the one place where a script turns them into a line."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user can mend: its message names the thing and says what to do.

    Scripts print the message without a traceback and exit with status 2.
    """


def run_script(main: Callable[[], None]) -> None:
    """Run ``main``; print a :class:`UserError` as one line and exit with status 2.

    So are errors of the system that name a file: a folder that may not be written to, a full disk.
    Exits with the shell's status for what stopped it: 130 after Ctrl-C, 143 after SIGTERM (as batch
    systems send it), 141 where nobody reads the output any more (``| head``).
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # What is still to be written at exit goes nowhere (Python's documentation of SIGPIPE).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def _terminate(number: int, frame: object) -> None:
    """Leaves by way of every ``finally``, so that nothing half written stays."""
    raise SystemExit(128 + number)
