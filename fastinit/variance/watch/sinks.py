"""Where a watch that stays on sends what it measured: JSON lines, TensorBoard, any function."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, cast

from fastinit.base.files import is_written
from fastinit.variance.watch.result import Measured


class Writer(Protocol):
    """What keeps curves, as torch.utils.tensorboard.SummaryWriter does."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """A point of the curve ``tag``."""


Sink = Callable[[Measured], object]
To = str | os.PathLike[str] | Writer | Sink
"""A path, a writer of curves, or a function of what was measured in a step."""


def sinks(to: To | Sequence[To]) -> list[Sink]:
    """Each as a function.

    Raises:
        TypeError: it is none of what it may be.
        OSError: a file cannot be written to.
    """
    several = list(to) if isinstance(to, (list, tuple)) else [to]
    return [_sink(one) for one in several]


def _sink(to: Any) -> Sink:
    if isinstance(to, (str, os.PathLike)):
        return JsonLines(to)
    if callable(add := getattr(to, "add_scalar", None)):
        return lambda measured: _draw(add, measured)
    if callable(to):
        return cast("Sink", to)
    raise TypeError(
        f"to must be a path, a writer with a method add_scalar, or a function, but got {to!r:.60}"
    )


def _draw(add_scalar: Callable[..., object], measured: Measured) -> None:
    for tag, value in measured.scalars().items():
        add_scalar(tag, value, measured.step)


BEGINS = b'{"step": '
"""Of each line."""


class JsonLines:
    """A file to which each step adds one line: ``{"step": 100, "product": ..., "layers": [...]}``.

    What is in it stays. A line that a crash or a full disk cut short is taken away before the next one
    is written, so that each line is whole JSON. A file that does not begin as such a line is left alone.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()  # a training may change its directory
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        """Takes the file.

        Raises:
            OSError: it cannot be written to, or another watch writes it, such as another rank's.
            ValueError: it holds something else.
        """
        # Unbuffered: a crash leaves what was written.
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        if is_written(file.fileno()):
            file.close()
            raise BlockingIOError(errno.EAGAIN, "another watch writes it", os.fspath(self.path))
        try:
            file.truncate(_end_of_lines(file, self.path))
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):  # a device or a pipe
                raise type(error)(error.errno, error.strerror, os.fspath(self.path)) from None
            raise
        self._file = file

    def __call__(self, measured: Measured) -> None:
        """Adds a line, which the system has when this returns; if that fails, none of it.

        To a new file, if the one that was there is gone or was renamed, as logs are.

        Raises:
            OSError: what the system says, such as a full disk.
            ValueError: another file is there now, which holds something else.
        """
        if not self._is_there():
            self.close()
            self.open()
        assert self._file is not None
        line = json.dumps({"step": measured.step, **measured.plain()}, allow_nan=False)
        left, end = line.encode() + b"\n", self._file.seek(0, os.SEEK_END)
        try:
            while left:  # a disk that fills up takes a part of it
                left = left[self._file.write(left) :]
        except BaseException:
            self._file.truncate(end)
            raise

    def _is_there(self) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return self._file is not None and os.path.samestat(there, os.fstat(self._file.fileno()))

    def close(self) -> None:
        """Gives the file back."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _end_of_lines(file: IO[bytes], path: Path) -> int:
    """Behind the last line that is whole.

    Raises:
        ValueError: the file does not begin as the lines of a watch do.
    """
    file.seek(0)
    begins = file.read(len(BEGINS))
    if not BEGINS.startswith(begins):
        raise ValueError(
            f"{path} holds something else than what a watch writes: choose another file"
        )
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - 65536, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
