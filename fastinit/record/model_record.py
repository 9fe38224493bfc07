"""What was recorded of one model: of its parameters, of its buffers, and of what was made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from fastinit.base.text import listing
from fastinit.elements.part import Part
from fastinit.elements.shards import is_dtensor
from fastinit.elements.strided import Strided
from fastinit.elements.within import covers, within
from fastinit.plan.buffers import Known, Pending, Values
from fastinit.plan.fill import Fill, FillPart
from fastinit.plan.fit import ALL, Scope, note_shape
from fastinit.plan.history import Contents, Filled, View
from fastinit.plan.names import joined, named_buffers, named_modules
from fastinit.plan.parameters import distinct_parameters
from fastinit.plan.plan import Plan
from fastinit.plan.replay import Computed
from fastinit.plan.streams import Numbers, Source
from fastinit.record.memories import Memory, is_changed, is_plain, is_seen, memory_of
from fastinit.record.reached import reached
from fastinit.record.selected import selected_law
from fastinit.record.streams import Held, name_origins

_SHARDED_LATER = (
    "; sharding makes other parameters, of which nothing is recorded: take plan = recorded_plan(model) "
    "before fully_shard, parallelize_module or distribute_module, then plan.apply_(model, device=...)"
)
NOT_RECORDED = "not recorded by fastinit.deferred()"
MADE_LATER = "what is made, copied or converted after its block is not"
_INSTEAD = ": do that within it, or after materialize_, which takes device= and dtype="


class ModelRecord:
    """What was recorded of a model, with the names of its streams.

    Args:
        model: as ``deferred`` built it.
        scope: what its tensors are called in the whole model, and which parts of it they are.

    Raises:
        ValueError: tensors on meta that were not recorded, or were written since; parts recorded with
            different seeds; and as ``Scope.check``.
    """

    def __init__(self, model: nn.Module, scope: Scope = ALL) -> None:
        scope.check(model, ())
        self.scope = scope
        self.parameters: list[tuple[str, nn.Parameter, Memory]] = []
        self.cut: dict[str, tuple[str, Part]] = {}
        """(full name, part) of parameters that hold only a part, by a name of their own."""
        self.aliases: dict[str, str] = {}
        self.others: list[tuple[str, Tensor, Memory]] = []
        """Other tensors that the model holds anywhere, and that have no values yet, or random ones."""
        self.cut_others: set[Memory] = set()
        """Of these, such that hold only a part."""
        shapes: dict[str, Sequence[int]] = {}
        strange = []
        self.has_parameters = not all(map(is_lazy, model.parameters()))
        for own_names, _, parameter in distinct_parameters(model):
            names, part = scope.planned(own_names, parameter)
            if scope.parts is not None:
                note_shape(shapes, names, parameter, part)
            if part is not None and not part.is_whole:
                full, names = names[0], [f"{names[0]} ({own_names[0]})"]
                self.cut[names[0]] = (full, part)
            if isinstance(parameter, UninitializedParameter):
                continue
            if (memory := memory_of(parameter)) is not None:
                self.parameters.append((names[0], parameter, memory))
                self.aliases.update(dict.fromkeys(names[1:], names[0]))
            elif parameter.is_meta:
                strange.append(names[0])
        own = {id(parameter) for _, parameter, _ in self.parameters}
        for path, tensor in reached(model):
            memory = memory_of(tensor)
            if memory is None or id(tensor) in own:
                continue
            if memory.is_away or _is_to_be_drawn(memory, tensor):
                (planned, *_), part = scope.planned([path], tensor)
                self.others.append((planned, tensor, memory))
                if part is not None and not part.is_whole:
                    self.cut_others.add(memory)
        self._buffers = {id(buffer) for _, buffer in named_buffers(model)}
        for name, tensor in _other_tensors(model):
            if tensor.is_meta and memory_of(tensor) is None:
                strange.append(scope.prefix + name)
        recorded = ((n, t) for n, t, memory in (*self.parameters, *self.others) if memory.is_away)
        if changed := [name for name, tensor in recorded if is_changed(tensor)]:
            raise ValueError(
                f"written after the block of fastinit.deferred(), where nothing is recorded; write them "
                f"within it, or after fastinit.materialize_(): {listing('tensor', changed)}"
            )
        scripted = [
            scope.prefix + name for name, module in named_modules(model) if _is_away(module)
        ]
        if scripted:
            raise ValueError(
                f"torch.jit holds the parameters of what was scripted before it was written: "
                f"{listing('module', scripted)}; script after materialize_()"
            )
        if strange:
            sharded = any(is_dtensor(parameter) for parameter in model.parameters())
            raise ValueError(
                f"{NOT_RECORDED}: {listing('tensor', strange)}"
                + (_SHARDED_LATER if sharded else f"; {MADE_LATER}{_INSTEAD}")
            )
        self.memories = [(name, memory) for name, _, memory in (*self.parameters, *self.others)]
        seeds = {memory.seed for _, memory in self.memories}
        if len(seeds) > 1:
            raise ValueError(f"the model's parts were recorded with seeds {sorted(seeds)}")
        self.seed = seeds.pop() if seeds else 0
        tensors = (*self.parameters, *self.others)
        self.streams = name_origins([_held(name, t, memory) for name, t, memory in tensors])

    def computed(self, memory: Memory, view: View | None = None) -> Computed:
        """What a memory shall be, or a view of it."""
        whole = View(Strided(0, (memory.contents.numel,), (1,)), memory.contents.dtype)
        return Computed(memory.contents, view or whole, self.streams)

    def known_buffers(self, model: nn.Module) -> Known:
        """What the constructor put in buffers, and in plain attributes that have no values yet.

        Those that hold only a part of what the whole model has, or are made of one, are not among them.
        """
        of_parts = self._drawn_in_parts()
        known: dict[str, Values | Computed | Pending] = {}
        computed = {id(t): self.computed(memory, View.of(t)) for _, t, memory in self.others}
        lost = {id(t) for _, t, m in self.others if not of_parts.isdisjoint(m.contents.sources)}
        kept: dict[int, Values] = {}  # of buffers that are one tensor, once
        for own, tensor in _other_tensors(model):
            (name, *_), part = self.scope.planned([own], tensor)
            if (
                id(tensor) in computed
                and id(tensor) not in lost
                and (part is None or part.is_whole)
            ):
                its = computed[id(tensor)]
                known[name] = its if tensor.is_meta else Pending(its, Values.of(tensor))
        for own, buffer in named_buffers(model):
            if buffer.is_meta or isinstance(buffer, UninitializedBuffer) or id(buffer) in lost:
                continue
            (name, *_), part = self.scope.planned([own], buffer)
            if name in known or not (part is None or part.is_whole):
                continue
            kept[id(buffer)] = kept.get(id(buffer)) or Values.of(buffer)
            known[name] = kept[id(buffer)]
        return known

    def _drawn_in_parts(self) -> frozenset[Source]:
        """The sources of parameters that hold only a part."""
        cut = (m.contents.sources for name, _, m in self.parameters if name in self.cut)
        return frozenset().union(*cut)

    def _is_of_parts(self, fill: Fill | Computed) -> bool:
        """Whether numbers go into it that others have, which hold only a part."""
        if isinstance(fill, Computed):
            return not self._drawn_in_parts().isdisjoint(fill.contents.sources)
        streams = (fill.stream, *(part.fill.stream for part in fill.parts))
        return any(s is not None and s.startswith(own) for s in streams for own in self.cut)

    def plan(self) -> Plan:
        """What the parameters shall be. Those that hold only a part are there by a name of their own.

        Raises:
            ValueError: nothing is recorded; parameters that the constructor left unwritten, or buffers
                that it made of such.
        """
        if not self.parameters and self.has_parameters:
            raise ValueError(
                "model was not built within fastinit.deferred(), or is written already"
            )
        left = "the constructor left unwritten, at least in part"
        unwritten = [name for name, p, memory in self.parameters if not memory.has_values(p)]
        if unwritten:
            raise ValueError(f"{left}: {listing('parameter', unwritten)}")
        own = {memory for _, _, memory in self.parameters}  # which may have gaps between them
        buffers = [(n, t, m) for n, t, m in self.others if id(t) in self._buffers and m not in own]
        if of_nothing := [
            name for name, buffer, memory in buffers if not memory.has_values(buffer)
        ]:
            raise ValueError(f"{left}, or made of what it did: {listing('buffer', of_nothing)}")
        fills = {n: self._fill(n, p, memory.contents) for n, p, memory in self.parameters}
        return Plan(fills, seed=self.seed, aliases=self.aliases)

    def whole_plan(self, model: nn.Module) -> Plan:
        """The plan of the whole model, as far as this one has parts of its parameters, and of buffers.

        Raises:
            ValueError: as :meth:`plan`; parts that were filled by more than one law, or differently.
        """
        plan = self.plan() if self.parameters else Plan({}, seed=self.seed)
        fills, unknown = {n: plan[n] for n in plan if n not in self.cut}, []
        for own, (name, part) in self.cut.items():
            if own not in plan or not part.numel:
                continue  # nothing was drawn: other ranks know what it is
            law = one_law(plan[own], part)
            if law is None or fills.setdefault(name, law) != law:
                unknown.append(own)
        if unknown:
            raise ValueError(
                f"of the whole parameter nothing is known where {MANY}: {listing('parameter', unknown)}"
            )
        if made := [name for name, fill in fills.items() if self._is_of_parts(fill)]:
            raise ValueError(
                f"of the whole parameter nothing is known where it is made of one that parts= says is a "
                f"part of a larger one: {listing('parameter', made)}"
            )
        buffers = self.known_buffers(model)
        return Plan(fills, seed=plan.seed, aliases=plan.aliases, buffers=buffers)

    def _fill(self, name: str, tensor: Tensor, contents: Contents) -> Fill | Computed:
        """What a parameter shall be: Fills of its elements by their indices, where it is only these."""
        if tensor.numel() == 0:
            return Fill.constant(0.0)
        view, where = View.of(tensor), Strided.merged_of(tensor)
        computed = Computed(contents, view, self.streams)
        if not view.is_plain(contents.dtype):
            return computed
        parts: list[FillPart] = []
        whole = Strided.run(0, tensor.numel())
        for each in reversed(contents.writes):
            its = self._parts(each, where, name) if isinstance(each, Filled) else None
            if its is None:
                return computed
            parts = its + parts
            if any(part.region.merged() == whole for part in its):
                break  # what was there before it is no more
        else:
            regions = [part.region for part in parts]
            if contents.base is not None and not covers(regions, whole.numel, [whole]):
                return computed
        first, shape = parts[0], tuple(tensor.shape)
        if not first.own:
            base = parts.pop(0).fill  # of all, or the others are of the rest
        elif first.region.merged() == whole and first.region.sizes == shape:
            base = parts.pop(0).fill
            base = replace(base, stream=None) if base.stream == name else base
        elif any(part.fill.parts for part in parts):
            return computed
        else:
            return _of_parts(tuple(parts))
        return replace(base, parts=(*base.parts, *parts)) if parts else base

    def _parts(self, filled: Filled, where: Strided, name: str) -> list[FillPart] | None:
        """What a Fill of a memory gives a parameter, by its indices; None if it has not their numbers.

        Args:
            where: the parameter's elements in the memory, merged.
            name: the parameter's.
        """
        region, fill, origin, shape = filled
        if not region.numel or region.end <= where.offset or where.end <= region.offset:
            return []
        numbers = [Numbers(region, name, region)]
        if origin is not None:
            stream = self.streams[origin]
            its = (
                stream.numbers(region) if shape is None else [Numbers(region, stream.text, region)]
            )
            if its is None:
                return None
            own = next((at for at, each in enumerate(its) if each.where == where), 0)
            numbers = its[own:]  # those before are written over
        parts = []
        for place, stream_name, which in numbers:
            found, is_own = within(place, where), shape is not None
            if found is not None and shape is not None:
                here = found[1]
                if here.sizes != shape:
                    return None
            elif found is not None:
                here = found[1].as_set()
                if origin is not None and found[1].merged() != which.merged():
                    here, is_own = found[1], which == Strided.contiguous(found[1].sizes)
                    if not is_own:
                        return None
            elif not place.merged().meets(where):
                continue
            elif origin is None and shape is None and within(where, place) is not None:
                here = Strided.run(0, where.numel)
            else:
                return None
            its_name = None if stream_name == name and not is_own else stream_name
            its_fill = fill if fill.stream == its_name else replace(fill, stream=its_name)
            parts.append(FillPart(here, its_fill, own=is_own))
        return parts

    def names(self, memory: Memory) -> bool:
        """Whether all numbers of another memory have names, by this model or by those written before."""
        streams = {
            o: self.streams.get(o, o.source.streams.get(o)) for o in memory.contents.origins()
        }
        if None in streams.values():
            return False
        self.streams.update((o, stream) for o, stream in streams.items() if stream is not None)
        return True

    def pin_names(self) -> None:
        """What is written keeps its numbers, also where other models have copies of it."""
        for origin, stream in self.streams.items():
            origin.source.streams[origin] = stream


def _held(name: str, tensor: Tensor, memory: Memory) -> Held:
    where = Strided.merged_of(tensor) if is_plain(tensor, memory.contents.dtype) else None
    return Held(name, memory.source, memory.contents, where)


MANY = "a part was not filled by one law alone"


def one_law(fill: Fill | Computed, part: Part) -> Fill | None:
    """The Fill that all of a part was filled by, with numbers of its own; None if it was not.

    Or by which the whole was filled, of which the constructor then kept the part.
    """
    if isinstance(fill, Computed):
        is_scaled = fill.scale != 1.0 or not fill.view.is_plain(fill.contents.dtype)
        return None if is_scaled else selected_law(fill.contents, math.prod(part.shape))
    return None if fill.parts or fill.stream is not None else fill


def _of_parts(parts: tuple[FillPart, ...]) -> Fill:
    """A Fill of nothing but parts, which have every element."""
    try:
        return Fill("fused", (), parts=parts)
    except ValueError:  # some of them twice
        return replace(Fill.constant(0.0), parts=parts)


def _is_away(module: nn.Module) -> bool:
    """Whether it is scripted, and has parameters without values, which Python cannot give any."""
    if not isinstance(module, torch.jit.ScriptModule):
        return False
    return any(parameter.is_meta for parameter in module.parameters())


def _other_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers and plain attributes, by name; each place once."""
    for prefix, module in named_modules(model):
        for key, tensor in (*module._buffers.items(), *vars(module).items()):
            if isinstance(tensor, Tensor) and not isinstance(tensor, UninitializedBuffer):
                yield joined(prefix, key), tensor


def _is_to_be_drawn(memory: Memory, tensor: Tensor) -> bool:
    """Whether values are random, nobody looked at them as they were made, and nobody wrote them."""
    return memory.contents.is_random and not is_seen(memory) and not is_changed(tensor)
