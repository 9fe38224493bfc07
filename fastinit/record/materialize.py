"""What deferred() recorded of a model: as a plan, and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastinit.base.holders import exchange, living, shared_beyond, view_of
from fastinit.base.memory import advise_huge_pages
from fastinit.base.text import listing
from fastinit.base.torch_internals import base_of
from fastinit.elements.strided import Strided
from fastinit.plan import parameters
from fastinit.plan.fill import Fill
from fastinit.plan.filled import note_filled
from fastinit.plan.fit import Parts, Scope
from fastinit.plan.history import Made, View
from fastinit.plan.plan import Plan
from fastinit.plan.replay import Computed, known_values
from fastinit.plan.storage import Format, Formats, stored_as
from fastinit.plan.storage import packed as pack
from fastinit.plan.write import Entry, Progress, checked
from fastinit.record.built import check_shared, forget, remembered
from fastinit.record.cut import Cut
from fastinit.record.memories import META, Memory, memory_of, storage_numel
from fastinit.record.model_record import ModelRecord, one_law
from fastinit.record.neighbours import check_neighbours

M = TypeVar("M", bound=nn.Module)


def recorded_plan(model: nn.Module, *, prefix: str = "", parts: Parts | None = None) -> Plan:
    """The plan of what :func:`deferred` recorded for a model's parameters that are not written yet.

    It can be looked at (``table``), compared (``diff``), saved, changed and applied. Parameters that the
    constructor was given values for, or computed in a way that is no Fill, are in it too, but keep it
    from being saved. What the constructor put in buffers is in it as well, for :meth:`Plan.apply_`.

    Args:
        prefix: of a submodule, what its names begin with in the whole model: ``"encoder."``. Numbers are
            those of the full names.
        parts: as of :meth:`fastinit.Plan.apply_`, of a model that holds parts of the whole: the plan is
            of what it holds parts of, and these are as the constructor filled the part.

    Raises:
        ValueError: parameters on meta that were not recorded, recorded with different seeds, left
            unwritten by the constructor, or written after the block (all are listed); one of two names
            of a tied parameter, of which the other was given another since; a prefix without its dot;
            parts that were filled by more than one law, or differently.
    """
    check_shared(model, prefix)
    record = ModelRecord(model, Scope(prefix, parts=parts))
    record.plan()  # nothing recorded is an error here
    return record.whole_plan(model)


def materialize_(
    model: M,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    storage: Formats | None = None,
    prefix: str = "",
    parts: Parts | None = None,
    progress: Progress | None = None,
) -> M:
    """Writes a model that was built within :func:`deferred`, and returns it.

    All its parameters are written in one launch or parallel region for each device. They are then there
    in place: whoever holds one of them, or a tensor of its memory, or what was computed from it in the
    constructor, holds the one with values. (What was computed from two models gets them with the last,
    and what was computed from numbers that no parameter kept has none.) Random buffers are drawn with
    the seed, unless the constructor looked at their values, or somebody changed them since.

    Args:
        device: where; by default where the constructor would have put each parameter.
        dtype: of floating-point parameters; by default the constructor's. What the constructor
            computed is computed from float32 values, and rounded once.
        storage: dtypes and formats of some parameters, by patterns of names, as of
            :meth:`fastinit.Plan.apply_`.
        prefix: as of :func:`recorded_plan`.
        parts: as of :meth:`fastinit.Plan.apply_`. A tensor that holds only a part gets the elements that
            the law of its constructor gives the whole, and what was computed from it is computed from
            these; what no chance had a part in is as it was computed.
        progress: as of :meth:`fastinit.Plan.apply_`.

    Raises:
        ValueError: as :func:`recorded_plan`, and buffers on meta of which nothing is recorded; the model
            is then as it was. A part that was drawn otherwise than by one law for all of it, or a tensor
            made of its earlier numbers. Parameters of other modules in the same memory. ``storage`` that
            :meth:`fastinit.Plan.apply_` would refuse; a block format of a parameter whose memory
            others have too.
        NotImplementedError, RuntimeError: a parameter that cannot be written, or not in its format.
    """
    check_shared(model, prefix)
    return write_recorded_(
        model, device, dtype, storage=storage, prefix=prefix, parts=parts, progress=progress
    )


def write_recorded_(
    model: M,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    storage: Formats | None = None,
    prefix: str = "",
    parts: Parts | None = None,
    progress: Progress | None = None,
    seed: int | None = None,
) -> M:
    """As :func:`materialize_`, with other numbers if a seed is given."""
    parameters.check_place(device, dtype)
    record = ModelRecord(model, Scope(prefix, parts=parts))
    own_seed, record.seed = record.seed, record.seed if seed is None else seed
    only_others = not record.parameters and bool(record.others)  # as the parameters were loaded
    plan = Plan({}, seed=record.seed) if only_others else record.plan()
    cut = Cut(record, plan)
    parameters.check_here(model, ((name, parameter) for name, parameter, _ in record.parameters))
    formats: Mapping[int, Format] = {}
    if storage is not None:
        places = [(place.names, place.tensor) for place in record.scope.places(model)]
        formats = stored_as(storage, model, places, list(plan) if parts is not None else [])
        parameters.check_stored(((n[0], t) for n, t in places if not t.is_meta), formats)
    made: dict[Memory, Tensor] = {}
    packed: dict[Memory, nn.Parameter] = {}
    entries, results = [], []
    for name, parameter, memory in record.parameters:
        fill = plan[name]
        full, part = record.cut.get(name, (name, None))
        wanted = formats.get(id(parameter), dtype)
        if isinstance(wanted, str):
            place, inner = place_of(memory, device), parameters.wanted_dtype(parameter, dtype)
            packed[memory] = pack(name, parameter, wanted, place, inner)
            its = fill if part is None else one_law(fill, part) or fill
            entries.append(Entry(full, packed[memory], its, part))
            continue
        if wanted is not None and parameter.dtype != memory.contents.dtype:
            raise ValueError(
                f"{name} is a view of {memory.contents.dtype} memory as {parameter.dtype}, which "
                f"cannot be {wanted}"
            )
        if memory in made:
            is_plain = parameter.dtype == memory.contents.dtype
            is_its = made[memory].dtype == parameters.wanted_dtype(parameter, wanted)
            if formats and is_plain and not is_its:
                raise ValueError(
                    f"{name} has the memory of a parameter that storage= makes {made[memory].dtype}"
                )
            continue
        made[memory], is_given = _memory(memory, fill, device, wanted)
        if is_given:
            continue
        if memory in cut.of:
            entries += cut.entries(memory, made[memory])
        elif not _is_written_alone(memory, cut):
            results.append(memory)
        elif isinstance(fill, Fill) and parameter.numel() == memory.contents.numel:
            entries.append(Entry(name, view_of(made[memory], parameter), fill))
        else:
            entries.append(Entry(name, made[memory], record.computed(memory)))
    _check_alone(record, model, packed)
    check_neighbours(model, record)
    others = {memory: place_of(memory, device) for _, _, memory in record.others}
    related, waiting = _related(record, {*made, *packed, *others}, own_seed)
    others |= {memory: place_of(memory, device) for memory in related}
    cut.check([*record.memories, *_outside(record, related)], _outside(record, waiting))
    stale = [m for m in waiting if m.is_away and any(s.device != META for s in m.storages)]
    if stale:  # of what gradients lead from: all else is on meta
        lines = [name for name, _ in _outside(record, stale)]
        raise ValueError(
            f"written from parameters whose numbers no model has now, so that nothing tells the values "
            f"that are in memory: {listing('tensor', lines)}"
        )
    checked(entries, plan.seed, progress).write()
    for memory in [*results, *[other for other in others if other not in made]]:
        like = made.get(memory)
        made[memory] = _computed(record, cut, memory, like, others.get(memory, META))
    known = [tensor for _, tensor, _ in (*record.parameters, *record.others)]
    forget(model)
    _give(record, cut, made, known, dtype, search=bool(related))
    for _, parameter, memory in record.parameters:
        if memory in packed:
            exchange(parameter, packed[memory])
    record.pin_names()
    for memory in waiting:
        memory.seed = record.seed  # of some of its numbers, which are decided now
    note_filled(tensor for _, tensor, _ in (*record.parameters, *record.others))
    return model


def recorded_buffers(model: nn.Module, scope: Scope) -> dict[str, Computed]:
    """What was recorded of the buffers, and plain attributes, that are on meta: by name in a plan.

    Raises:
        ValueError: as :func:`recorded_plan`.
    """
    known = ModelRecord(model, scope).known_buffers(model)
    return {name: its for name, its in known.items() if isinstance(its, Computed)}


def _check_alone(record: ModelRecord, model: nn.Module, packed: Mapping[Memory, Tensor]) -> None:
    """Raises ValueError if other tensors have the memory of a parameter that will be packed."""
    if not packed:
        return
    owners = {memory: (name, p) for name, p, memory in record.parameters if memory in packed}
    own = {id(tensor) for tensor in (*remembered(model), *(p for _, p in owners.values()))}
    shared = {
        owners[memory][0]
        for tensor in living(Tensor, lambda tensor: memory_of(tensor) in owners)
        if id(tensor) not in own and (memory := memory_of(tensor)) is not None
    }
    if shared:
        raise ValueError(
            f"what is packed has memory of its own, but there are other tensors of that of "
            f"{listing('parameter', sorted(shared))}"
        )


def place_of(memory: Memory, device: torch.device | str | None = None) -> torch.device:
    """The device that a tensor shall be on: as asked, or as the constructor would have put it."""
    if device is not None and memory.is_away:
        return torch.device(device)
    if memory.place != META:
        return memory.place
    return torch.get_default_device()


def _memory(
    memory: Memory,
    fill: Fill | Computed,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, bool]:
    """Memory to be written [numel], or the values that it was given; and whether it is these."""
    contents, place = memory.contents, place_of(memory, device)
    wanted = dtype if dtype is not None and contents.dtype.is_floating_point else contents.dtype
    values = contents.base if known_values(fill) is not None else None
    if isinstance(values, Tensor) and (values.device, values.dtype) == (place, wanted):
        return values, True
    made = torch.empty(contents.numel, dtype=wanted, device=place)
    advise_huge_pages(made)
    return made, False


def _is_written_alone(memory: Memory, cut: Cut) -> bool:
    """Whether a parameter's memory can be written with others, before all that is computed from them."""
    contents = memory.contents
    has_numbers = contents.dtype.is_floating_point or contents.dtype.is_complex
    return has_numbers and not contents.is_result and not cut.is_read_by(memory)


def _computed(
    record: ModelRecord, cut: Cut, memory: Memory, like: Tensor | None, place: torch.device
) -> Tensor:
    """What was computed: [numel], or of the shape and strides that the last operation gave it."""
    contents = memory.contents
    dtype = contents.dtype if like is None else like.dtype
    place = place if like is None else like.device
    view = contents.base.view if contents.is_result and isinstance(contents.base, Made) else None
    live = cut.live(memory, place, dtype) if cut.is_read_by(memory) else None
    value = record.computed(memory, view).value(place, record.seed, dtype, live)
    # It may be what another memory is made of, or a view of it.
    return value.detach().clone() if contents.is_result else value.detach()


def _outside(record: ModelRecord, memories: Iterable[Memory]) -> list[tuple[str, Memory]]:
    """Memories that the model has no tensor of, with what is said of them."""
    lines = [(record.computed(memory).line, memory) for memory in memories]
    return [(f"made at {line}" if line else "outside of the model", m) for line, m in lines]


def _related(record: ModelRecord, own: set[Memory], seed: int) -> tuple[set[Memory], set[Memory]]:
    """Other memories without values, or of the same random numbers, that depend on a model's.

    Args:
        seed: that the model was recorded with.

    Returns:
        Those whose numbers are all known now, which the record then names; and those that wait for
        another model, or have numbers that no model has in the end.
    """
    kin = frozenset().union(*(memory.kin | memory.contents.sources for memory in own))
    found: set[Memory] = set()
    blocks = {id(memory.block): memory.block for _, memory in record.memories}
    for memory in [memory for block in blocks.values() for memory in block]:
        if memory in own or memory.is_parameter or not memory.storages or not memory.kin & kin:
            continue
        if memory.is_away or not any(source.seen for source in memory.contents.sources):
            found.add(memory)
    known = {memory for memory in found if memory.seed == seed and record.names(memory)}
    return known, found - known


def _give(
    record: ModelRecord,
    cut: Cut,
    made: dict[Memory, Tensor],
    known: list[Tensor],
    dtype: torch.dtype | None,
    search: bool,
) -> None:
    """Gives all tensors of some memories the new ones, where they are.

    Args:
        dtype: that parameters were asked in, and so what gradients lead from to them.
    """
    others = (s for m, v in made.items() for s in m.storages if s is not v.untyped_storage())
    search = search or shared_beyond(known, others)

    def is_wanted(tensor: Tensor) -> bool:
        values = made.get(memory_of(tensor))  # type: ignore[arg-type]
        return values is not None and tensor.untyped_storage() is not values.untyped_storage()

    found = list(living(Tensor, is_wanted)) if search else [t for t in known if is_wanted(t)]
    found = list({id(tensor): tensor for tensor in found}.values())
    of = {id(tensor): its for tensor in found if (its := memory_of(tensor)) is not None}
    _lay_out(made, [(tensor, of[id(tensor)]) for tensor in found])
    grads = [(t, t.grad) for t in found if t.is_leaf and t.grad is not None]
    views = {
        id(t): base for t in found if t.grad_fn is not None and (base := base_of(t)) is not None
    }
    for tensor in found:
        if tensor.is_leaf:
            memory = of[id(tensor)]
            view = _part(made[memory], tensor, memory.contents.dtype)
            exchange(tensor, view.data.requires_grad_(tensor.requires_grad))
    live: dict[int, Tensor] | None = None
    for tensor in found:
        if id(tensor) in views and not views[id(tensor)].is_meta:
            with torch.enable_grad():
                exchange(tensor, view_of(views[id(tensor)], tensor))
        elif not tensor.is_leaf:
            live = _live(of, found) if live is None else live
            computed = record.computed(of[id(tensor)], View.of(tensor))
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            place = made[of[id(tensor)]].device
            parts = cut.live(of[id(tensor)], place, wanted)
            exchange(tensor, computed.value(place, record.seed, wanted, {**parts, **live}))
    for tensor, grad in grads:
        tensor.grad = grad


def _part(values: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """What a tensor is of a memory of a dtype: [numel], or what exactly this tensor is."""
    return view_of(values, like, dtype) if values.dim() == 1 else values


def _lay_out(made: dict[Memory, Tensor], found: list[tuple[Tensor, Memory]]) -> None:
    """Gives results the strides that they were recorded with, if some tensors are other views."""
    for tensor, memory in found:
        base, values = memory.contents.base, made[memory]
        if not memory.contents.is_result or not isinstance(base, Made):
            continue
        if View.of(tensor) != base.view or values.dim() < 2:
            flat = torch.empty(memory.contents.numel, dtype=values.dtype, device=values.device)
            if values.dim() != 1 or values.numel() != flat.numel():
                base.view._replace(dtype=values.dtype).on(flat).copy_(values)
                made[memory] = flat


def _live(of: dict[int, Memory], found: list[Tensor]) -> dict[int, Tensor]:
    """The memories that have their values, by the id of their contents: [numel].

    Gradients lead from them to the tensors that have their elements.
    """
    live: dict[int, Tensor] = {}
    with torch.enable_grad():
        for t in found:
            contents = of[id(t)].contents
            if not t.is_leaf or t.is_meta:
                continue
            if t.numel() == contents.numel:
                live[id(contents)] = t.as_strided((contents.numel,), (1,), 0)
                continue
            is_plain = storage_numel(t) == contents.numel and not Strided.of(t).overlaps
            if t.requires_grad and is_plain:
                whole = live.get(id(contents), t.detach().as_strided((contents.numel,), (1,), 0))
                where = (t.size(), t.stride(), t.storage_offset())
                live[id(contents)] = torch.as_strided_scatter(whole, t, *where)
    return live
