"""Output: how a command says what it found, and how it ends. One place for all of them.

Prose is for people: on stdout; with ``--json`` on stderr; with ``--quiet`` nowhere. Data is for
programs: with ``--json`` one object on stdout, whose keys stay. Progress is on stderr, if that is a
terminal. What a command raises becomes a line and an exit status (:mod:`fastinit.command.faults`).
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from fastinit.command import faults
from fastinit.statistics.plain import json_number

C = TypeVar("C", bound=Callable[..., None])


class _Asked(NamedTuple):
    """How a command shall speak."""

    as_json: bool = False
    quiet: bool = False


_FOR_PEOPLE = _Asked()
_asked: ContextVar[_Asked] = ContextVar("fastinit_output", default=_FOR_PEOPLE)

_JSON, _QUIET, _DEBUG = ("--json",), ("--quiet", "-q"), ("--debug",)
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
        def run(*, as_json: bool, quiet: bool, debug: bool, **given: Any) -> None:
            token = _asked.set(_Asked(as_json, quiet))
            try:
                work(**given)
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
    """Prints what is for programs: strict JSON, with NaN as null and infinities as strings."""
    if _asked.get().as_json:
        _print(json.dumps(_plain(data), allow_nan=False, default=str), "stdout")


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
