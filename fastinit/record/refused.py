"""Refused: what cannot be recorded, with the user's line that did it."""

from __future__ import annotations

import sys

from fastinit.base.frames import is_inside

HINT = "do that after fastinit.materialize_(), or build the model without fastinit.deferred()"


class DeferredError(RuntimeError):
    """A constructor that cannot be recorded, with the line that did what can't be."""


class Refusals:
    """What was refused in a block. The block fails with it, even if the constructor went on."""

    def __init__(self) -> None:
        self.first: DeferredError | None = None

    def refuse(self, what: str) -> DeferredError:
        """The error to raise: ``what``, at the line that is running."""
        error = DeferredError(what.replace("{line}", line()))
        self.first = self.first or error
        return error


def line() -> str:
    """The user's line that is running: the innermost file and line outside torch and fastinit."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_inside(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
