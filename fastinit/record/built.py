"""Built: what a block of ``deferred`` left at each place of each module, whatever is there later.

A load, ``to_empty`` and sharding put other tensors there, of which nothing is recorded. What a module
was built with is still known by these places.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from fastinit.base.text import listing
from fastinit.base.torch_internals import version_of
from fastinit.plan.buffers import SMALL, Values
from fastinit.plan.fit import ALL, Scope
from fastinit.plan.names import joined, named_modules
from fastinit.plan.plan import Plan
from fastinit.record.memories import Memory, is_changed, is_known, memory_of
from fastinit.record.model_record import ModelRecord


class Built(NamedTuple):
    """What the block left in one module, by key."""

    parameters: dict[str, Tensor]
    """Those that are to be written: other tensors of the same elements, as parameters may be swapped."""
    buffers: dict[str, Values]
    """Those with values, or of which it is recorded how they are computed."""


_BUILT: dict[int, tuple[weakref.ref[nn.Module], Built]] = {}
"""By the ``id`` of each module, as modules may be equal to others, or not be hashable."""


def _keep(module: nn.Module, built: Built) -> None:
    key = id(module)

    def gone(ref: weakref.ref[nn.Module]) -> None:
        if key in _BUILT and _BUILT[key][0] is ref:  # no other module has its place by now
            del _BUILT[key]

    _BUILT[key] = weakref.ref(module, gone), built


def note_built(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Remembers what is in some modules now, at the end of their block.

    Returns:
        What is there, and what is remembered of it: tensors of the same memory.
    """
    same: dict[int, Tensor] = {}  # of what is tied, once
    there: list[Tensor] = []
    for module in modules:
        parameters, buffers = {}, {}
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta and memory_of(parameter) is not None:
                if id(parameter) not in same:
                    same[id(parameter)] = parameter.detach()
                    there += (parameter, same[id(parameter)])
                parameters[key] = same[id(parameter)]
        for key, buffer in module._buffers.items():
            if buffer is None or isinstance(buffer, UninitializedBuffer):
                continue
            is_there = not buffer.is_meta or memory_of(buffer) is not None
            if is_there and not buffer.is_inference():
                buffers[key] = Values(buffer.detach(), version_of(buffer))
        if parameters or buffers:
            _keep(module, Built(parameters, buffers))
    return there


def built(module: nn.Module) -> Built | None:
    """What is remembered of a module that a block built."""
    found = _BUILT.get(id(module))
    return found[1] if found is not None and found[0]() is module else None


def remembered(model: nn.Module) -> Iterator[Tensor]:
    """What is kept of its parameters: other tensors of the same memory."""
    for module in model.modules():
        if (left := built(module)) is not None:
            yield from left.parameters.values()


def forget(model: nn.Module) -> None:
    """As a model is written, only small buffers of known values are remembered of it any more."""
    for module in model.modules():
        if (left := built(module)) is None:
            continue
        del _BUILT[id(module)]
        kept = {key: its for key, its in left.buffers.items() if is_known(its.tensor)}
        kept = {key: its for key, its in kept.items() if its.tensor.numel() < SMALL}
        if kept:
            _keep(module, Built({}, kept))


def constructor_plan(model: nn.Module, scope: Scope = ALL) -> Plan | None:
    """The plan of what the constructor left in a model, also where other tensors are there now.

    What is not known is not in it: parameters that were not recorded, that the constructor left
    unwritten, or that were written on meta. None if nothing is known.

    Raises:
        ValueError: as :func:`fastinit.recorded_plan`, for parts recorded with different seeds and what
            is scripted.
    """
    is_known = any(map(is_usable, model.parameters()))
    if not is_known and all(built(module) is None for module in model.modules()):
        return None
    with _as_built(model):
        return ModelRecord(model, scope).whole_plan(model)


@contextmanager
def names_pinned(model: nn.Module, scope: Scope = ALL) -> Iterator[None]:
    """What is written in the block, and after it, has the numbers that it has in the whole model, as it
    was built; unless the block fails.
    """
    with _as_built(model):
        record = ModelRecord(model, scope)
    new = [origin for origin in record.streams if origin not in origin.source.streams]
    record.pin_names()
    try:
        yield
    except BaseException:
        for origin in new:
            del origin.source.streams[origin]
        raise


def is_usable(parameter: Tensor) -> bool:
    """Whether a parameter on meta is recorded, as it was when its block ended."""
    memory = memory_of(parameter)
    return memory is not None and memory.has_values(parameter) and not is_changed(parameter)


@contextmanager
def _as_built(model: nn.Module) -> Iterator[None]:
    """Within the block a model has what the constructor left in it, without what is not known."""
    undo: list[tuple[dict[str, Any], str, Any]] = []

    def put(owner: dict[str, Any], key: str, tensor: Tensor | None) -> None:
        undo.append((owner, key, owner[key]))
        owner[key] = tensor

    try:
        for module in model.modules():
            left = built(module) or Built({}, {})
            for key, tensor in list(module._parameters.items()):
                if tensor is not None and (found := left.parameters.get(key)) is not None:
                    put(module._parameters, key, found if is_usable(found) else None)
                elif tensor is not None and tensor.is_meta and not is_usable(tensor):
                    put(module._parameters, key, None)
            for key, buffer in list(module._buffers.items()):
                known = left.buffers.get(key)
                if buffer is not None and known is not None:
                    is_same = version_of(known.tensor) == known.version
                    put(module._buffers, key, known.tensor if is_same else None)
                elif buffer is not None and (not buffer.is_meta or memory_of(buffer) is None):
                    put(module._buffers, key, None)
        yield
    finally:
        for owner, key, tensor in undo:
            owner[key] = tensor


def check_shared(model: nn.Module, prefix: str = "") -> None:
    """Raises if recorded parameters have the memory of others that were replaced since.

    So a load with ``assign=True`` leaves one of two names of a tied parameter. It would get the values
    of the constructor, and the other those of the file.

    Raises:
        ValueError: there are any (all are listed).
    """
    replaced: dict[Memory, str] = {}
    recorded: list[tuple[str, Memory]] = []
    for path, module in named_modules(model):
        left = built(module)
        for key, found in left.parameters.items() if left is not None else ():
            parameter, memory = module._parameters.get(key), memory_of(found)
            name = prefix + joined(path, key)
            if parameter is None or memory is None:
                continue
            if memory_of(parameter) is memory:
                recorded.append((name, memory))
            else:
                replaced.setdefault(memory, name)
    if apart := [f"{name} (of {replaced[m]})" for name, m in recorded if m in replaced]:
        raise ValueError(
            f"they share memory with parameters that were replaced since, as by a load with "
            f"assign=True; tie them again, as fastinit.fill_missing_ does: {listing('parameter', apart)}"
        )
