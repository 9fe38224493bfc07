"""Neighbours: parameters of other modules in the memory of a model's."""

from __future__ import annotations

from torch import Tensor, nn

from fastinit.base.holders import living, shared_beyond
from fastinit.base.text import listing
from fastinit.elements.strided import Strided
from fastinit.elements.within import covers
from fastinit.record.built import remembered
from fastinit.record.memories import Memory, is_plain, memory_of
from fastinit.record.model_record import ModelRecord


def check_neighbours(model: nn.Module, record: ModelRecord) -> None:
    """Raises unless parameters of other modules in the memory of a model's have only its elements.

    Others would be written too, with numbers that are not those of the whole model. What is only a
    tensor, or a parameter that no module has, gets what is written.

    Raises:
        ValueError: there are any (all are listed).
    """
    own: dict[Memory, list[Tensor]] = {}
    for _, parameter, memory in record.parameters:
        own.setdefault(memory, []).append(parameter)
    known = (tensor for _, tensor, _ in (*record.parameters, *record.others))
    storages = (storage for memory in own for storage in memory.storages)
    if not shared_beyond((*known, *remembered(model)), storages):
        return
    modules = {id(module) for module in model.modules()}
    apart = []
    for module in living(nn.Module, lambda each: id(each) not in modules):
        for key, parameter in vars(module).get("_parameters", {}).items():
            its = None if parameter is None else memory_of(parameter)
            if its is not None and its in own and not _has(own[its], parameter, its):
                apart.append(f"{key} of a {type(module).__name__}")
    if apart:
        raise ValueError(
            f"these are in the memory of the model's parameters, but not in the model, so write that "
            f"which has all: {listing('parameter', sorted(apart))}"
        )


def _has(some: list[Tensor], parameter: Tensor, memory: Memory) -> bool:
    """Whether some tensors of a memory have every element of a parameter there."""
    contents = memory.contents
    is_counted = is_plain(parameter, contents.dtype)
    wanted = Strided.merged_of(parameter) if is_counted else contents.whole
    there = [Strided.merged_of(each) for each in some if is_plain(each, contents.dtype)]
    return any(each is parameter for each in some) or covers(there, contents.numel, [wanted])
