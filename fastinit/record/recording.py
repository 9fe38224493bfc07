"""Recording: what is known while a constructor runs, and the records that it leaves."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from fastinit.base.holders import empty_on, exchange
from fastinit.plan.history import Contents
from fastinit.record import torch_operations as operations
from fastinit.record.memories import (
    META,
    Memory,
    is_seen,
    memory_of,
    record,
    storage_numel,
    whole_storage,
)
from fastinit.record.refused import Refusals


class Recording:
    """One block of code that is recorded.

    Args:
        seed: of the numbers of what is recorded, in [0, 2^64).
        keeps_generators: numbers of a generator that the constructor made, or of torch's after it
            seeded that, are what they are; otherwise they are those of the streams, as all others.
    """

    def __init__(self, seed: int, keeps_generators: bool = True) -> None:
        self.seed, self.keeps_generators = seed, keeps_generators
        self.is_autocast = False
        """Whether the running torch function would cast such tensors, if they were there."""
        self.refusals = Refusals()
        self.generator_seed: int | None = None
        """What torch's generator was seeded with, if that draws what nobody else does."""
        self.memories: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.place: torch.device | None = None
        """Where the tensors will be that the running torch function was given, if they are on meta."""

    def draws(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether an operation draws numbers that shall be those of the streams."""
        return operations.is_random(func) and self.generator(args, kwargs) is None

    def generator(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Generator | None:
        """The generator that a random operation draws from, if that is the constructor's and kept."""
        if not self.keeps_generators:
            return None
        if (given := operations.generator_of(args, kwargs)) is not None:
            return given
        own = torch.default_generator
        return own if self.generator_seed not in (None, own.initial_seed()) else None

    def keep(self, tensor: Tensor, memory: Memory) -> Memory:
        """Records a tensor's storage."""
        record(tensor, memory)
        self.memories.add(memory)
        memory.block = self.memories
        return memory

    def to_meta(self, tensor: Tensor) -> Memory:
        """Puts a tensor on meta where it is, so that whoever holds it holds the one on meta.

        Tensors of its storage that are no parameters stay where they are, with the same record.
        """
        memory = memory_of(tensor)
        if memory is None and tensor.is_meta:
            contents = Contents(storage_numel(tensor), tensor.dtype, META)
            memory = self.keep(tensor, Memory(contents, self.seed))
        elif memory is None:
            memory = Memory(Contents.of_data(whole_storage(tensor)), self.seed)
            self.keep(tensor, memory)
        elif not memory.is_away and is_seen(memory):
            memory.contents = Contents.of_data(whole_storage(tensor))
            self.keep(tensor, memory)
        memory.promise()
        if tensor.is_meta:
            return memory
        if tensor.is_leaf and tensor.grad is not None:
            self.to_meta(tensor.grad)
        exchange(tensor, self._on_meta(tensor, memory).requires_grad_(tensor.requires_grad))
        return memory

    def _on_meta(self, tensor: Tensor, memory: Memory) -> Tensor:
        """A tensor like one that is not on meta, of the storage there that takes its storage's place."""
        numel, dtype = memory.contents.numel, memory.contents.dtype
        storage = next((s for s in memory.storages if s.device == META), None)
        if storage is not None:
            return empty_on(storage, tensor)
        if tensor.dtype is dtype and tensor.is_contiguous() and tensor.numel() == numel:
            whole = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=META)
            record(whole, memory)
            return whole
        whole = torch.empty(numel, dtype=dtype, device=META)
        record(whole, memory)
        return empty_on(whole.untyped_storage(), tensor)
