"""Memories: what is recorded of each storage, for as long as that lives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fastinit.base import torch_internals as internals
from fastinit.plan.history import Contents, Origin

META = torch.device("meta")


class Memory:
    """One storage: its contents, and the origin of the numbers that are next drawn into it.

    Args:
        contents: of the whole storage.
        seed: of its numbers, in [0, 2^64).
    """

    def __init__(self, contents: Contents, seed: int) -> None:
        self.contents, self.seed = contents, seed
        self.origin = Origin()
        self.was_read = False

    def next_origin(self) -> Origin:
        """The origin of a write to come: a new one if earlier numbers were read and may be in use."""
        if self.was_read:
            self.origin, self.was_read = Origin(), False
        return self.origin

    def read(self) -> Contents:
        """The contents for another's use: what is drawn from now on are other numbers."""
        self.was_read = True
        return self.contents


class Memories:
    """Memories by the storage of a tensor."""

    def __init__(self) -> None:
        self._by_storage: dict[int, tuple[internals.StorageWeakRef, Memory]] = {}

    def get(self, tensor: Tensor) -> Memory | None:
        """What is recorded of a tensor's storage, if anything is."""
        entry = self._by_storage.get(internals.storage_id(tensor)) if has_memory(tensor) else None
        return entry[1] if entry is not None and not entry[0].expired() else None

    def set(self, tensor: Tensor, memory: Memory) -> None:
        """Puts a record in place of the one there is."""
        storage = internals.StorageWeakRef(tensor.untyped_storage())
        self._by_storage[internals.storage_id(tensor)] = storage, memory

    def forget(self, tensor: Tensor) -> None:
        """Drops the record, as the values are there to be looked at."""
        self._by_storage.pop(internals.storage_id(tensor), None)

    def tidy(self) -> None:
        """Drops the records of storages that are gone."""
        self._by_storage = {k: v for k, v in self._by_storage.items() if not v[0].expired()}


memories = Memories()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is a view of a storage, and nothing else."""
    plain = type(tensor) is Tensor or isinstance(tensor, (nn.Parameter, nn.Buffer))
    return plain and tensor.layout is torch.strided


def storage_numel(tensor: Tensor) -> int:
    """Elements of a tensor's dtype in its whole storage."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def known_contents(tensor: Tensor) -> Contents:
    """What the storage of a tensor of known values holds now, as it may be written next."""
    known = Contents.of_data(tensor.detach().as_strided((storage_numel(tensor),), (1,), 0))
    return replace(known, base=known.base.clone()) if isinstance(known.base, Tensor) else known


def is_known(tensor: Tensor) -> bool:
    """Whether a tensor has values that no chance had a part in."""
    return not tensor.is_meta and memories.get(tensor) is None


def is_random(tensor: Tensor) -> bool:
    """Whether any number in its storage was drawn."""
    memory = memories.get(tensor)
    return memory is not None and memory.contents.is_random
