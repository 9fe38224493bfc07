"""Options: what the commands are given, checked before any work is done for it.

Each function takes an option's value and gives what it stands for, or raises a ValueError that names
the option, what it was and what it may be.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from fastinit import recipes
from fastinit.base import memory
from fastinit.command import reads
from fastinit.command.trial import BATCH, LENGTH, Trial
from fastinit.plan.json_form import FORMAT
from fastinit.plan.plan import Plan
from fastinit.plan.ruled import Rule
from fastinit.stream import keys

"""Bytes of a file that say what it is."""

MOST = 2**63
"""Bytes, where the system does not say how many are free."""


def seed(value: int | None) -> int | None:
    """In [0, 2^64), or None."""
    return None if value is None else keys.check_seed(value)


def plan(saved: str | None) -> Plan | Rule | None:
    """A recipe by its name, or a saved plan by its path."""
    if saved is None:
        return None
    if saved in recipes.NAMES:
        return recipes.NAMES[saved]
    if not Path(saved).exists():
        known = ", ".join(recipes.NAMES)
        raise ValueError(f"--plan {saved!r} is no file, and no recipe: those are {known}")
    _no_directory("--plan", Path(saved))
    return Plan.load(saved)


def trial(shape: str | None, batch: int | None, length: int | None) -> Trial:
    """What a model is run on: sizes as in ``8x3x224x224``, or tokens."""
    if shape is None:
        given = "--batch x --length"
        sizes: tuple[int, ...] = (batch or BATCH, length or LENGTH)
    elif not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", shape):
        raise ValueError(f"--shape must be as in 8x3x224x224, but got {shape!r}")
    elif batch is not None or length is not None:
        raise ValueError("--batch and --length are of tokens, in place of which --shape is given")
    else:
        given, sizes = "--shape", tuple(map(int, shape.split("x")))
    free = memory.available_bytes() or MOST
    if math.prod(sizes) > free // 4:  # bytes of a value
        raise ValueError(
            f"{given} has more values than {free / 1e9:.1f} GB of free memory hold, unless "
            f"{memory.OVERRIDE} in the environment says that there is more"
        )
    return Trial(sizes, tokens=shape is None)


_DESCRIPTORS = ("/dev/fd", "/proc/self/fd")


def widths(given: str) -> list[int]:
    """Two or more, each once, as in ``64,128,256``."""
    if not re.fullmatch(r"[1-9][0-9]{0,17}(,[1-9][0-9]{0,17})+", given):
        raise ValueError(f"--widths must be two or more, as in 64,128,256, but got {given!r}")
    found = list(map(int, given.split(",")))
    if len(set(found)) < len(found):
        raise ValueError(f"--widths must each be there once, but got {given!r}")
    return found


def read(name: str, path: Path) -> Path:
    """A file that is there to be read."""
    _no_directory(name, path)
    if not path.exists():
        raise ValueError(f"{name} {path}: there is no such file")
    return path


def file(option: str, path: Path | None) -> Path | None:
    """Where a file can be written; :mod:`fastinit.command.reads` knows of it from here on."""
    if path is None:
        return None
    path = _of_stream(option, path)
    _no_directory(option, path)
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no directory {path.parent}")
    _writable(option, path, path if path.exists() else path.parent)
    reads.writes(option, path)
    return path


def plan_file(option: str, path: Path | None) -> Path | None:
    """Where a plan can be written: nothing is there, or a plan."""
    return _replaces(option, file(option, path), "a plan", _is_plan)


def page(option: str, path: Path) -> Path:
    """Where a page of HTML can be written: nothing is there, or a page."""
    file(option, path)
    if path.suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(f"{option} {path} must end in .html, which it is written in")
    _replaces(option, path, "a page of HTML", _is_page)
    return path


def picture(option: str, path: Path | None) -> Path | None:
    """Where a picture can be written, in a format that matplotlib has."""
    from fastinit.variance import plot_style

    if path is not None:
        try:
            plot_style.check_format(path)
        except ValueError as error:
            raise ValueError(f"{option} {error}") from None
    return file(option, path)


def directory(option: str, path: Path, names: re.Pattern[str]) -> Path:
    """A directory that is there, or can be made, for files of some names."""
    found = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    if not found.is_dir():
        raise ValueError(f"{option} {path}: {found} is a file, but must be a directory")
    _writable(option, path, memory.nearest_directory(path))
    reads.writes(option, path, names)
    return path


def _of_stream(option: str, path: Path) -> Path:
    """A path; of /dev/stdout and the like that of the file, as the stream may soon lead elsewhere."""
    if str(path) in ("/dev/stdout", "/dev/stderr") or str(path.parent) in _DESCRIPTORS:
        real = Path(os.path.realpath(path))
        if not real.is_file():
            raise ValueError(f"{option} {path} leads to no file, but must")
        return real
    return path


def _replaces(
    option: str, path: Path | None, what: str, is_one: Callable[[bytes], bool]
) -> Path | None:
    """Raises ValueError if a file would be lost which is something else."""
    if path is not None and path.is_file():
        with reads.aside():
            there = path.read_bytes()
        if there and not is_one(there):
            raise ValueError(f"{option} {path} is there and is not {what}: it would be lost")
    return path


def _is_plan(there: bytes) -> bool:
    try:
        return bool(json.loads(there)["format"] == FORMAT)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_page(there: bytes) -> bool:
    return there.lstrip()[:14].lower() == b"<!doctype html"


def _no_directory(option: str, path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{option} {path} is a directory, but must be a file")


def _writable(option: str, path: Path, place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: no permission for {place}")
