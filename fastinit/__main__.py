"""``python -m fastinit``: the commands of :mod:`fastinit.command.cli`, of which some need no typer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        from fastinit.base import installed as installed
    except ImportError as error:  # another project is in our folder, or torch is too old
        print(f"fastinit: {error}", file=sys.stderr)
        return 2
    try:
        from fastinit.command import cli
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        from fastinit.backends import installation
        from fastinit.command import report

        if given == ["info"]:
            print(report.info(installation.info()))
        elif given == ["--version"]:
            print(installation.version())
        else:
            print(
                f"fastinit: without {error.name} there are only `info` and `--version`: "
                "pip install typer rich",
                file=sys.stderr,
            )
            return 2
        return 0
    return cli.main(given)


def run() -> int:
    """The program: as :func:`main`, and what was printed is written."""
    from fastinit.base import program

    status = None
    # Of the imports: a command that is interrupted says so itself.
    with suppress(KeyboardInterrupt):
        program.begin()
        status = main()
    from fastinit.command.faults import INTERRUPTED, finish

    return finish(INTERRUPTED if status is None else status)


if __name__ == "__main__":
    sys.exit(run())
