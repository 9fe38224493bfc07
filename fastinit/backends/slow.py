"""Says, once and loudly, that the slow reference does what a kernel should: no value would show it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

from fastinit.base import installed

UNWANTED = "FASTINIT_NATIVE=OFF"
"""How setup.py's reason begins where the user wanted no native module."""

LARGE = 1 << 20
"""Elements on one kind of device after which it is said: about a second of the reference's work."""


class SlowBackendWarning(UserWarning):
    """The plain torch reference serves, slowly, what a kernel should, and nobody asked for that."""


_done: Counter[str] = Counter()
_said: set[str] = set()


def at_import(missing: str) -> None:
    """Says that the native module is missing, and the command that mends it."""
    if UNWANTED in missing:
        _said.add("cpu")
    else:
        _say("cpu", f"{missing}. {_mend()}")


def count(device: str, elements: int, why: Callable[[], str]) -> None:
    """Counts what the reference does on a kind of device, unasked, and says it when that is much."""
    _done[device] += elements
    if _done[device] >= LARGE:
        _say(device, why())


def _say(device: str, why: str) -> None:
    if device in _said:
        return
    _said.add(device)
    text = (
        f"fastinit runs on its reference backend for {device} tensors, which gives the same bits "
        f"hundreds of times slower than kernels: {why}"
    )
    # Of the package as a whole: a line of this file says nothing to the one who reads it.
    warnings.warn_explicit(text, SlowBackendWarning, "fastinit", 1, module="fastinit")


def _mend() -> str:
    if not installed.in_source_tree():
        return f"To mend it: {installed.reinstall()}, with a C++17 compiler (g++ or clang++)"
    where = "This is the source folder, which Python takes before an installed package"
    there = installed.elsewhere()
    other = f", or run from another folder: the one in {there} has been built" if there else ""
    return f"{where}. To mend it: {installed.reinstall()}{other}"
