"""Reads: what a command has read, so that it writes over none of it.

Python tells of every file that is opened, by whomever (``sys.addaudithook``), so the rule holds for what
a user's function reads, and for commands to come. What a library opens without Python is not known.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import source_from_cache
from pathlib import Path
from typing import Any, NamedTuple


class _Output(NamedTuple):
    """What an option says is to be written: a file, or in a directory the files of some names."""

    option: str
    path: Path
    names: re.Pattern[str] | None

    def files(self) -> list[Path]:
        """Those that are there by now."""
        found = [self.path]
        if self.names is not None:
            inside = sorted(self.path.iterdir()) if self.path.is_dir() else []
            found = [path for path in inside if self.names.fullmatch(path.name)]
        return [path for path in found if path.is_file()]


class _Command:
    """One that runs: what was opened to be read since it began, and what it will write."""

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.place = _here()
        """The directory that its paths are relative to, wherever a user's function goes."""
        self.outputs: list[_Output] = []


_running: list[_Command] = []
"""The innermost last: a user's function may run a command."""


@contextmanager
def noted() -> Iterator[None]:
    """In the block, which is a command, it is noted what is read."""
    _listen()
    _running.append(_Command())
    try:
        yield
    finally:
        _running.pop()


@contextmanager
def aside() -> Iterator[None]:
    """In the block nothing is noted: a look at what is to be written over."""
    running = [*_running]
    _running.clear()
    try:
        yield
    finally:
        _running[:] = running


def writes(option: str, path: Path, names: re.Pattern[str] | None = None) -> None:
    """Says, before anything is read, what the command will write.

    Args:
        names: of the files that may be written, where it is a directory.
    """
    if _running:
        _running[-1].outputs.append(_Output(option, path, names))


def check() -> None:
    """Raises ValueError if anything that was read, whatever it is called there, will be written over.

    The process is in the directory again in which the command began.
    """
    if _running and (began := _running[-1].place) and _here() != began:
        os.chdir(began)
    there = [(o, p) for one in _running[-1:] for o in one.outputs for p in o.files()]
    if not there:
        return
    opened = _running[-1].opened
    read = {_identity(path) for path in (*opened, *map(_source, opened), *_modules())}
    for output, path in there:
        if _identity(path) in read - {None}:
            what = "is a file" if output.names is None else f"would replace {path}, a file"
            raise ValueError(f"{output.option} {output.path} {what} that is read")


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is no more
        return ""


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # gone since, or never a file
        return None
    return found.st_dev, found.st_ino


def _source(path: str) -> str:
    """Of bytecode the text that it is of, which is read by its means."""
    try:
        return source_from_cache(path)
    except (ValueError, NotImplementedError):  # it is none
        return path


def _modules() -> list[str]:
    """Those of what was imported before, too."""
    files = [getattr(module, "__dict__", {}).get("__file__") for module in [*sys.modules.values()]]
    return [file for file in files if isinstance(file, str)]


@cache
def _listen() -> None:
    """Once in a process, as Python forgets no listener."""
    sys.addaudithook(_heard)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or not _running:
        return
    path, _, flags = args
    is_read = flags & (os.O_WRONLY | os.O_TRUNC) == 0
    if is_read and isinstance(path, (str, bytes, os.PathLike)):
        name = os.path.abspath(os.fsdecode(path))
        for command in _running:
            command.opened.add(name)
