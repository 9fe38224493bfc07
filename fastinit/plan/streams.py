"""Streams: the random numbers of recorded memory, by name, and which of them an element has."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
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


class Holders:
    """Those of one memory. An element has its number by the first that has it.

    Args:
        holders: in the order of the model.
    """

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.all = tuple(holders)
        by_place = sorted(self.all, key=lambda holder: holder.where.offset)
        ends = [holder.where.end for holder in by_place]
        self._starts = [holder.where.offset for holder in by_place]
        is_apart = all(end <= start for end, start in zip(ends, self._starts[1:]))
        self._by_place = by_place if is_apart else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holders) and self.all == other.all

    __hash__ = None  # type: ignore[assignment]

    def near(self, region: Strided) -> Sequence[Holder]:
        """All that can have elements of a region."""
        if self._by_place is None:
            return self.all
        first = max(bisect_right(self._starts, region.offset) - 1, 0)
        return self._by_place[first : bisect_left(self._starts, region.end)]


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
        holders: of numbers by index; without, these are those of the places in memory.
    """

    name: str
    later: str = ""
    holders: Holders | None = None

    @property
    def text(self) -> str:
        """The name, whole."""
        return self.name + self.later

    def numbers(self, region: Strided) -> list[Numbers] | None:
        """Which numbers elements have by index, in the order in which they are to be written.

        Args:
            region: the elements, merged.

        Returns:
            Numbers of each holder that has some, the first holder's last, after those that are of none.
            None if no strides say the indices.
        """
        if self.holders is None:
            return [Numbers(region, self.text, region)]
        found: list[Numbers] = []
        taken: list[Strided] = []
        for name, where in self.holders.near(region):
            pieces = _shared(region, where)
            if pieces is None:
                return None
            found += [Numbers(place, name + self.later, which) for place, which in pieces]
            taken += [place for place, _ in pieces]
            if sum(place.numel for place, _ in pieces) == region.numel:
                break  # others have nothing else
        else:
            if not _is_all(taken, region):
                found.append(Numbers(region, f"{self.name}[memory]{self.later}", region))
        return found[::-1]


def _is_all(parts: Sequence[Strided], region: Strided) -> bool:
    """Whether ranges one after the other are all of a region, as far as can be said at once."""
    parts = sorted(parts, key=lambda part: part.offset)
    is_apart = all(one.end <= two.offset for one, two in pairwise(parts))
    return is_apart and sum(part.numel for part in parts) == region.numel


def _shared(region: Strided, where: Strided) -> list[tuple[Strided, Strided]] | None:
    """The elements that a region and a tensor share, and their indices in the tensor."""
    if not region.meets(where):
        return []
    if (inside := within(region, where)) is not None:
        return [inside]
    which = Strided.contiguous(where.sizes)
    if within(where, region) is not None:
        return [(where, which)]
    if region.is_run:
        return list(where.clipped(region.offset, region.end, which))
    if where.is_run:
        pieces = region.clipped(where.offset, where.end)
        return [(some, some._replace(offset=some.offset - where.offset)) for some, _ in pieces]
    return None
