"""Ranges: any run of the elements of a stored tensor, made without the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.checkpoint.entries import Source, Stored
from fastinit.elements.strided import Piece
from fastinit.fills import operator as ops
from fastinit.plan.fill import Fill
from fastinit.plan.write import Entry, write_entries
from fastinit.stream.keys import stream_id


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
    """Writes ranges with the numbers of a seed. It keeps the last tensor that had to be made whole."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._whole: tuple[Source, Tensor] | None = None

    def write(self, ranges: Sequence[Range]) -> None:
        """Writes all, those of laws in one parallel region."""
        stages: list[list[ops.Request]] = [[]]  # the laws, then the first parts, the second, ...
        for some in ranges:
            content = some.stored.source.content
            if isinstance(content, Fill) and not some.stored.needs_whole:
                for stage, request in _requests(some, content, self.seed):
                    stages += [[] for _ in range(stage + 1 - len(stages))]
                    stages[stage].append(request)
            else:
                values = self._values(some.stored.source)
                for view, which in some.pieces():
                    view.copy_(which.on(values))
        for requests in stages:
            ops.fill_many_(requests)

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
                whole = torch.empty(source.shape, dtype=source.dtype)
                write_entries([Entry(source.name, whole, content)], self.seed)
            self._whole = source, whole
        return self._whole[1]


def _requests(some: Range, fill: Fill, seed: int) -> Iterator[tuple[int, ops.Request]]:
    """(stage, request): the law first, and each part after those before it."""
    stream = stream_id(fill.stream or some.stored.source.name)
    for view, which in some.pieces():
        yield 0, ops.Request(view, fill.law, seed, stream, which)
    first = some.stored.which.offset + some.start  # of a run, as it has parts
    for stage, (region, part) in enumerate(fill.parts, 1):
        stream = stream_id(part.stream or some.stored.source.name)
        for which in region.clipped(first, first + len(some.out)):
            view = which._replace(offset=which.offset - first).on(some.out)
            yield stage, ops.Request(view, part.law, seed, stream, which)
