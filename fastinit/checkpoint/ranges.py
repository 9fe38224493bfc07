"""Ranges: any run of the elements of a stored tensor, made without the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.checkpoint.entries import Stored
from fastinit.checkpoint.packed import Kept, Packed
from fastinit.checkpoint.sources import Source
from fastinit.elements.pieces import Piece
from fastinit.plan.fill import Fill
from fastinit.plan.replay import Computed
from fastinit.plan.values import Values, part_stream, write_values_
from fastinit.plan.write import Entry, checked


class Range(NamedTuple):
    """Elements ``start``, ``start + 1``, ... of a stored tensor, to be written to ``out``."""

    stored: Stored
    start: int
    out: Tensor
    """[elements], of the tensor's dtype."""

    def pieces(self) -> Iterator[Piece]:
        """It as few views of ``out``, and which elements of the source these are."""
        at = 0
        for which in self.stored.which.merged().numbered(self.start, self.start + len(self.out)):
            yield Piece(self.out[at : at + which.numel].view(which.sizes), which)
            at += which.numel


class Ranges:
    """Writes ranges with the numbers of a seed.

    It keeps the last tensor that had to be made whole, and the scales of the last that is packed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._whole: tuple[Source, Tensor] | None = None
        self._kept = Kept()

    def write(self, ranges: Sequence[Range]) -> None:
        """Writes all, those of laws in one parallel region for each stage."""
        stages: list[list[Values]] = [[]]  # the bases, then the first parts, the second, ...
        for some in ranges:
            content = some.stored.source.content
            if isinstance(content, Packed):
                start = some.start * some.out.itemsize
                content.write_(some.out.view(torch.uint8), start, self.seed, self._kept)
            elif isinstance(content, Fill) and not some.stored.needs_whole:
                for stage, values in _values_of(some, content):
                    stages += [[] for _ in range(stage + 1 - len(stages))]
                    stages[stage].append(values)
            else:
                whole = self._values(some.stored.source)
                for view, which in some.pieces():
                    view.copy_(which.on(whole))
        for stage_values in stages:
            write_values_(stage_values, self.seed)

    def _values(self, source: Source) -> Tensor:
        """The whole source, contiguous."""
        content = source.content
        if isinstance(content, Tensor) and content.is_contiguous():
            return content
        if self._whole is None or self._whole[0] is not source:
            self._whole = None  # before memory for the next is taken
            if isinstance(content, Tensor):
                whole = content.contiguous()
            else:
                assert isinstance(content, (Fill, Computed))  # what others have, they write
                whole = torch.empty(source.shape, dtype=source.dtype)
                checked([Entry(source.name, whole, content)], self.seed).write()
            self._whole = source, whole
        return self._whole[1]


def _values_of(some: Range, fill: Fill) -> Iterator[tuple[int, Values]]:
    """(stage, what to write): the base, and each part after those before it."""
    source = some.stored.source
    if (base := fill.base) is not None:
        for view, which in some.pieces():
            yield 0, Values(view, base, fill.stream or source.name, which, source.shape)
    first = some.stored.which.offset + some.start  # of a run, as it has parts
    for place, part in enumerate(fill.parts):
        stream = part_stream(fill, place, source.name)
        shape = part.region.sizes if part.own else source.shape
        for where, which in part.region.clipped(first, first + len(some.out), part.which):
            view = where._replace(offset=where.offset - first).on(some.out)
            stage = 0 if base is None else place + 1  # fused parts have no element in common
            yield stage, Values(view, part.fill, stream, which, shape)
