"""What deferred() recorded of a model: as a plan, and written."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fastinit.base.text import listing
from fastinit.elements.shards import is_dtensor
from fastinit.elements.strided import Strided
from fastinit.plan import parameters
from fastinit.plan.buffers import Known, Values
from fastinit.plan.fill import Fill, Part
from fastinit.plan.history import Contents, Origin
from fastinit.plan.parameters import distinct_parameters
from fastinit.plan.plan import Plan
from fastinit.plan.replay import Computed, known_values
from fastinit.plan.write import Entry, Progress, check_entries, write_entries
from fastinit.record.memories import META, Memory, memories

M = TypeVar("M", bound=nn.Module)

_SHARDED_LATER = (
    "; sharding makes other parameters, of which nothing is recorded: take plan = recorded_plan(model) "
    "before fully_shard, parallelize_module or distribute_module, then plan.apply_(model, device=...)"
)


def recorded_plan(model: nn.Module) -> Plan:
    """The plan of what :func:`deferred` recorded for a model's parameters that are not written yet.

    It can be looked at (``table``), compared (``diff``), saved, changed and applied. Parameters that the
    constructor was given values for, or computed in a way that is no Fill, are in it too, but keep it
    from being saved. What the constructor put in buffers is in it as well, for :meth:`Plan.apply_`.

    Raises:
        ValueError: parameters on meta that were not recorded, or recorded with different seeds; or that
            the constructor left unwritten (all are listed).
    """
    record = _Record(model)
    plan = record.plan()
    return Plan(plan, seed=plan.seed, aliases=plan.aliases, buffers=record.known_buffers(model))


def materialize_(
    model: M,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    progress: Progress | None = None,
) -> M:
    """Writes a model that was built within :func:`deferred`, and returns it.

    All its parameters are written in one launch or parallel region for each device; the model gets them
    when all are written.

    Args:
        device: where; by default where the constructor would have put each parameter.
        dtype: of floating-point parameters; by default the constructor's.
        progress: as of :meth:`fastinit.Plan.apply_`.

    Raises:
        ValueError: as :func:`recorded_plan`, and buffers on meta of which nothing is recorded; the model
            is then as it was.
        NotImplementedError, RuntimeError: a parameter that cannot be written.
    """
    parameters.check_place(device, dtype)
    record = _Record(model)
    plan = record.plan()
    real = {
        id(parameter): _real(parameter, memory, plan[name], device, dtype)
        for name, parameter, memory in record.parameters
    }
    entries = [
        Entry(name, real[id(parameter)], plan[name])
        for name, parameter, _ in record.parameters
        if not _is_given(plan[name], real[id(parameter)])
    ]
    check_entries(entries)
    write_entries(entries, plan.seed, progress)
    made = []
    for _, module, key, tensor, memory in record.computed:
        value = torch.empty_like(tensor, device=place_of(memory, device))
        Computed(memory.contents, Strided.of(tensor), record.names).write_(value, plan.seed)
        made.append((module, key, value))
    parameters.adopt_(model, real)
    for module, key, value in made:
        owner = module._buffers if key in module._buffers else vars(module)
        owner[key] = value
    return model


def recorded_buffers(model: nn.Module) -> dict[str, Computed]:
    """What was recorded of the buffers that are on meta: those made from parameters.

    Raises:
        ValueError: as :func:`recorded_plan`.
    """
    record = _Record(model)
    computed = {
        id(tensor): Computed(memory.contents, Strided.of(tensor), record.names)
        for _, _, _, tensor, memory in record.computed
    }
    return {
        name: computed[id(buffer)]
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if id(buffer) in computed
    }


def _real(
    parameter: nn.Parameter,
    memory: Memory,
    fill: Fill | Computed,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Parameter:
    """What takes a parameter's place: memory to be written, or the values that it was given."""
    if not parameter.is_meta:
        return parameter
    where = place_of(memory, device)
    wanted = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
    data = known_values(fill)
    if data is not None and data.device == where and data.dtype == wanted:
        return parameters.like(parameter, where, wanted, data)
    return parameters.allocate(parameter, where, wanted)


def place_of(memory: Memory, device: torch.device | str | None = None) -> torch.device:
    """The device that a tensor shall be on: as asked, or as the constructor would have put it."""
    if device is not None:
        return torch.device(device)
    place = memory.contents.device
    return torch.get_default_device() if place == META else place


def _is_given(fill: Fill | Computed, real: nn.Parameter) -> bool:
    data = known_values(fill)
    return data is not None and data.data_ptr() == real.data_ptr()


class _Record:
    """What was recorded of one model, with the names of its streams."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters: list[tuple[str, nn.Parameter, Memory]] = []
        self.aliases: dict[str, str] = {}
        # Buffers and plain attributes that were computed from parameters.
        self.computed: list[tuple[str, nn.Module, str, Tensor, Memory]] = []
        strange = []
        self.has_parameters = any(True for _ in model.parameters())
        for names, _, parameter in distinct_parameters(model):
            if isinstance(parameter, UninitializedParameter):
                continue
            memory = memories.get(parameter)
            if memory is not None:
                self.parameters.append((names[0], parameter, memory))
                self.aliases.update(dict.fromkeys(names[1:], names[0]))
            elif parameter.is_meta:
                strange.append(names[0])
        for prefix, module in model.named_modules():
            for key, tensor in (*module._buffers.items(), *vars(module).items()):
                if not isinstance(tensor, Tensor) or not tensor.is_meta:
                    continue
                name = f"{prefix}.{key}" if prefix else key
                memory = memories.get(tensor)
                if memory is None:
                    strange.append(name)
                else:
                    self.computed.append((name, module, key, tensor, memory))
        if strange:
            sharded = any(is_dtensor(parameter) for parameter in model.parameters())
            raise ValueError(
                f"not recorded by fastinit.deferred(): {listing('tensor', strange)}"
                + (_SHARDED_LATER if sharded else "")
            )
        self.memories = [(name, memory) for name, _, memory in self.parameters]
        self.memories += [(name, memory) for name, _, _, _, memory in self.computed]
        seeds = {memory.seed for _, memory in self.memories}
        if len(seeds) > 1:
            raise ValueError(f"the model's parts were recorded with seeds {sorted(seeds)}")
        self.seed = seeds.pop() if seeds else 0
        self.names = self._name_origins()

    def _name_origins(self) -> dict[Origin, str]:
        """The stream of each origin: of a parameter's own numbers its name, of others another."""
        names: dict[Origin, str] = {}
        for name, memory in self.memories:
            names.setdefault(memory.origin, name)
        used = {
            name for name, memory in self.memories if memory.origin in memory.contents.origins()
        }
        for name, memory in self.memories:
            count = 0
            for origin in memory.contents.origins():
                if origin not in names:
                    if name not in used:
                        names[origin] = name
                        used.add(name)
                    else:
                        count += 1
                        names[origin] = f"{name}#{count}"
        return names

    def known_buffers(self, model: nn.Module) -> Known:
        """What the constructor put in buffers, and in plain attributes that are on meta."""
        known: dict[str, Values | Computed] = {}
        kept: dict[int, Values] = {}  # of buffers that are one tensor, once
        for name, buffer in model.named_buffers(remove_duplicate=False):
            if not buffer.is_meta and not isinstance(buffer, UninitializedBuffer):
                kept[id(buffer)] = kept.get(id(buffer)) or Values.of(buffer)
                known[name] = kept[id(buffer)]
        for name, _, _, tensor, memory in self.computed:
            known[name] = Computed(memory.contents, Strided.of(tensor), self.names)
        return known

    def plan(self) -> Plan:
        if not self.parameters and self.has_parameters:
            raise ValueError(
                "model was not built within fastinit.deferred(), or is written already"
            )
        fills: dict[str, Fill | Computed] = {}
        unwritten = []
        for name, parameter, memory in self.parameters:
            fill = self._fill(name, parameter, memory.contents)
            if fill is None:
                unwritten.append(name)
            else:
                fills[name] = fill
        if unwritten:
            raise ValueError(
                f"the constructor left unwritten, at least in part: {listing('parameter', unwritten)}"
            )
        return Plan(fills, seed=self.seed, aliases=self.aliases)

    def _fill(self, name: str, tensor: Tensor, contents: Contents) -> Fill | Computed | None:
        if contents.numel == 0:
            return Fill.constant(0.0)
        if contents.is_unwritten:
            return None
        computed = Computed(contents, Strided.of(tensor), self.names)
        filled = contents.fills
        if filled is None:
            return computed
        whole = contents.whole
        ordered = Strided.of(tensor).merged() == whole and tensor.is_contiguous()
        alike = len(filled) == 1 and filled[0].region == whole and tensor.numel() == contents.numel
        if not ordered and not alike:  # of larger memory, or of other order
            return computed
        fills = []
        for region, fill, origin, shape in filled:
            if shape not in (None, tuple(tensor.shape)):
                return computed
            stream = self.names[origin]
            own = stream == name or fill.distribution == "constant"
            fills.append((region, replace(fill, stream=None if own else stream)))
        if fills[0][0] != whole:
            if not _covers([region for region, _ in fills], contents.numel):
                return None
            fills[0] = whole, fills[0][1]
        (_, base), *parts = fills
        added = tuple(Part(region, part) for region, part in parts)
        return replace(base, parts=(*base.parts, *added))


def _covers(regions: list[Strided], numel: int) -> bool:
    """Whether every element is in one of the regions."""
    written = torch.zeros(numel, dtype=torch.bool)
    for region in regions:
        region.on(written).fill_(True)
    return bool(written.all())
