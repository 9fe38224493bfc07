"""Results: the records of the tensors that an operation makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.plan.history import Call, Contents, Made, View
from fastinit.plan.streams import Origin, Source
from fastinit.record import torch_operations as operations
from fastinit.record.calls import after_copy, call_of
from fastinit.record.memories import (
    META,
    Memory,
    are_away,
    has_memory,
    is_known,
    memory_of,
    storage_numel,
)
from fastinit.record.recording import Recording
from fastinit.record.refused import HINT, line
from fastinit.record.values import look, of_known_values, run_on_meta

aten = torch.ops.aten


def made_new(
    recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], draws: bool
) -> Any:
    """A tensor whose values do not come from others; like one that is away, it is a real one.

    Args:
        draws: whether they are numbers of the streams.
    """
    like = args[0] if args and isinstance(args[0], Tensor) else None
    memory = memory_of(like) if like is not None else None
    place = recording.place if kwargs.get("device") == META else None
    if kwargs.get("device") is None and memory is not None and memory.is_away:
        kwargs = {**kwargs, "device": memory.place}
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or not has_memory(out):
        return out
    contents = Contents(storage_numel(out), out.dtype, place or out.device)
    if "empty" in internals.operator_name(func):
        recording.keep(out, Memory(contents, recording.seed, is_away=out.is_meta))
    elif draws or out.is_meta:
        memory = recording.keep(out, Memory(contents, recording.seed, is_away=out.is_meta))
        fill = operations.fill_of_new(func, args, out)
        origin = memory.origin(contents.whole, fill is not None) if draws else None
        if fill is not None:
            memory.contents = contents.filled(contents.whole, fill, origin)
        else:
            call = Call(func, args, {**kwargs, "device": contents.device}, line(), origin)
            memory.contents = replace(contents, base=Made(call, 0, View.of(out)))
    return out


def compute(
    recording: Recording,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[Tensor],
    draws: bool,
) -> Any:
    """Runs an operation, and records its results.

    Args:
        tensors: all that it takes.
        draws: whether it draws numbers of the streams.
    """
    is_away = are_away(tensors)
    args = operations.with_indices(func, args, is_known)
    if operations.shows_values(func, args):
        if is_away:
            return of_known_values(recording, func, args, kwargs)
        for tensor in tensors:
            look(recording, tensor)
        return func(*args, **kwargs)
    if is_away:
        if recording.is_autocast and not operations.is_of_any_dtype(func):
            raise recording.refusals.refuse(f"{func} at {{line}} within autocast: {HINT}")
        out = run_on_meta(recording, func, args, kwargs)
    else:
        out = func(*args, **kwargs)
        if not draws and all(memory_of(tensor) is None for tensor in tensors):
            return out
    found = [memory for t in tensors if (memory := memory_of(t)) is not None]
    place = next((memory.place for memory in found if memory.is_away), None)
    kin = frozenset().union(*(memory.kin for memory in found))
    call: Call | None = None
    for index, result in enumerate(out if isinstance(out, (list, tuple)) else [out]):
        if not isinstance(result, Tensor):
            continue
        if not has_memory(result):
            if is_away:
                raise recording.refusals.refuse(
                    f"{func} at {{line}} makes a tensor of layout {result.layout} of a parameter that "
                    f"has no values yet: {HINT}"
                )
            for tensor in tensors:
                look(recording, tensor)
            continue
        if memory_of(result) is not None:
            continue  # a view after all
        contents = _folded(func, args, kwargs, result, place or result.device)
        if contents is None:
            if call is None:
                call = call_of(recording, func, args, kwargs, None, is_away)
                if draws:
                    call = call._replace(origin=Origin(Source()))
            contents = contents_of(result, call, index, place or result.device)
        keep_result(recording, result, contents, is_away, kin)
    return out


def elsewhere(recording: Recording, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """A copy of another dtype, or for another device, of what has no values."""
    device = kwargs.get("device")
    out: Tensor = compute(
        recording, aten._to_copy.default, (source,), {**kwargs, "device": None}, [source], False
    )
    made = memory_of(out)
    if device is not None and made is not None:
        made.contents = replace(made.contents, device=torch.device(device))
    return out


def contents_of(result: Tensor, call: Call, index: int, place: torch.device) -> Contents:
    """The contents of the memory of one of a call's results."""
    made = Made(call, index, View.of(result))
    return Contents(storage_numel(result), result.dtype, place, made)


def keep_result(
    recording: Recording, result: Tensor, contents: Contents, is_away: bool, kin: frozenset[Source]
) -> None:
    """Records a result's memory.

    Args:
        kin: the sources of the memories that it was computed from.
    """
    memory = recording.keep(result, Memory(contents, recording.seed, is_away=is_away, kin=kin))
    if is_away:
        memory.promise()


def _folded(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Tensor,
    place: torch.device,
) -> Contents | None:
    """A result that is Fills: a copy of what is, or a multiple of it."""
    if not args or not isinstance(args[0], Tensor) or not out.is_floating_point():
        return None
    source = memory_of(args[0])
    if torch.is_grad_enabled() and args[0].requires_grad:
        return None  # gradients lead from the result to what it was made of
    if source is None or args[0].shape != out.shape or args[0].stride() != out.stride():
        return None
    into = Contents(storage_numel(out), out.dtype, place, is_loaded=source.contents.is_loaded)
    copied = after_copy(into, into.whole, args[0])
    # Of these, padding is a copy where it adds nothing.
    if copied is None or func in (
        *(aten.clone.default, aten._to_copy.default),
        aten.constant_pad_nd.default,
    ):
        return copied
    other = memory_of(args[1]) if len(args) == 2 and isinstance(args[1], Tensor) else None
    if func is aten.add.Tensor and other is not None and not kwargs:
        added = after_copy(into, into.whole, args[1])
        return None if added is None else _sum(copied, added)
    change = operations.change_of(func, args, kwargs, is_known, mirrors=False)
    return copied.mapped(into.whole, change) if change is not None else None


def _sum(one: Contents, other: Contents) -> Contents | None:
    """The sum of two contents, where that is a Fill: of the same numbers."""
    value, added = one.fills, other.fills
    if not value or not added or len(value) != 1 or len(added) != 1:
        return None
    if value[0].origin != added[0].origin:
        return None
    return one.mapped(one.whole, lambda fill: fill.plus(added[0].fill))
