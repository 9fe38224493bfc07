"""Missing weights: what a load left out, filled from the plan of the constructor."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from fastinit.base.patterns import Choice
from fastinit.base.text import listing
from fastinit.elements import shards as shard
from fastinit.elements.part import Run
from fastinit.fills.agreement import agreeing
from fastinit.plan import parameters
from fastinit.plan.applied import Prepared, prepared, texts, write_prepared_
from fastinit.plan.buffers import check_buffers
from fastinit.plan.fit import Fitted, Parts, Scope
from fastinit.plan.names import Walk
from fastinit.plan.plan import Plan
from fastinit.plan.replay import known_values
from fastinit.plan.rows import held_rows
from fastinit.plan.write import Progress
from fastinit.record.alike import Alike
from fastinit.record.audit import (
    LACKING,
    Audit,
    Audited,
    Held,
    State,
    audited,
    held,
    is_claimed,
    is_loaded,
    is_replaced,
    state_of,
)
from fastinit.record.built import check_shared, constructor_plan, names_pinned
from fastinit.record.materialize import place_of, write_recorded_
from fastinit.record.memories import memory_of
from fastinit.record.named import Missing, Named


def fill_missing_(
    model: nn.Module,
    missing: Missing | None = None,
    *,
    plan: Plan | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prefix: str = "",
    parts: Parts | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Fills what a load left out, and nothing else, and says what became of each parameter and buffer.

    Filled are tensors that have no values (on meta), those that are named, and buffers that no
    checkpoint holds and that are not as the constructor made them, as after ``to_empty``. They get what
    the constructor would have given them: numbers of their names, whatever else was loaded, and whole
    or sharded. What the constructor tied is tied again where one name was loaded and the other is
    missing. Nothing is written unless everything can be.

    Args:
        model: built within :func:`deferred`, or with a plan anyhow. Its parameters may be in place or
            sharded (DTensors) since, after ``to_empty``, ``fully_shard`` or a load.
        missing: names, or shell-style patterns of names, of what was not loaded, such as the
            ``missing_keys`` that ``load_state_dict(strict=False)`` returns. All else was loaded then,
            and must not be on meta; a tied parameter was loaded if one of its names was. Or a map of
            such to the rows that are missing, of a parameter that has memory: a slice, whole numbers
            or a tensor of these or of bools; None for all. By default what is on meta is missing.
        plan: what the parameters shall be; by default what the constructor recorded.
        seed: in [0, 2^64); by default the plan's.
        device: where those on meta get memory; by default where the others are, if that is one device,
            or else where the constructor would have put them.
        dtype: of floating-point parameters on meta; by default the constructor's.
        prefix: what stands before the model's names in the plan, as of :meth:`Plan.apply_`; names in
            ``missing`` are without it.
        parts: as of :meth:`Plan.apply_`.
        progress: as of :meth:`Plan.apply_`.

    Returns:
        What was loaded, filled, tied and left. Names are the model's.

    Raises:
        ValueError: tensors without values of which the plan knows nothing, or that were written on meta,
            where nothing is kept (a load without ``assign=True``); tensors on meta that are not among
            the missing; names that the model lacks; without ``missing``, parameters of which nothing
            tells whether they were loaded, where others were written since ``to_empty``, where nothing
            is known of the model (no block, no plan, nothing on meta), or with a plan that has other
            values than were loaded within the block of ``deferred``; and as :meth:`Plan.apply_`. All
            are listed, and the model is as it was.
        NotImplementedError, RuntimeError, TypeError: as :meth:`Plan.apply_`.

    >>> from fastinit import deferred
    >>> with deferred(seed=0):
    ...     model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> result = model.load_state_dict({"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4)},
    ...                                strict=False, assign=True)
    >>> print(fill_missing_(model, result.missing_keys))
    tensor    count  elements  state
    ---------------------------------
    0.weight      1        16  loaded
    0.bias        1         4  loaded
    1.weight      1         8  filled
    1.bias        1         2  filled
    """
    parameters.reshard_(model)
    meshes = parameters.meshes_of(Walk.of(model))
    scope = Scope(prefix, parts=parts)
    with agreeing(meshes, 0):  # before ranks compare ties, an error of one is one of all
        parameters.check_place(device, dtype)
        scope.check(model, ())
        known = _plan_of(model, plan, missing, seed, scope)
        named = None if missing is None else Named(missing)
        lacking = LACKING if plan is None else ""
        found = [_decided(item, known, scope, named, lacking) for item in held(model)]
        problems = [] if named is None else named.problems([each.item for each in found])
        if plan is not None:
            known, other = _with_loaded(known, found, model, scope)
            if other and named is None:
                why = "loaded within their block, but the plan has other values, so say missing="
                problems.append(f"{why}: {listing('tensor', other)}")
    ties, notes, apart = _ties(found, known, scope)
    problems += _problems(found, ties, known, scope, named is not None) + apart
    wanted = [each for each in found if each.is_wanted and id(each.item.tensor) not in ties]
    ready: Prepared | None = None
    with _tied(found, ties):
        with agreeing(meshes, known.seed) as said:
            if problems:
                raise ValueError("nothing was filled: " + "; ".join(problems))
            place = _place(found) if device is None else device
            is_recorded = plan is None and _is_recorded(wanted)
            if wanted and not is_recorded:
                planned = [each for some in wanted for each in _planned(some, known, scope)]
                its = scope._replace(only=_names_of_buffers(wanted, scope))
                ready = prepared(known, model, planned, its, place, dtype, "restore", progress)
                said.update(texts(known, ready.stored))
        if ready is not None:
            write_prepared_(model, ready)
        elif wanted:
            _fill_recorded(model, wanted, known, scope, place, dtype, progress)
    noted = [each._replace(note=notes.get(id(each.item.tensor), each.note)) for each in found]
    return _audit(model, noted, ties, known, scope)


def _plan_of(
    model: nn.Module, plan: Plan | None, missing: Missing | None, seed: int | None, scope: Scope
) -> Plan:
    """The plan that is given, or the constructor's; with another seed, if one is given."""
    known = constructor_plan(model, scope) if plan is None else plan
    if known is None and missing is None and not any(p.is_meta for p in model.parameters()):
        raise ValueError(
            f"nothing was filled: nothing tells what was loaded, as this model was {LACKING}; "
            f"say plan=, and missing= ([]: all was loaded)"
        )
    known = Plan({}) if known is None else known
    if seed is None:
        return known
    return Plan(known, seed=seed, aliases=known.aliases, buffers=known.buffers)


class _Found(NamedTuple):
    """A tensor, and what is to be done about it."""

    item: Held
    state: State
    note: str
    is_wanted: bool
    """Whether it is to be filled, or rows of it."""
    rows: list[Run] | None = None
    """Of a parameter, those that are; by default all."""


def _decided(item: Held, plan: Plan, scope: Scope, named: Named | None, lacking: str) -> _Found:
    state, note = state_of(item, plan, scope, lacking=lacking)
    is_stored = item.kind in ("parameter", "buffer")
    if named is not None and state != "lazy" and (rows := named.rows(item, scope)) is not None:
        return _Found(item, state, note, True, rows)
    if is_loaded(item) and (named is None or not named.has(item)):
        return _Found(item, "loaded", "", True)
    if named is None or not (is_stored or named.has(item)):
        to_restore = state == "changed" and not is_stored
        return _Found(item, state, note, state == "recorded" or to_restore)
    if named.has(item):
        return _Found(item, state, note, state not in ("lazy", "made", "unwritten"))
    is_there = item.is_offloaded or not item.tensor.is_meta
    if is_there and is_claimed(item):
        return _Found(item, state, "its module calls it loaded where no file has it", False)
    return _Found(item, "loaded" if is_there else state, note, False)


def _with_loaded(
    plan: Plan, found: Sequence[_Found], model: nn.Module, scope: Scope
) -> tuple[Plan, list[str]]:
    """A plan with what was loaded within the model's block, and of what it had something else."""
    items = [each.item for each in found if each.state == "loaded" and each.is_wanted]
    own = constructor_plan(model, scope) if items else None
    if own is None:
        return plan, []
    fills, other = dict(plan), []
    for item in items:
        names = item.in_plan(scope)
        name = next((plan.aliases.get(n, n) for n in names if n in plan), names[0])
        loaded = next(own[n] for n in names if n in own)
        if fills.setdefault(name, loaded) != loaded:
            other.append(item.names[0])
        fills[name] = loaded
    return Plan(fills, seed=plan.seed, aliases=plan.aliases, buffers=plan.buffers), other


def _problems(
    found: Sequence[_Found], ties: Mapping[int, Held], plan: Plan, scope: Scope, is_told: bool
) -> list[str]:
    """Why it cannot be done, for each reason the tensors."""
    why: dict[str, list[str]] = {}

    def note(reason: str, item: Held) -> None:
        why.setdefault(reason, []).append(item.names[0])

    for item, state, said, is_wanted, rows in found:
        if id(item.tensor) in ties:
            continue
        known = plan if item.kind == "parameter" else plan.buffers
        is_known = state == "recorded" or any(n in known for n in item.in_plan(scope))
        if state == "unwritten":
            note(f"nobody wrote these, and {said or 'the plan does not have them'}", item)
        elif is_wanted and item.is_offloaded:
            note("offloaded by accelerate, so fill these before the model is dispatched", item)
        elif is_wanted and not is_known:
            note("nobody wrote these, and the plan does not have them", item)
        elif rows is not None and item.tensor.is_meta:
            note("on meta, though only rows are missing (load with assign=True)", item)
        elif state == "recorded" and not is_wanted:
            note("on meta, though not among the missing (load with assign=True)", item)
    if not is_told:
        replaced = [
            each for each in found if each.item.kind == "parameter" and is_replaced(each.item)
        ]
        # What a load replaced leaves the rest on meta; where none is left, to_empty may have done it.
        left = any(each.item.kind == "parameter" and each.item.tensor.is_meta for each in found)
        if not left or any(each.state == "written" for each in replaced):
            for each in replaced:
                if each.state == "given":
                    said = "nothing tells whether these were loaded, so say missing= ([]: all were)"
                    note(said, each.item)
    return [f"{reason}: {listing('tensor', names)}" for reason, names in why.items()]


def _ties(
    found: Sequence[_Found], plan: Plan, scope: Scope
) -> tuple[dict[int, Held], dict[int, str], list[str]]:
    """What becomes the same parameter as another again, by its ``id``; what does not; why it cannot.

    The constructor made one of them; a load or ``to_empty`` made them two.
    """
    groups: dict[str, list[_Found]] = {}
    for each in found:
        names, part = scope.planned(each.item.names, each.item.tensor)
        names = [name for name in names if name in plan]
        is_whole = part is None or part.is_whole
        is_here = each.state != "lazy" and not each.item.is_offloaded
        if each.item.kind == "parameter" and is_here and names and is_whole:
            groups.setdefault(plan.aliases.get(names[0], names[0]), []).append(each)
    ties: dict[int, Held] = {}
    notes: dict[int, str] = {}
    problems = []
    alike = Alike([[each.item.tensor for each in group] for group in groups.values()])
    for group in groups.values():
        there = [
            each.item
            for each in group
            if not each.is_wanted or each.rows is not None or each.state == "loaded"
        ]
        source, *others = [*there, *(e.item for e in group if e.item not in there)]
        for item in others:
            if item in there and not alike.are(item.tensor, source.tensor):
                notes[id(item.tensor)] = f"not tied to {source.names[0]} again, as both were loaded"
                continue
            if item.tensor.shape != source.tensor.shape:
                problems.append(
                    f"tied by the constructor, but of other shapes here: {source.names[0]}, "
                    f"{item.names[0]}"
                )
            ties[id(item.tensor)] = source
    return ties, notes, problems


@contextmanager
def _tied(found: Sequence[_Found], ties: Mapping[int, Held]) -> Iterator[None]:
    """Ties parameters, and unties them again if the block fails."""
    done: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for item, *_ in found:
            for _, _, module, key in item.places if id(item.tensor) in ties else ():
                done.append((module, key, getattr(module, key)))
                setattr(module, key, ties[id(item.tensor)].tensor)
        yield
    except BaseException:
        for module, key, before in done:
            setattr(module, key, before)
        raise


def _planned(each: _Found, plan: Plan, scope: Scope) -> Iterator[Fitted]:
    """A parameter, or what this rank has of its rows, as the plan has it."""
    if each.item.kind != "parameter":
        return
    names, part = scope.planned(each.item.names, each.item.tensor)
    name = next(plan.aliases.get(name, name) for name in names if name in plan)
    parameter = each.item.tensor
    assert isinstance(parameter, nn.Parameter)
    if each.rows is None:
        yield Fitted(name, parameter, part)
        return
    for view, its in held_rows(parameter, each.rows, name, part):
        yield Fitted(name, view, its)


def _names_of_buffers(wanted: Sequence[_Found], scope: Scope) -> Choice:
    items = [each.item for each in wanted if each.item.kind != "parameter"]
    return Choice(tuple(glob.escape(name) for item in items for name in item.in_plan(scope)))


def _place(found: Sequence[_Found]) -> torch.device | str | None:
    """Where parameters on meta get memory: where the others are, if that is one device."""
    tensors = [each.item.tensor for each in found if each.item.kind == "parameter"]
    devices = {tensor.device for tensor in tensors if not tensor.is_meta}
    if len(devices) == 1:
        return devices.pop()
    meshes = {t.device_mesh.device_type for t in tensors if t.is_meta and shard.is_dtensor(t)}
    if not devices and not meshes:  # where the constructor would have put them
        memories = [memory_of(tensor) for tensor in tensors]
        devices = {place_of(memory) for memory in memories if memory is not None}
        return devices.pop() if len(devices) == 1 and None not in memories else None
    return meshes.pop() if len(meshes) == 1 and not devices else None


def _is_recorded(wanted: Sequence[_Found]) -> bool:
    """Whether what is wanted, buffers in memory apart, is what was recorded, in its places."""
    tensors = [e.item.tensor for e in wanted if e.item.kind == "parameter" or e.item.tensor.is_meta]
    return bool(tensors) and all(t.is_meta and memory_of(t) is not None for t in tensors)


def _fill_recorded(
    model: nn.Module,
    wanted: Sequence[_Found],
    plan: Plan,
    scope: Scope,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> None:
    """Writes what is recorded, for whoever holds it, and puts back buffers that lost their values."""
    lost = [each for each in wanted if not each.item.tensor.is_meta]
    its = scope._replace(only=_names_of_buffers(lost, scope))
    check_shared(model, scope.prefix)
    restoring = check_buffers(model, plan.buffers, plan.seed, device, "restore", its)
    with names_pinned(model, scope):
        write_recorded_(
            model,
            device,
            dtype,
            prefix=scope.prefix,
            parts=scope.parts,
            progress=progress,
            seed=plan.seed,
        )
    restoring.run()


def _audit(
    model: nn.Module, found: Sequence[_Found], ties: Mapping[int, Held], plan: Plan, scope: Scope
) -> Audit:
    """What became of each tensor."""
    of: dict[str, tuple[State, str]] = {}
    gone: list[Audited] = []
    for item, state, note, is_wanted, rows in found:
        if is_wanted:
            fills = [plan[name] for name in item.in_plan(scope) if name in plan]
            is_given = any(known_values(fill) is not None for fill in fills)
            if state != "loaded":
                state = "made" if is_given else "filled"
        elif state == "filled":
            state = "kept"
        if rows is not None:
            said = ", ".join(f"{start}:{start + count}" for start, count in rows)
            note = f"rows {said} filled, the others loaded"
        if item.kind == "attribute":
            gone.append(audited(item, state, note))
        elif id(item.tensor) not in ties:
            of.update(dict.fromkeys(item.names, (state, note)))
    there = [item for item in held(model) if item.kind != "attribute"]
    known = [(item, next(of[name] for name in item.names if name in of)) for item in there]
    return Audit((*(audited(item, *what) for item, what in known), *gone))
