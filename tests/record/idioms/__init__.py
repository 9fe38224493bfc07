"""Small constructors, one idiom each, and whether recording gives what they give eagerly, or refuses.

A member is what a constructor does to its module ``m``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from fastinit import DeferredError

Construct = Callable[[Any], object]


class Member(NamedTuple):
    """One constructor, and what recording it comes to: no ``error``, or this one with ``word`` in it."""

    build: Callable[[], nn.Module]
    strides: bool = True
    """Whether strides have to be as eagerly."""
    error: type[Exception] | None = None
    word: str = ""


class Made(nn.Module):
    """A module that is constructed by a function."""

    def __init__(self, construct: Construct) -> None:
        super().__init__()
        construct(self)


MEMBERS: dict[str, Member] = {}


class Kind:
    """Members that are alike: what is done to them comes under one rule."""

    def __init__(self, name: str, *, strides: bool = True) -> None:
        self.name, self.strides = name, strides

    def as_eager(self, construct: Construct) -> Construct:
        """The recorded model has to be what the eager one is."""
        return self._add(construct, None, "")

    def refused(
        self, error: type[Exception] = DeferredError, word: str = ""
    ) -> Callable[[Construct], Construct]:
        """Recording, or writing what was recorded, has to raise this error, with this word in it."""
        return lambda construct: self._add(construct, error, word)

    def _add(self, construct: Construct, error: type[Exception] | None, word: str) -> Construct:
        name = f"{self.name}: {construct.__name__.replace('_', ' ').strip()}"
        assert name not in MEMBERS, name
        MEMBERS[name] = Member(lambda: Made(construct), self.strides, error, word)
        return construct
