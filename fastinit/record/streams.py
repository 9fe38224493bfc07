"""Streams: the names that the random numbers of a recorded model are drawn with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastinit.elements.strided import Strided
from fastinit.elements.within import within
from fastinit.plan.history import Contents, Filled
from fastinit.plan.streams import Holder, Holders, Origin, Source, Stream


class Held(NamedTuple):
    """A tensor of a model, and what is recorded of it."""

    name: str
    source: Source
    """Of its memory's own numbers."""
    contents: Contents
    where: Strided | None
    """Its elements in the memory, merged; None of a view of another dtype, which numbers none."""


def name_origins(tensors: Sequence[Held]) -> dict[Origin, Stream]:
    """The stream of each origin.

    A parameter's own numbers have its name, and each element its index in it, wherever in memory that
    is; those drawn for parts of it at once have the name and the part: ``w[64:128]``; earlier ones that
    are in use elsewhere a number: ``w@1``. Numbers of a memory that is no parameter have the name of the
    first that they went into, if that has none of its own, or that and a number: ``w#1``.

    Args:
        tensors: in the order of the model.
    """
    names: dict[Source, str] = {}
    for held in tensors:
        names.setdefault(held.source, held.name)
    found = [(held, list(held.contents.origins())) for held in tensors]
    used = {held.name for held, origins in found if any(o.source is held.source for o in origins)}
    for (name, *_), origins in found:
        count = 0
        for origin in origins:
            if origin.source in names:
                continue
            if name not in used:
                names[origin.source] = name
                used.add(name)
            else:
                count += 1
                names[origin.source] = f"{name}#{count}"
    every = dict.fromkeys(origin for _, origins in found for origin in origins)
    draws: dict[Source, set[int]] = {}
    for origin in every:
        draws.setdefault(origin.source, set()).add(origin.draw)
    holders = _holders(tensors, names)
    streams: dict[Origin, Stream] = {}
    for origin in every:
        later = sum(draw > origin.draw for draw in draws[origin.source])
        name, its = names[origin.source], holders.get(origin.source)
        ending = f"@{later}" if later else ""
        if origin.own is None:
            stream = Stream(name, ending, its)
        else:
            stream = Stream(_own_name(name, origin.own, its), ending)
        streams[origin] = origin.source.streams.get(origin, stream)
    return streams


def _own_name(name: str, region: Strided, holders: Holders | None) -> str:
    """The name of numbers that are drawn for elements of a memory at once.

    Args:
        name: of the memory's others.
    """
    if holders is None:
        return f"{name}[{region.text}]"
    for holder in holders.near(region):
        if (found := within(region, holder.where)) is not None:
            which = found[1].merged()
            is_all = which == Strided.run(0, holder.where.numel)
            return holder.name if is_all else f"{holder.name}[{which.text}]"
    return f"{name}[memory {region.text}]"


def _holders(tensors: Sequence[Held], names: Mapping[Source, str]) -> dict[Source, Holders]:
    """The tensors by whose indices elements have their numbers, where the memory's order is another.

    Of a source that a view of another dtype gives its name to, and where no strides say the index of
    each element that a call drew together with others, all have the numbers of their places in memory.
    """
    found: dict[Source, list[Holder]] = {}
    by_place: set[Source] = set()
    for name, own, contents, where in tensors:
        drawn = {w.origin.source for w in contents.writes if isinstance(w, Filled) and w.origin}
        for source in {own, *drawn}:
            its = found.setdefault(source, [])
            if source in by_place or (its and source is not own):
                continue
            its_name = name if source is own else names[source]
            is_all = where == contents.whole and its_name == names[source]
            if not its and (where is None or is_all):
                by_place.add(source)
            elif where is not None and where.numel and not where.overlaps:
                its.append(Holder(its_name, where))
    for source in names:
        if not found.get(source) and source not in by_place and source.order is not None:
            found[source] = [Holder(names[source], source.order)]
    held = {source: Holders(its) for source, its in found.items() if its}
    for each in (c for tensor in tensors for c in tensor.contents.history()) if held else ():
        for write in each.writes:
            if not isinstance(write, Filled) or write.origin is None or write.shape is not None:
                continue
            its_holders = held.get(write.origin.source)
            if its_holders and Stream("", "", its_holders).numbers(write.region) is None:
                del held[write.origin.source]
    return held
