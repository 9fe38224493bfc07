"""Output: how a command says what it found, and how it ends. One place for all of them.

Prose is for people: on stdout; with ``--json`` on stderr; with ``--quiet`` nowhere. Data is for
programs: with ``--json`` one object on stdout, whose keys stay, when all is done. Progress is on stderr,
if that is a terminal. Others print where prose goes, or nothing (:mod:`fastinit.command.streams`). What
a command raises becomes a line and an exit status (:mod:`fastinit.command.faults`).
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from fastinit.base import program
from fastinit.command import faults, reads, streams
from fastinit.statistics.plain import json_number

C = TypeVar("C", bound=Callable[..., "int | None"])


class _Asked(NamedTuple):
    """How a command shall speak, and what it gives when it is done."""

    as_json: bool
    quiet: bool
    given: list[str]


_FOR_PEOPLE = _Asked(False, False, [])
_asked: ContextVar[_Asked] = ContextVar("fastinit_output", default=_FOR_PEOPLE)

_JSON, _QUIET, _DEBUG = ("--json",), program.QUIET, ("--debug",)
OF_COMMANDS = {*_JSON, *_QUIET, *_DEBUG}
"""What every command takes, behind its name."""

_COMMON = {
    "as_json": typer.Option(*_JSON, help="Prints one JSON object; prose goes to stderr."),
    "quiet": typer.Option(*_QUIET, help="Prints errors and what --json prints, no more."),
    "debug": typer.Option(
        *_DEBUG,
        envvar="FASTINIT_TRACEBACK",
        help="Leaves an error's traceback instead of making it one line.",
    ),
}


def command(app: typer.Typer, name: str) -> Callable[[C], C]:
    """Makes a function a command, which takes what every command takes."""

    def add(work: C) -> C:
        @functools.wraps(work)
        def run(*, as_json: bool, quiet: bool, debug: bool, **given: Any) -> int | None:
            asked = _Asked(as_json, quiet, [])
            token = _asked.set(asked)
            try:
                with streams.diverted(as_json, quiet), reads.noted():
                    status = work(**given)
                for data in asked.given:
                    _print(data, "stdout")
                return status
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except Exception as error:
                if debug:
                    raise
                said, status = faults.line(error)
                typer.echo(said, err=True)
                raise typer.Exit(status) from None
            finally:
                _asked.reset(token)

        own = inspect.signature(work, eval_str=True)
        common = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False,
                annotation=Annotated[bool, option],
            )
            for name, option in _COMMON.items()
        ]
        taken = [*own.parameters.values(), *common]
        run.__signature__ = own.replace(parameters=taken)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in taken}
        app.command(name)(run)
        return work

    return add


def say(prose: str) -> None:
    """Prints what is for people."""
    if not _asked.get().quiet:
        _print(prose, "stderr" if _asked.get().as_json else "stdout")


def give(**data: Any) -> None:
    """What is for programs, printed at the end: strict JSON, NaN as null, infinities as strings."""
    if _asked.get().as_json:
        _asked.get().given.append(json.dumps(_plain(data), allow_nan=False, default=str))


def put(path: Path | None, save: Callable[[Path], object]) -> None:
    """Has what a command made saved where an option says, if one does, over nothing that was read."""
    if path is not None:
        reads.check()
        save(path)


def _print(text: str, stream: str) -> None:
    try:
        typer.echo(text, err=stream == "stderr")
    except BrokenPipeError:  # nobody reads any more, which is no error
        raise
    except OSError as error:
        raise faults.of_stream(error, stream) from None


def shows_progress() -> bool:
    """Whether somebody looks at stderr."""
    return sys.stderr.isatty() and not _asked.get().quiet


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
