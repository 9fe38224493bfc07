"""What a model's own initialisation does, recorded of an unsharded twin.

Trainers build a model on meta, shard it, give it memory, and only then have it initialise itself, by a
method of theirs. What that does to a shard depends on how the model was cut, or makes each whole
parameter on each rank. So the method is asked of a twin instead: the same modules, with whole parameters
that have no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from fastinit.base.distributed_internals import class_before_fsdp2
from fastinit.base.text import listing
from fastinit.elements import shards
from fastinit.plan.names import joined, named_buffers, named_modules
from fastinit.plan.plan import Plan
from fastinit.record.block import deferred
from fastinit.record.materialize import recorded_plan
from fastinit.record.memories import memory_of

M = TypeVar("M", bound=nn.Module)


def plan_of(model: M, initialize: Callable[[M], object], seed: int = 0) -> Plan:
    """The plan of what ``initialize`` does to a model, whole or sharded, on meta or not.

    Nothing of the model is written. Whatever generators ``initialize`` draws from, its numbers are those
    of the seed and the parameters' names. The plan knows the buffers, too.

    Args:
        model: what is sharded in it is a DTensor.
        initialize: is given the twin: ``lambda twin: twin.init_weights()``. There, parameters are on the
            CPU, as far as it can tell, and ``to_empty`` does nothing. What it sets as other attributes
            of modules is lost with the twin.
        seed: in [0, 2^64).

    Raises:
        ValueError: parameters or buffers that nobody wrote, or that it makes others (all are listed).
        DeferredError: what cannot be recorded (:func:`fastinit.deferred`).
        NotImplementedError: plain tensors that are known to be shards.
    """
    for name, _, _, parameter in _places(model):
        shards.check_held(parameter, name)
    with deferred(seed, keep_generators=False):
        twin = _twin(model)
        initialize(twin)
    unwritten = [name for name, buffer in named_buffers(twin) if not _is_written(buffer)]
    if unwritten:
        raise ValueError(f"nobody wrote {listing('buffer', unwritten)}")
    before, after = _kinds(model), _kinds(twin)
    if other := [name for name in before if before[name] != after.get(name)]:
        raise ValueError(
            f"initialisation makes others, of another shape or dtype, of {listing('parameter', other)}"
        )
    return recorded_plan(twin)


def write_(model: M, plan: Plan, device: torch.device | str | None = None) -> M:
    """Writes a plan of :func:`plan_of`, with what it ties and its buffers, and returns the model.

    Args:
        device: where what is on meta gets memory.

    Raises:
        As :meth:`fastinit.Plan.apply_`; the model is then as it was.
    """
    with _tied_as(plan, model):
        return plan.apply_(model, device=device, buffers="restore")


def _twin(model: M) -> M:
    """The same modules, with whole parameters of no values; to be made within a recorded block."""
    twins: dict[int, nn.Module] = {}
    made: dict[int, Tensor] = {}
    for module in model.modules():
        twins[id(module)] = object.__new__(class_before_fsdp2(module))
    for module in model.modules():
        twin = twins[id(module)]
        held = {key: twins.get(id(value), value) for key, value in vars(module).items()}
        twin.__dict__.update(held, _parameters={}, _buffers={}, _modules={})
        twin.__dict__["to_empty"] = lambda *args, twin=twin, **kwargs: twin
        for key, child in module._modules.items():
            twin._modules[key] = None if child is None else twins[id(child)]
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            twin.register_parameter(
                key, None if parameter is None else cast(nn.Parameter, made[id(parameter)])
            )
        for key, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in made:
                made[id(buffer)] = _buffer(buffer)
            twin._buffers[key] = None if buffer is None else made[id(buffer)]
    return cast(M, twins[id(model)])


def _buffer(buffer: Tensor) -> Tensor:
    """A buffer of the twin: unwritten, where the model's is a shard or has no values either."""
    if buffer.is_meta or shards.is_dtensor(buffer):
        return torch.empty(buffer.shape, dtype=buffer.dtype)
    return buffer.detach().to("cpu", copy=True)


def _is_written(buffer: Tensor) -> bool:
    memory = memory_of(buffer)
    return not buffer.is_meta if memory is None else memory.has_values(buffer)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(name, module, key, parameter) of each place in a model that has one."""
    for name, module in named_modules(model, remove_duplicate=False):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield joined(name, key), module, key, parameter


def _kinds(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (p.shape, p.dtype) for name, _, _, p in _places(model)}


@contextmanager
def _tied_as(plan: Plan, model: nn.Module) -> Iterator[None]:
    """Ties what the plan ties, for good unless the body fails.

    Tensor parallelism makes two parameters of one that is tied, and the model's own initialisation ties
    them again.
    """
    places = {place[0]: place for place in _places(model)}
    untied = []
    for alias, name in plan.aliases.items():
        if alias in places and name in places and places[alias][3] is not places[name][3]:
            _, module, key, parameter = places[alias]
            untied.append((module, key, parameter))
            module._parameters[key] = places[name][3]
    try:
        yield
    except BaseException:
        for module, key, parameter in untied:
            module._parameters[key] = parameter
        raise
