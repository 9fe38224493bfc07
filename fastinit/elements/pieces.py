"""Pieces: elements of a full tensor that are in memory, and whether regions make up a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.elements.strided import COUNTED, Strided


class Piece(NamedTuple):
    """Elements of a full tensor that are in memory: a view of that, and which they are, of its sizes."""

    tensor: Tensor
    which: Strided

    def common(self, block: Strided) -> Piece | None:
        """What is also in a block; both have the strides of the full tensor."""
        view, offset = self.tensor, 0
        places = zip(self.which.start, block.start, block.sizes, block.strides)
        for dim, (own, other, size, stride) in enumerate(places):
            first, last = max(own, other), min(own + view.size(dim), other + size)
            if first >= last:
                return None
            view = view.narrow(dim, first - own, last - first)
            offset += first * stride
        return Piece(view, Strided(offset, tuple(view.shape), block.strides))

    def cut(self, most: int) -> Iterator[Piece]:
        """It in pieces of at most so many elements, in order; none of an empty one."""
        view, (offset, sizes, strides) = self
        if view.numel() <= most:
            if view.numel():
                yield self
            return
        dim = next(d for d, size in enumerate(sizes) if size > 1)
        step = max(1, most // (view.numel() // sizes[dim]))
        for start in range(0, sizes[dim], step):
            slab = view.narrow(dim, start, min(step, sizes[dim] - start))
            where = Strided(offset + start * strides[dim], tuple(slab.shape), strides)
            yield from Piece(slab, where).cut(most)


@lru_cache(maxsize=1024)
def tile(regions: tuple[Strided, ...], numel: int) -> bool:
    """Whether each of so many elements is in one of the regions, and in one only.

    Where that takes counting more than ``COUNTED`` runs, it is taken to be not so.

    >>> tile((Strided(0, (2, 2), (4, 1)), Strided(2, (2, 2), (4, 1))), 8)
    True
    """
    if sum(region.numel for region in regions) != numel:
        return False
    ordered = [r.in_memory_order() for r in regions if r.numel]
    if any(r.end > numel for r in ordered):
        return False
    # In runs of as many elements as divide all, so that a large tensor's are few.
    run = numel
    for offset, sizes, strides in ordered:
        length = sizes[-1] if strides[-1] == 1 else 1
        run = math.gcd(run, offset, length, *(strides[:-1] if length > 1 else strides))
    if numel // max(run, 1) > COUNTED:
        return False
    written = torch.zeros(numel // max(run, 1), dtype=torch.bool)
    for offset, sizes, strides in ordered:
        if run > 1:
            sizes, strides = (*sizes[:-1], sizes[-1] // run), (*(s // run for s in strides[:-1]), 1)
        Strided(offset // run, sizes, strides).on(written).fill_(True)
    return bool(written.all())  # as there are no more than there are places, none is written twice
