"""Contents: what a tensor's memory holds, as recorded: the writes that made it, folded where possible.

A :class:`Contents` is a value: writing makes a new one, so that what was read earlier stays known. Most
fold to :class:`Filled`, a Fill over a region; the rest stay :class:`Call` and are replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinit.base.torch_internals import tree_leaves
from fastinit.elements.strided import Strided
from fastinit.elements.within import covers
from fastinit.plan.fill import Fill
from fastinit.plan.streams import Origin, Source


class View(NamedTuple):
    """A tensor's elements in a memory, and as what they are read.

    >>> View.of(torch.zeros(4, dtype=torch.complex64)[1:].conj()).is_conj
    True
    """

    where: Strided
    dtype: torch.dtype
    """In whose elements ``where`` counts; the memory's own, or another of a view of other dtype."""
    is_conj: bool = False
    is_neg: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> View:
        """What a tensor is of its storage."""
        return cls(Strided.of(tensor), tensor.dtype, tensor.is_conj(), tensor.is_neg())

    def on(self, memory: Tensor) -> Tensor:
        """The view of memory [numel] of any dtype; of conjugates and negatives the values."""
        values = self.where.on(memory if memory.dtype == self.dtype else memory.view(self.dtype))
        values = values.conj() if self.is_conj else values
        return -values if self.is_neg else values

    def counted_in(self, size: int) -> Strided:
        """Its elements as units of so many bytes, of which each has some."""
        units = self.dtype.itemsize // size
        if units == 1:
            return self.where
        offset, sizes, strides = self.where
        steps = tuple([step * units for step in strides])
        return Strided(offset * units, (*sizes, units), (*steps, 1)).merged()

    def is_plain(self, dtype: torch.dtype) -> bool:
        """Whether it is a view of elements of this dtype as they are."""
        return self.dtype is dtype and not self.is_conj and not self.is_neg


class Own(NamedTuple):
    """An argument of a call: a view of the memory that it writes."""

    view: View


class Snapshot(NamedTuple):
    """An argument of a call: a view of other memory, as it was then."""

    contents: Contents
    view: View


class Given(NamedTuple):
    """An argument of a call: a tensor of known values, too large to be copied."""

    tensor: Tensor
    version: int
    """As it was then; it must still be that."""


class Filled(NamedTuple):
    """A Fill over some elements, merged."""

    region: Strided
    fill: Fill
    origin: Origin | None = None
    """The origin of its random numbers, if it draws any."""
    shape: tuple[int, ...] | None = None
    """The tensor's shape, for distributions of whole tensors; the region then has its sizes."""


class Call(NamedTuple):
    """An operation to be replayed. Recorded memory is Own or Snapshot among its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    line: str
    origin: Origin | None = None
    """The origin of its random numbers, if it draws any."""
    overwrites: View | None = None
    """What it gives values that do not depend on what was there, of the memory that it writes."""


class Made(NamedTuple):
    """Memory that a call returned, or of an argument that it wrote."""

    call: Call
    which: int
    """Which of its results, and after these of the arguments that it writes."""
    view: View
    """The result's view of that memory. Real kernels may lay out results otherwise."""


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Contents:
    """What memory of ``numel`` elements of ``dtype`` holds.

    ``base`` is None if it was never written, values if they are known, or the call that made it;
    ``writes`` came after, in order.
    """

    numel: int
    dtype: torch.dtype
    device: torch.device
    base: Tensor | Made | None = None
    writes: tuple[Filled | Call, ...] = ()
    is_loaded: bool = False
    """Whether its values took a parameter's place in the block, as a load puts them there."""
    _sources: frozenset[Source] | None = field(default=None, init=False)

    @classmethod
    def of_data(cls, tensor: Tensor) -> Contents:
        """Contents of known values: not copied if contiguous; one number everywhere is a constant."""
        data = tensor.detach().contiguous().view(-1)
        known = cls(data.numel(), data.dtype, data.device)
        value = _only_value(data)
        if value is None:
            return replace(known, base=data)
        return known.filled(known.whole, Fill.constant(value))

    @property
    def whole(self) -> Strided:
        """All its elements."""
        return Strided.run(0, self.numel)

    @property
    def is_unwritten(self) -> bool:
        """Whether nothing was written."""
        return self.base is None and not self.writes

    @property
    def sources(self) -> frozenset[Source]:
        """The sources of all random numbers in it."""
        if self._sources is None:
            object.__setattr__(self, "_sources", self._found_sources())
        return self._sources or _NONE

    def _found_sources(self) -> frozenset[Source]:
        if not self.writes and self.base is None:
            return _NONE
        found: set[Source] = set()
        for write in self.writes:
            if isinstance(write, Call):
                found |= _sources_of(write)
            elif write.origin is not None:
                found.add(write.origin.source)
        if isinstance(self.base, Made):
            found |= _sources_of(self.base.call)
        return frozenset(found)

    @property
    def is_random(self) -> bool:
        """Whether any number in it was drawn."""
        return bool(self.sources)

    def _overwrites(self, wanted: Sequence[View], after: int = 0) -> bool:
        """Whether the writes, from one on, gave each of these elements a value."""
        written = [
            View(w.region, self.dtype) if isinstance(w, Filled) else w.overwrites
            for w in self.writes[after:]
        ]
        views = [view for view in written if view is not None]
        unit = min(view.dtype.itemsize for view in (View(self.whole, self.dtype), *views, *wanted))
        regions, asked = ([view.counted_in(unit) for view in its] for its in (views, wanted))
        return covers(regions, self.numel * self.dtype.itemsize // unit, asked)

    def _is_written_over(self, place: int) -> bool:
        """Whether nothing is left of what a call wrote, which is the write at a place."""
        write = self.writes[place]
        its = write.overwrites if isinstance(write, Call) else None
        return its is not None and self._overwrites([its], place + 1)

    @property
    def is_result(self) -> bool:
        """Whether it is what a call gave, as that gave it."""
        return isinstance(self.base, Made) and not self.writes

    def is_written(self, view: View | None = None) -> bool:
        """Whether elements have values, and those that they were made of had.

        Args:
            view: of a tensor of this memory; by default all is asked.
        """
        wanted = {id(self): [view or View(self.whole, self.dtype)]}
        for each in reversed(self.history()):
            if id(each) not in wanted:
                continue  # what was made of it is overwritten
            reads = [
                read
                for place, write in enumerate(each.writes)
                if (its := _read(write)) and not each._is_written_over(place)
                for read in its
            ]
            if each.numel and not each._overwrites(wanted[id(each)]):
                if each.base is None:
                    return False
                reads += _read(each.base.call) if isinstance(each.base, Made) else []
            for contents, seen in reads:
                wanted.setdefault(id(contents), []).append(seen)
        return True

    @property
    def is_known(self) -> bool:
        """Whether it follows from values that are there, without chance."""
        return not self.is_random and self.is_written()

    @property
    def follows_a_load(self) -> bool:
        """Whether it is what was loaded in the block, or follows from that alone, without chance."""
        return self.is_known and any(each.is_loaded for each in self.history())

    @property
    def fills(self) -> tuple[Filled, ...] | None:
        """The writes, if all are Fills on nothing."""
        if self.base is None and all(isinstance(write, Filled) for write in self.writes):
            return self.writes  # type: ignore[return-value]
        return None

    def filled(
        self,
        region: Strided,
        fill: Fill,
        origin: Origin | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Contents:
        """The contents after a Fill over a region: merged, or of the shape of a whole tensor."""
        region = region.as_set() if shape is None else region
        filled = Filled(region, fill, origin if fill.is_random else None, shape)
        if region == self.whole or region.as_set() == self.whole:
            return Contents(self.numel, self.dtype, self.device, writes=(filled,))
        writes = self.writes
        if self.fills is not None and shape is None:
            writes = tuple(w for w in writes if not _is_in(w.region, region))  # type: ignore[union-attr]
            before = writes[-1] if writes else None
            if isinstance(before, Filled) and _continues(before, filled):
                joined = Strided.run(before.region.offset, before.region.numel + region.numel)
                return replace(self, writes=writes[:-1]).filled(joined, fill, origin)
        return replace(self, writes=(*writes, filled))

    def mapped(self, region: Strided, change: Callable[[Fill], Fill | None]) -> Contents | None:
        """The contents with another Fill over a region, if these are still Fills alone.

        Args:
            region: merged.
            change: gives the Fill of values that are made from those of another, each by itself.
        """
        fills, region = self.fills, region.as_set()
        if not fills:
            return None
        if region == self.whole:
            after = []
            for filled in fills:
                if (fill := change(filled.fill)) is None:
                    return None
                after.append(filled._replace(fill=fill))
            return replace(self, writes=tuple(after))
        only = len(fills) == 1 and fills[0].shape is None and fills[0].region == self.whole
        if only or (fills[-1].region == region and fills[-1].shape is None):
            # Some of the only one, by index the same numbers, or the last one.
            fill = change(fills[-1].fill)
            return None if fill is None else self.filled(region, fill, fills[-1].origin)
        return None

    def called(self, call: Call) -> Contents:
        """The contents after a call that writes them."""
        return replace(self, writes=(*self.writes, call))

    def origins(self) -> Iterator[Origin]:
        """The origins of all numbers in it, in the order of writing."""
        for contents in self.history():
            for write in contents.steps():
                if write.origin is not None:
                    yield write.origin

    def steps(self) -> Iterator[Filled | Call]:
        """What made this memory: the call that its base is a result of, and the writes.

        These by where they begin, so that the order of calls on parts has no part in names of streams.
        """
        if isinstance(self.base, Made):
            yield self.base.call
        yield from sorted(self.writes, key=_begin)

    def history(self) -> list[Contents]:
        """All contents that lead to these, each once and after those that it was made of."""
        found: dict[int, Contents] = {}
        waiting: list[tuple[Contents, bool]] = [(self, False)]
        while waiting:
            contents, is_done = waiting.pop()
            if is_done:
                found[id(contents)] = contents
            elif id(contents) not in found:
                waiting.append((contents, True))
                read = [each.contents for step in contents.steps() for each in _read(step)]
                waiting += [(other, False) for other in reversed(read) if id(other) not in found]
        return list(found.values())


_NONE: frozenset[Source] = frozenset()


def _begin(write: Filled | Call) -> int:
    """The first element that is written."""
    if isinstance(write, Filled):
        return write.region.offset
    own = [x.view.where.offset for x in leaves((write.args, write.kwargs)) if isinstance(x, Own)]
    return min(own, default=0)


def _read(step: Filled | Call) -> list[Snapshot]:
    """What is read of other memory."""
    if not isinstance(step, Call):
        return []
    return [x for x in leaves((step.args, step.kwargs)) if isinstance(x, Snapshot)]


def _sources_of(call: Call) -> set[Source]:
    found = {source for read in _read(call) for source in read.contents.sources}
    return found if call.origin is None else {*found, call.origin.source}


def leaves(arguments: Any) -> list[Any]:
    """The arguments of a call, out of their lists and dicts."""
    return tree_leaves(arguments, is_leaf=lambda x: isinstance(x, (Own, Snapshot, Given)))


def _is_in(some: Strided, region: Strided) -> bool:
    """Whether what was written is written over, as far as can be said at once."""
    if region.is_run and some.numel:
        return region.offset <= some.offset and some.end <= region.end
    return some == region


def _continues(before: Filled, after: Filled) -> bool:
    """Whether two are one, cut in two."""
    return (
        before.shape is None
        and before.region.is_run
        and after.region.is_run
        and before.region.offset + before.region.numel == after.region.offset
        and before.fill == after.fill
        and before.origin == after.origin
    )


def _only_value(data: Tensor) -> float | None:
    """The number that all elements are, if they are one."""
    if not data.numel() or not (data.is_floating_point()) or data.is_meta:
        return None
    first = data[0]
    for part in (data[:1024], data):  # most data show it at once
        if not bool((part == first).all()):
            return None
    return float(first)
