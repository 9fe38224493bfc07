"""Memories: what is recorded of each storage, kept with it for as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastinit.base.torch_internals import is_in_transform, version_of
from fastinit.elements.shards import is_dtensor
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill
from fastinit.plan.history import Contents, View
from fastinit.plan.streams import Origin, Source

META = torch.device("meta")

_RECORD = "_fastinit_record"
"""The attribute of a storage that has its record."""


class Memory:
    """What is recorded of one memory: a storage, or one on meta and that whose place it took.

    Args:
        contents: of the whole memory. Their device is that which it will have.
        seed: of its numbers, in [0, 2^64).
        is_away: whether its values are nowhere: it is on meta, or was written from what is.
        kin: the sources of the memories that it was computed from.
    """

    __slots__ = (
        *("__weakref__", "_drawn", "_read", "_storages", "block", "contents", "is_away"),
        *("is_parameter", "kin", "seed", "source", "versions"),
    )

    def __init__(
        self,
        contents: Contents,
        seed: int,
        *,
        is_away: bool = False,
        kin: frozenset[Source] = frozenset(),
    ) -> None:
        self.contents, self.seed, self.is_away = contents, seed, is_away
        self.source = Source()
        self.kin = kin | {self.source} if kin else frozenset((self.source,))
        self.versions: dict[int, int] = {}
        """Of tensors that are to be written, by id, as the block left them."""
        self._storages: tuple[weakref.ref[torch.UntypedStorage], ...] = ()
        self.block: Collection[Memory] = ()
        """All that were recorded with it."""
        self.is_parameter = False
        self._drawn: list[tuple[Strided, int]] = []
        self._read: list[tuple[Strided, int]] = []

    @property
    def place(self) -> torch.device:
        """The device that it will have."""
        return self.contents.device

    @property
    def storages(self) -> list[torch.UntypedStorage]:
        """Those that live: the one with values, and the one on meta that took its place."""
        return [storage for ref in self._storages if (storage := ref()) is not None]

    def origin(self, region: Strided, by_index: bool) -> Origin:
        """The origin of a draw to come.

        What is drawn for some elements does not depend on what was drawn for others, so that the order
        of calls on parts of a parameter is free.

        Args:
            region: the elements, merged.
            by_index: whether each has the number of its index, or the call numbers of its own.
        """
        whole = self.contents.whole
        is_whole = region.as_set() == whole
        if self.source.seen and is_whole:
            self.source = Source()  # others, that nobody has seen
            self.kin |= {self.source}
            self._drawn, self._read = [], []
        read = [draw for other, draw in self._read if other.meets(region)]
        draw = max(read) + 1 if read else 0
        if is_whole:
            self._drawn.clear()
            self.source.order = None if region == whole else region
        self._drawn.append((region, draw))
        return Origin(self.source, None if by_index or region == whole else region, draw)

    def filled(self, region: Strided, fill: Fill) -> Contents:
        """The contents after a Fill of values over a region, merged."""
        origin = self.origin(region, True) if fill.is_random else None
        return self.contents.filled(region, fill, origin)

    def has_values(self, tensor: Tensor) -> bool:
        """Whether a tensor of this memory has values, and all that these were made of had."""
        return self.contents.is_written(View.of(tensor))

    @property
    def is_read(self) -> bool:
        """Whether others may have numbers of it."""
        return bool(self._read)

    def read(self) -> Contents:
        """The contents for another's use: what is drawn from now on are other numbers."""
        self._read += self._drawn
        self._drawn = []
        return self.contents

    def promise(self) -> None:
        """From now on nobody may look at its numbers, as they are drawn at the end."""
        self.is_away = True
        for source in self.contents.sources:
            source.promised = True


def memory_of(tensor: Tensor) -> Memory | None:
    """What is recorded of a tensor's storage, if anything is."""
    if not has_memory(tensor):
        return None
    record = getattr(tensor.untyped_storage(), _RECORD, None)
    return record if type(record) is Memory or record is None else record()


def record(tensor: Tensor, memory: Memory) -> None:
    """Keeps a record with a tensor's storage, in place of the one there is."""
    known = memory.contents.base
    storage = tensor.untyped_storage()
    # Values that are known may be this very storage, which must not keep itself alive.
    own = isinstance(known, Tensor) and known.untyped_storage() is storage
    setattr(storage, _RECORD, weakref.ref(memory) if own else memory)
    if all(ref() is not storage for ref in memory._storages):
        memory._storages = (*memory._storages, weakref.ref(storage))


def forget(tensor: Tensor) -> None:
    """Drops the record, as the values are there to be looked at."""
    setattr(tensor.untyped_storage(), _RECORD, None)


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is a view of a storage, and nothing else."""
    kind = type(tensor)
    is_simple = kind is Tensor or kind is nn.Parameter
    if not is_simple and (not isinstance(tensor, (nn.Parameter, nn.Buffer)) or is_lazy(tensor)):
        return False
    if tensor.layout is not _STRIDED or tensor.is_quantized:
        return False
    if not is_simple and is_dtensor(tensor):
        return False
    return not is_in_transform(tensor)


_STRIDED = torch.strided


def is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether its elements are those of its memory, of a dtype, as they are."""
    return tensor.dtype is dtype and not tensor.is_conj() and not tensor.is_neg()


def storage_numel(tensor: Tensor) -> int:
    """Elements of a tensor's dtype in its whole storage."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def whole_storage(tensor: Tensor) -> Tensor:
    """All elements of a tensor's storage, in one dimension."""
    return tensor.detach().as_strided((storage_numel(tensor),), (1,), 0)


def known_contents(tensor: Tensor) -> Contents:
    """What the storage of a tensor of known values holds now, as it may be written next."""
    known = Contents.of_data(whole_storage(tensor))
    return replace(known, base=known.base.clone()) if isinstance(known.base, Tensor) else known


def is_changed(tensor: Tensor) -> bool:
    """Whether somebody wrote to a tensor since its block ended, where nothing is recorded.

    What is written to its ``data`` is not seen.
    """
    memory = memory_of(tensor)
    if memory is None or id(tensor) not in memory.versions:
        return False
    return memory.versions[id(tensor)] != version_of(tensor)


def is_known(tensor: Tensor) -> bool:
    """Whether a tensor has values that no chance had a part in."""
    return not tensor.is_meta and memory_of(tensor) is None


def is_random(tensor: Tensor) -> bool:
    """Whether any number in its storage was drawn."""
    memory = memory_of(tensor)
    return memory is not None and memory.contents.is_random


def is_seen(memory: Memory) -> bool:
    """Whether the constructor looked at the values of any numbers in it."""
    return any(source.seen for source in memory.contents.sources)


def are_away(tensors: Sequence[Tensor]) -> bool:
    """Whether the values of any are nowhere."""
    return any((memory := memory_of(t)) is not None and memory.is_away for t in tensors)
