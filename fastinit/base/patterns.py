"""Patterns of names: shell-style wildcards on full names, the same wherever names are chosen by them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase, translate
from typing import Any

Patterns = str | tuple[str, ...]
"""One or several, of which one has to match; ``*`` matches dots too. A name matches itself."""

_WILD = frozenset("*?[")


class Choice:
    """The names that one of some patterns matches. Many of them may be names, at no cost for each.

    >>> choice = Choice(("h.*.weight", "h.1"))
    >>> "h.11.attn.weight" in choice, "h.1" in choice, "h.11" in choice
    (True, True, False)
    """

    def __init__(self, patterns: Patterns) -> None:
        self.patterns = several(patterns)
        self._names = frozenset(self.patterns)
        self._wild = {
            pattern: re.compile(translate(pattern)).match
            for pattern in self.patterns
            if not _WILD.isdisjoint(pattern)
        }

    @classmethod
    def given(cls, argument: str, patterns: Any) -> Choice:
        """What a user gave for an argument: a pattern, or any iterable of them.

        Raises:
            TypeError: anything else. ValueError: none.
        """
        single = isinstance(patterns, str) or not isinstance(patterns, Iterable)
        made = (patterns,) if single else tuple(patterns)
        for pattern in made:
            if not isinstance(pattern, str):
                raise TypeError(
                    f"{argument} must be a pattern of names, or several, but got {pattern!r}"
                )
        if not made:
            raise ValueError(f"{argument} must be a pattern of names, or several, but got none")
        return cls(made)

    def __contains__(self, name: str) -> bool:
        return name in self._names or any(match(name) for match in self._wild.values())

    def idle(self, names: Iterable[str]) -> list[str]:
        """The patterns that match none of the names; of a module's name, with what to say instead."""
        names = dict.fromkeys(names)
        found = []
        for pattern in self.patterns:
            match = self._wild.get(pattern)
            if pattern in names or (match is not None and any(map(match, names))):
                continue
            is_module = any(name.startswith(f"{pattern}.") for name in names)
            found.append(f"{pattern} ({pattern}.* is all in it)" if is_module else pattern)
        return found


def matches(name: str, patterns: Patterns) -> bool:
    """Whether one of the patterns matches the name."""
    return any(name == each or fnmatchcase(name, each) for each in several(patterns))


def several(patterns: Patterns) -> tuple[str, ...]:
    """The patterns, of which one may be given alone."""
    return (patterns,) if isinstance(patterns, str) else patterns
