"""Places: where in memory a parameter, or a layer's rows of it, are."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy

from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.strided import Strided


class Place(NamedTuple):
    """Which elements of which memory a tensor has."""

    memory: Hashable
    start: int
    end: int

    def overlaps(self, other: Place) -> bool:
        return self.memory == other.memory and self.start < other.end and other.start < self.end


def place_of(tensor: Tensor, parameter: Tensor) -> Place:
    """Where a tensor's elements are; of one that has no plain memory, which ``parameter`` it is of."""
    if is_lazy(tensor) or tensors.obstacle(here := tensors.local(tensor)) is not None:
        return Place(("parameter", id(parameter)), 0, 1)
    return Place(internals.storage_id(here), int(here.storage_offset()), Strided.of(here).end)


def rows_here(parameter: Tensor, rows: slice) -> Iterator[Tensor]:
    """What this rank has of some rows of a DTensor, in place."""
    for here, which in shard.pieces(shard.detached(parameter)):
        first = which.offset // which.strides[0]
        yield here[max(rows.start - first, 0) : max(rows.stop - first, 0)]
