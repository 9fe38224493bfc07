"""Writes: what an operation does to the record of the tensors that it writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill
from fastinit.plan.history import Call, Contents, Made, Own, Snapshot, View
from fastinit.plan.streams import Origin, Source
from fastinit.record import torch_operations as operations
from fastinit.record.calls import after_copy, call_of
from fastinit.record.folded import folded
from fastinit.record.memories import (
    Memory,
    are_away,
    forget,
    has_memory,
    is_known,
    is_random,
    known_contents,
    memory_of,
)
from fastinit.record.recording import Recording
from fastinit.record.refused import HINT
from fastinit.record.results import contents_of, keep_result
from fastinit.record.values import run_on_meta

aten = torch.ops.aten


def write(
    recording: Recording,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    written: list[Tensor],
    tensors: list[Tensor],
    draws: bool,
) -> Any:
    """Runs an operation that writes, and records what it does to the memories of what it writes.

    Args:
        written: what it writes.
        tensors: all its tensors.
        draws: whether it draws numbers of the streams.
    """
    sources = [t for t in tensors if not any(t is w for w in written) and memory_of(t) is not None]
    is_away = are_away(tensors)
    is_plain = not is_away and not draws and not any(map(is_random, sources))
    if is_plain and all(memory_of(target) is None for target in written):
        return func(*args, **kwargs)
    if is_away and not draws and operations.is_random(func):
        return _drawn_at_once(recording, func, args, kwargs, written)
    memories = [memory_of(target) or _known(recording, func, target) for target in written]
    if len(written) > 1:
        return _write_several(recording, func, args, kwargs, written, memories, is_away, draws)
    (target,), (memory,) = written, memories
    if operations.is_scaled(func, args, kwargs):
        raise recording.refusals.refuse(
            f"a fill with scale= at {{line}}, which is how values are stored, and not in a plan: {HINT}"
        )
    fill = operations.fill_of(func, args, kwargs, is_known)
    if is_away:
        if fill is None:  # otherwise there is nothing to learn from it
            run_on_meta(recording, func, args, kwargs)
        after = _after(recording, memory, func, args, kwargs, target, is_away, draws, fill)
        out = operations.returned(func, written)
    else:
        whole = Strided.of(target).merged() == memory.contents.whole
        if is_plain and (memory.contents.is_unwritten or (whole and operations.overwrites(func))):
            forget(target)  # values that no chance had a part in are there to be looked at
            return func(*args, **kwargs)
        after = _after(recording, memory, func, args, kwargs, target, is_away, draws, fill)
        out = func(*args, **kwargs)
    memory.contents = after
    for source in sources:
        memory.kin |= its.kin if (its := memory_of(source)) is not None else frozenset()
    memory.versions.clear()
    if is_away:
        memory.promise()
    return out


def _known(recording: Recording, func: Any, target: Tensor) -> Memory:
    """The record, from now on, of a tensor of known values that is written."""
    if not has_memory(target):
        raise recording.refusals.refuse(
            f"{func} at {{line}} writes a tensor of {type(target)}: {HINT}"
        )
    return recording.keep(target, Memory(known_contents(target), recording.seed))


def _after(
    recording: Recording,
    memory: Memory,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Tensor,
    is_away: bool,
    draws: bool,
    fill: Fill | None,
) -> Contents:
    """The contents after a write.

    Args:
        fill: that it writes, if it writes one.
    """
    contents, view, region = memory.contents, View.of(target), Strided.merged_of(target)
    if view.is_plain(contents.dtype) and args and target is args[0]:
        if fill is not None:
            return memory.filled(region, fill)
        mirrors = not memory.is_read
        change = operations.change_of(func, args, kwargs, is_known, mirrors)
        moved = contents.mapped(region, change) if change is not None else None
        if moved is not None:
            return moved
        if func is aten.copy_.default and (copied := after_copy(contents, region, args[1])):
            return copied
    if not view.is_plain(view.dtype):
        raise recording.refusals.refuse(
            f"{func} at {{line}} writes a conjugate that is not made yet: {HINT}"
        )
    call = call_of(recording, func, args, kwargs, target, is_away)
    if torch.Tag.pointwise not in func.tags:
        memory.read()
    origin = memory.origin(region, False) if draws else None
    # Arithmetic in place gives an element a value only from the one that it had.
    is_arithmetic = torch.Tag.pointwise in func.tags and not operations.overwrites(func)
    overwrites = None if is_arithmetic else view
    return folded(contents.called(call._replace(origin=origin, overwrites=overwrites)))


def _write_several(
    recording: Recording,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    written: list[Tensor],
    memories: list[Memory],
    is_away: bool,
    draws: bool,
) -> Any:
    """A write of several tensors: recorded as what it gives for copies of them."""
    call = call_of(recording, operations.OutOfPlace(func), args, kwargs, None, is_away)
    if draws:
        call = call._replace(origin=Origin(Source()))
    kin = frozenset().union(*(m.kin for m in memories))
    first = len(internals.schema_returns(func))
    out = run_on_meta(recording, func, args, kwargs) if is_away else func(*args, **kwargs)
    for index, (target, memory) in enumerate(zip(written, memories)):
        whole = Strided.contiguous(target.shape)
        made = Made(call, first + index, View(whole, target.dtype))
        values = Contents(target.numel(), target.dtype, memory.place, made)
        copy = Call(
            aten.copy_.default,
            (Own(View.of(target)), Snapshot(values, View(whole, target.dtype))),
            {},
            call.line,
            overwrites=View.of(target),
        )
        memory.contents = memory.contents.called(copy)
        memory.kin |= kin
        memory.versions.clear()
        if is_away:
            memory.promise()
    results = out if isinstance(out, (list, tuple)) else [out]
    returned = operations.returned(func, written, results)
    for index, result in enumerate(returned if isinstance(returned, (list, tuple)) else [returned]):
        if isinstance(result, Tensor) and has_memory(result) and memory_of(result) is None:
            made_too = contents_of(result, call, index, memories[0].place)
            keep_result(recording, result, made_too, is_away, kin)
    return returned


def _drawn_at_once(
    recording: Recording,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    written: list[Tensor],
) -> Any:
    """Numbers of the constructor's own generator, which are known as soon as they are drawn."""
    (target,) = written
    generator, memory = recording.generator(args, kwargs), memory_of(target)
    assert generator is not None
    assert memory is not None
    place = generator.device if memory.place.type == "meta" else memory.place
    with internals.without_dispatch():
        values = torch.empty(target.shape, dtype=target.dtype, device=place)
        func(values, *args[1:], **kwargs)
    both = [target, values]
    return write(recording, aten.copy_.default, (target, values), {}, [target], both, False)
