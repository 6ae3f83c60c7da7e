"""Errors meant for the user, and the one place where scripts print them as a single line."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """An error that the user can fix: its message names the cause and says what to do.

    Scripts print the message without a traceback and exit with status 2.
    """


def run_script(main: Callable[[], None]) -> None:
    """Run ``main``; print a :class:`UserError` as one line and exit with status 2.

    System errors that name a file, such as a folder that is not writable, and a full disk are printed in
    the same way. When interrupted, it exits with the status that shells use: 130 after Ctrl-C, 143 after
    SIGTERM (which batch systems send), 141 when the output is no longer read (``| head``).

    Characters that the output cannot represent (σ in many encodings of Windows, bytes of a file name that
    are not UTF-8) are printed as ``\\u03c3``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            main()
        finally:
            if sys.stdout is not None:  # whoever started this may have closed it (>&-)
                sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Output that is flushed at exit is discarded (Python's documentation of SIGPIPE).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def _terminate(number: int, frame: object) -> None:
    """Exit through every ``finally`` block, so that no half-written file remains."""
    raise SystemExit(128 + number)
