"""Faults: the one place where a command turns an exception into a line and an exit status.

What a user can mend (a wrong option, a file, a model that does not run, too little memory) is said in
one line, with status 2. Anything else is a mistake in fastinit: one line too, which says where, with
status 1. ``--debug`` leaves every exception as it is.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastinit.base import frames

USER, OURS, INTERRUPTED = 2, 1, 130
"""Exit statuses: of what the user can mend, of a mistake in fastinit, and after Ctrl-C."""

ROOM = 600
"""Characters of an error's text that are said."""

# What bad input raises, here and in torch. The others (KeyError, AttributeError, a failed assertion...)
# nobody raises for it on purpose.
_EXPECTED = (ValueError, RuntimeError, OSError, ImportError, MemoryError, UnicodeError)


@contextmanager
def of_others(
    doing: str, passing: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """For a block that runs code which is not ours: its errors get ``doing`` and the user's own lines.

    Raises:
        ValueError: for whatever the block raises, ``sys.exit`` included, unless it is ``passing``.
    """
    try:
        yield
    except passing:
        raise
    except (Exception, SystemExit) as error:
        lines = frames.where(error)
        kind = type(error).__name__
        text = f"{kind}: {error}" if str(error) else kind
        raise ValueError(f"{doing}: {text}" + (f" ({lines})" if lines else "")) from error


def line(error: BaseException) -> tuple[str, int]:
    """(an exception in one line, the exit status)."""
    if isinstance(error, _EXPECTED):
        return f"fastinit: {_text(error)}", USER
    frame = traceback.extract_tb(error.__traceback__, -1)
    at = f" at {Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    return (
        f"fastinit: a mistake in fastinit{at}: {type(error).__name__}: {_text(error)}; "
        "--debug shows all of it",
        OURS,
    )


def of_stream(error: OSError, name: str) -> OSError:
    """The same, naming the stream that was written to."""
    return OSError(error.errno, error.strerror, name)


def finish(status: int) -> int:
    """Has what was printed written, and returns the exit status: another if that failed."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or 1
    except OSError as error:
        if not status:  # else this was said when it was printed
            print(line(of_stream(error, "stdout"))[0], file=sys.stderr)
        status = status or USER
    else:
        return status
    # Python writes at its end what is left, and would say so again (docs: signal, "Note on SIGPIPE").
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        named = error.filename2 or error.filename
        text = f"{os.fsdecode(named)}: {error.strerror}" if named else error.strerror
    else:
        text = str(error).partition("\nException raised from")[0]  # torch's C++ frames
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= ROOM else f"{text[: ROOM // 2]} … {text[-ROOM // 2 :]}"
