"""Runs a command of the Makefile and shows its name, for how long it has run, and how long it took.

    python tools/phase.py "installing torch" -- pip install torch

What the command prints is kept back and shown if it fails. On a terminal the line also has the last line
of it; elsewhere a line follows every 15 seconds, so that nobody waits in silence.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TextIO

EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


def run(name: str, command: Sequence[str], out: TextIO) -> int:
    """The command's exit status."""
    started = time.monotonic()

    def elapsed() -> str:
        return f"{name}: {time.monotonic() - started:.0f} s"

    print(name, end="\r" if out.isatty() else "\n", file=out, flush=True)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert child.stdout is not None
    printed: list[str] = []
    ended = threading.Event()
    show = _on_terminal(out, elapsed, printed) if out.isatty() else _by_line(out, elapsed)
    ticker = threading.Thread(target=show, args=(ended,), daemon=True)
    ticker.start()
    try:
        for line in child.stdout:
            printed.append(line)
        status = child.wait()
    finally:  # also at Ctrl-C, which the child gets as well
        child.stdout.close()
        ended.set()
        ticker.join()
    print(f"{elapsed()}{', and failed:' if status else ''}", file=out, flush=True)
    if status:
        out.write("".join(printed))
    return status


def _on_terminal(
    out: TextIO, elapsed: Callable[[], str], printed: list[str]
) -> Callable[[threading.Event], None]:
    def show(ended: threading.Event) -> None:
        while not ended.wait(0.5):
            last = " ".join(printed[-1].split()) if printed else ""
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{f'{elapsed()}  {last}'[:width]}", end="", file=out, flush=True)
        print("\r\033[K", end="", file=out)

    return show


def _by_line(out: TextIO, elapsed: Callable[[], str]) -> Callable[[threading.Event], None]:
    def show(ended: threading.Event) -> None:
        while not ended.wait(EVERY):
            print(elapsed(), file=out, flush=True)

    return show


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        sys.exit("usage: phase.py NAME -- COMMAND...")
    sys.exit(run(sys.argv[1], sys.argv[3:], sys.stdout))
