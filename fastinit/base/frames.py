"""Frames: which lines of a call stack are the user's, and how an error is said with them."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

import torch

SHOWN = 3
"""Lines of the user's that are said of an error, from where it happened outwards."""

_OURS = f"{Path(__file__).parents[1]}{os.sep}"
_INSIDE = (f"{Path(torch.__file__).parent}{os.sep}", _OURS, "<")
_WRAPPERS = ("contextlib", "functools", "typing_extensions")
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_PACKAGES = {"site-packages", "dist-packages"}


def is_ours(filename: str) -> bool:
    """Whether a file is fastinit's."""
    return filename.startswith(_OURS)


def is_inside(filename: str) -> bool:
    """Whether a file is torch's or fastinit's, or none, or one that only passes calls on."""
    return filename.startswith(_INSIDE) or Path(filename).stem in _WRAPPERS


def is_called_by(frame: FrameType | None, caller: FrameType) -> bool:
    """Whether a frame is another one, or is called by it, however many are between."""
    while frame is not None and frame is not caller:
        frame = frame.f_back
    return frame is caller


def where(error: BaseException) -> str:
    """The user's lines that an error came from, innermost first: ``net.py:7 in build``; may be empty.

    Of code that is installed, which is not the user's, the innermost line is said, if there is no
    other. Files below the current directory are named from there.
    """
    own: list[str] = []
    installed: list[str] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        of_package = not _PACKAGES.isdisjoint(Path(file).parts)
        if not is_inside(file) and (of_package or not file.startswith(_STANDARD)):
            said = f"{_from_here(file)}:{line} in {frame.f_code.co_name}"
            (installed if of_package else own).append(said)
    if not own:
        return installed[-1] if installed else ""
    return ", called at ".join(reversed(own[-SHOWN:]))


def _from_here(file: str) -> str:
    here = os.path.relpath(file) if os.path.isabs(file) else file
    return file if here.startswith(os.pardir) else here
