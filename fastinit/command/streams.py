"""Streams: what others print while a command works, such as libraries, a user's function, native code.

Each of them has its own way: warnings, loggers, progress bars, ``printf``. All end in sys.stdout and
sys.stderr or in descriptors 1 and 2, which for that time lead elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO


@contextmanager
def diverted(as_json: bool, quiet: bool) -> Iterator[None]:
    """In the block others print nothing if it is to be quiet, and nothing on stdout if that is JSON."""
    with ExitStack() as stack:
        if quiet:
            # Never closed: who has kept it may print when the process ends.
            null = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115
            stack.enter_context(_descriptor(2, null.fileno(), sys.stderr))
            stack.enter_context(_descriptor(1, null.fileno(), sys.stdout))
            stack.enter_context(redirect_stderr(null))
            stack.enter_context(redirect_stdout(null))
        elif as_json:
            stack.enter_context(_descriptor(1, 2, sys.stdout))
            stack.enter_context(redirect_stdout(sys.stderr))
        yield


@contextmanager
def _descriptor(number: int, to: int, stream: TextIO) -> Iterator[None]:
    """In the block a descriptor leads where another does, also for who has kept its stream."""
    _flush(stream)
    try:
        kept = os.dup(number)
    except OSError:  # it is closed
        yield
        return
    try:
        os.dup2(to, number)
        yield
    finally:
        _flush(stream)
        os.dup2(kept, number)
        os.close(kept)


def _flush(stream: TextIO) -> None:
    """Has what was printed so far written; what cannot be written is said when it is done for good."""
    with suppress(OSError, ValueError):
        stream.flush()
    with suppress(OSError, TypeError, AttributeError):  # where C's streams are not the process's
        ctypes.CDLL(None).fflush(None)
