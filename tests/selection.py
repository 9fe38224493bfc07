"""Which cases of a table run always and which with ``make slow``, and what a run asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def cases(names: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """The table's names for parametrize; those that do not run always are slow."""
    names = list(names)
    assert set(always) <= set(names), set(always) - set(names)
    return [
        name if name in always else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


def asked(request: pytest.FixtureRequest, argument: str) -> set[Any]:
    """The values of an argument with which this run has tests in the module of the fixture."""
    return {
        item.callspec.params[argument]
        for item in request.session.items
        if getattr(item, "module", None) is request.module
        and argument in getattr(getattr(item, "callspec", None), "params", ())
    }
