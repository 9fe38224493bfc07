"""Program: whether this process is fastinit's own, and what it needs of its streams and of Ctrl-C.

Python imports the package, and with it torch, before a line of ``__main__`` runs: seconds in which
Ctrl-C would leave a traceback, or be swallowed by what is imported. Importing this module in a process
of our own lets Ctrl-C end it without a word, until :func:`begin`.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings

SCRIPT = "torch-fastinit"
"""What pip installs; ``python -m fastinit`` is the same."""

QUIET = ("--quiet", "-q")
"""The option with which nothing but errors is printed; what the imports warn of, neither."""


def is_own() -> bool:
    """Whether Python was started for ``python -m fastinit`` or the script."""
    if sys.argv[:1] == ["-m"]:  # it looks for the module that it was asked to run
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") == "fastinit"
    return is_script()


def is_script() -> bool:
    """Whether it is the script, which is an .exe on Windows."""
    return os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe") == SCRIPT


def begin() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again, and streams that can be written to.

    One that is closed is opened on the null device: the file that is opened next would get its number,
    and what a library prints. Characters that stdout's encoding lacks are escaped.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and is_own():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # opened in this order, each gets its own number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr's are


if is_own() and not {*QUIET}.isdisjoint(sys.argv):
    warnings.simplefilter("ignore")
if is_own() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
