"""Streams: the random numbers of recorded memory, by name, and which of them an element has."""

from __future__ import annotations

from typing import NamedTuple

from fastinit.elements.strided import Strided
from fastinit.elements.within import within


class Source:
    """The random numbers of one memory.

    They are decided once: as torch drew them, if the constructor looked at them; otherwise from the
    seed, when a model is written.
    """

    __slots__ = ("order", "promised", "seen", "streams")

    def __init__(self) -> None:
        self.streams: dict[Origin, Stream] = {}
        """Those that they were written with, if they were."""
        self.promised = False
        """Whether something that has no values yet depends on them."""
        self.seen = ""
        """The line that looked at them, if one did."""
        self.order: Strided | None = None
        """The elements of the tensor by which all were last drawn, if not in the memory's order."""


class Origin(NamedTuple):
    """Which of a memory's numbers a write draws. Its stream gets a name when a model is written."""

    source: Source
    own: Strided | None = None
    """The elements, of a call that draws numbers of its own for them; others draw by index."""
    draw: int = 0
    """Counts, for each element, the draws since which the numbers before may be in use elsewhere."""


class Holder(NamedTuple):
    """A tensor of a model, by whose indices elements of a memory have their numbers."""

    name: str
    where: Strided
    """Its elements in the memory, merged."""


class Numbers(NamedTuple):
    """Elements of a memory, and the numbers that they have: those of a stream, by index."""

    where: Strided
    stream: str
    which: Strided


class Stream(NamedTuple):
    """The numbers of an origin.

    Args:
        name: of what draws for all elements at once; of those by index, where no holder has them.
        later: ends each name; which of several draws, if earlier ones are in use elsewhere.
        holders: of numbers by index, tensors that have the elements, none the same ones. Without any,
            the numbers are those of the places in memory.
    """

    name: str
    later: str = ""
    holders: tuple[Holder, ...] = ()

    @property
    def text(self) -> str:
        """The name, whole."""
        return self.name + self.later

    def numbers(self, region: Strided) -> list[Numbers] | None:
        """Which numbers elements have by index, in the order in which they are to be written.

        Args:
            region: the elements, merged.

        Returns:
            Numbers of each holder, after those of what none has. None if no strides say the indices.
        """
        if not self.holders:
            return [Numbers(region, self.text, region)]
        parts, rest = [], region.numel
        for name, where in self.holders:
            if (found := within(region, where)) is not None:
                return [Numbers(found[0], name + self.later, found[1])]
            if where.meets(region):
                if within(where, region) is None:
                    return None
                which = Strided.contiguous(where.sizes)
                parts.append(Numbers(where, name + self.later, which))
                rest -= where.numel
        others = [Numbers(region, f"{self.name}[memory]{self.later}", region)] if rest else []
        return [*others, *parts]
