"""Cut: memories of parameters that are parts of larger ones, with what the laws of these give them.

Their elements have the numbers of the whole, which are not those that were recorded. So what was
computed from them is computed from what is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.base.holders import view_of
from fastinit.base.text import listing
from fastinit.elements.part import Part
from fastinit.elements.strided import Strided
from fastinit.elements.within import covers, within
from fastinit.plan.fill import Fill
from fastinit.plan.history import Call, Contents, Snapshot, View, leaves
from fastinit.plan.plan import Plan
from fastinit.plan.replay import Computed
from fastinit.plan.streams import Origin, Source
from fastinit.plan.write import Entry, checked
from fastinit.record.memories import Memory
from fastinit.record.model_record import MANY, ModelRecord, one_law
from fastinit.stream.rounding import wide


class _Held(NamedTuple):
    """A parameter, and what it is of a whole one."""

    name: str
    full: str
    """The whole one's name."""
    parameter: Tensor
    law: Fill
    part: Part


class Cut:
    """The memories in which a recorded model has parts of parameters that were drawn.

    Args:
        plan: of the model's own parameters.

    Raises:
        ValueError: parts that were drawn otherwise than by one law for all of it.
    """

    def __init__(self, record: ModelRecord, plan: Plan) -> None:
        self.record = record
        self.of: dict[Memory, list[_Held]] = {}
        unknown = []
        for name, parameter, memory in record.parameters:
            if name not in record.cut or name not in plan:
                continue
            full, part = record.cut[name]
            if (law := one_law(plan[name], part)) is not None:
                self.of.setdefault(memory, []).append(_Held(name, full, parameter, law, part))
            elif plan[name].is_random:
                unknown.append(name)
        if unknown:
            raise ValueError(
                f"nothing tells the numbers of the whole where {MANY}: {listing('parameter', unknown)}"
            )
        self._by_origin: dict[Origin, list[_Held]] = {}
        for memory, held in self.of.items():
            for each in held:
                origin = _drawn(memory.contents, each.parameter)[1]
                if origin is not None:
                    self._by_origin.setdefault(origin, []).append(each)
        self._final = {id(memory.contents): held for memory, held in self.of.items()}
        self._sources = frozenset().union(*(memory.contents.sources for memory in self.of))

    def entries(self, memory: Memory, values: Tensor) -> list[Entry]:
        """What is to be written for a memory that has parts, in this order.

        Args:
            values: [numel], of any floating-point dtype.
        """
        return self._entries(memory.contents, self.of[memory], values)

    def _entries(self, contents: Contents, held: Sequence[_Held], values: Tensor) -> list[Entry]:
        found = [Entry(full, view_of(values, p), law, part) for _, full, p, law, part in held]
        regions = [Strided.merged_of(each.parameter) for each in held]
        if covers(regions, contents.numel, [contents.whole]):
            return found
        whole = View(contents.whole, contents.dtype)
        rest = Computed(contents, whole, self.record.streams)
        return [Entry(held[0].name, values, rest), *found]

    def is_read_by(self, memory: Memory) -> bool:
        """Whether a memory without parts is computed from what is written of parts."""
        return bool(self.of) and memory not in self.of and bool(self._reads(memory.contents)[0])

    def check(
        self, named: Iterable[tuple[str, Memory]], later: Iterable[tuple[str, Memory]] = ()
    ) -> None:
        """Raises ValueError for memories whose numbers would be others than those of the parts.

        Args:
            named: what is written now.
            later: what stays recorded.
        """
        if not self.of and not self.record.cut_others:
            return
        of_others: dict[str, None] = {}
        drawn: dict[str, None] = {}
        for name, memory in named:
            if memory not in self.of and (sources := self._reads(memory.contents)[1]):
                if sources & self._sources:
                    of_others[name] = None
                elif memory in self.record.cut_others:
                    drawn[name] = None
        of_others |= {name: None for name, m in later if m.contents.sources & self._sources}
        if drawn:
            raise ValueError(
                f"parts= says that these are parts of larger ones, and they are drawn, but are no "
                f"parameters: {listing('tensor', list(drawn))}"
            )
        if of_others:
            raise ValueError(
                f"made of numbers that parameters had which parts= says are parts of larger ones, but "
                f"not only of those that they have at last: {listing('tensor', list(of_others))}"
            )

    def live(self, memory: Memory, device: torch.device, dtype: torch.dtype) -> dict[int, Tensor]:
        """The parts that a memory is computed from: [numel], in the dtype to compute in, by contents.

        Args:
            dtype: of the memory, which it is drawn in where it is parts itself.
        """
        found: dict[int, Tensor] = {}
        for contents, held in self._reads(memory.contents)[0]:
            its = dtype if contents is memory.contents else wide(contents.dtype)
            found[id(contents)] = torch.empty(contents.numel, dtype=its, device=device)
            entries = self._entries(contents, held, found[id(contents)])
            checked(entries, self.record.seed).write()
        return found

    def _reads(self, contents: Contents) -> tuple[list[tuple[Contents, list[_Held]]], set[Source]]:
        """The parts that contents are made of, and the sources of all other numbers in them."""
        parts: list[tuple[Contents, list[_Held]]] = []
        sources: set[Source] = set()
        waiting, seen = [contents], {id(contents)}
        while waiting:
            each = waiting.pop()
            held = self._final.get(id(each)) or self._parts(each)
            if held is not None:
                parts.append((each, held))
                continue
            for step in each.steps():
                if step.origin is not None:
                    sources.add(step.origin.source)
                read = leaves((step.args, step.kwargs)) if isinstance(step, Call) else []
                for other in (x.contents for x in read if isinstance(x, Snapshot)):
                    if id(other) not in seen:
                        seen.add(id(other))
                        waiting.append(other)
        return parts, sources

    def _parts(self, contents: Contents) -> list[_Held] | None:
        """The parts that contents are, of the same places in memory: as they were before, or changed
        number by number, which a Fill tells. None if they are not.
        """
        fills = contents.fills or ()
        drawn = [filled.origin for filled in fills if filled.origin is not None]
        near = [each for origin in drawn for each in self._by_origin.get(origin, ())]
        found = []
        for each in {id(each): each for each in near}.values():
            if Strided.of(each.parameter).end > contents.numel:
                return None
            fill, origin = _drawn(contents, each.parameter)
            if fill is None:
                return None
            if origin is not None:
                if all(each is not its for its in self._by_origin.get(origin, ())):
                    return None
                found.append(each._replace(law=fill))
        return found or None


def _drawn(contents: Contents, parameter: Tensor) -> tuple[Fill | None, Origin | None]:
    """The Fill that gave all of a parameter its values, by index, and their origin, if it has one."""
    where = Strided.merged_of(parameter)
    for filled in reversed(contents.fills or ()):
        if filled.region.merged().meets(where):
            fill, origin = filled.fill, filled.origin
            is_all = filled.region == contents.whole or within(where, filled.region) is not None
            by_index = filled.shape is None and (origin is None or origin.own is None)
            is_law = not fill.parts and fill.stream is None
            return (fill, origin) if is_all and by_index and is_law else (None, None)
    return None, None
