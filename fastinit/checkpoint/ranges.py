"""Pieces: any run of the elements of a stored tensor, made without the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.checkpoint.entries import Source, Stored
from fastinit.elements.regions import Region
from fastinit.fills import operator as ops
from fastinit.plan.fill import Fill
from fastinit.plan.write import Entry, write_entries
from fastinit.stream.keys import stream_id


class Piece(NamedTuple):
    """Elements ``start``, ``start + 1``, ... of a stored tensor, to be written to ``out``."""

    stored: Stored
    start: int
    out: Tensor
    """Of one dimension, of the tensor's dtype."""


class Pieces:
    """Writes pieces with the numbers of a seed. It keeps the last tensor that had to be made whole."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._whole: tuple[Source, Tensor] | None = None

    def write(self, pieces: Sequence[Piece]) -> None:
        """Writes all, those of laws in one parallel region."""
        stages: list[list[ops.Request]] = [[]]  # the laws, then the first parts, the second, ...
        for piece in pieces:
            content = piece.stored.source.content
            if isinstance(content, Fill) and not piece.stored.needs_whole:
                for stage, request in _requests(piece, content, self.seed):
                    stages += [[] for _ in range(stage + 1 - len(stages))]
                    stages[stage].append(request)
            else:
                values = self._values(piece.stored.source)
                for box in _boxes(piece):
                    place = values.storage_offset() + box.offset
                    box.out.copy_(values.as_strided(box.out.shape, box.strides, place))
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


class _Box(NamedTuple):
    """A part of a piece that is one view: where it goes, and its elements of the source."""

    out: Tensor
    strides: tuple[int, ...]
    offset: int


def _requests(piece: Piece, fill: Fill, seed: int) -> Iterator[tuple[int, ops.Request]]:
    """(stage, request): the law first, and each part after those before it."""
    stream = stream_id(fill.stream or piece.stored.source.name)
    for box in _boxes(piece):
        yield 0, ops.Request(box.out, fill.law, seed, stream, ops.Window(box.strides, box.offset))
    first = piece.stored.offset + piece.start
    for stage, (region, part) in enumerate(fill.parts, 1):
        stream = stream_id(part.stream or piece.stored.source.name)
        for some in clipped(region, first, first + piece.out.numel()):
            place = piece.out.storage_offset() + some.offset - first
            view = piece.out.as_strided(some.sizes, some.strides, place)
            window = ops.Window(some.strides, some.offset)
            yield stage, ops.Request(view, part.law, seed, stream, window)


def _boxes(piece: Piece) -> Iterator[_Box]:
    """A piece as few views of its source."""
    stored = piece.stored
    if stored.is_run:
        yield _Box(piece.out, (1,), stored.offset + piece.start)
        return
    at = 0
    for corner, shape in boxes(stored.shape, piece.start, piece.start + piece.out.numel()):
        size = math.prod(shape)
        offset = stored.offset + sum(i * s for i, s in zip(corner, stored.strides))
        yield _Box(piece.out[at : at + size].view(shape), stored.strides, offset)
        at += size


def boxes(
    shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Elements ``start`` to ``stop``, in row-major order, as (corner, shape) of boxes in that order.

    >>> list(boxes((4, 3), 2, 10))
    [((0, 2), (1, 1)), ((1, 0), (2, 3)), ((3, 0), (1, 1))]
    """
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    row, rest = math.prod(shape[1:]), shape[1:]
    first, last = -(-start // row), stop // row  # whole rows
    if first > last:  # within one row
        for corner, size in boxes(rest, start - last * row, stop - last * row):
            yield (last, *corner), (1, *size)
        return
    for corner, size in boxes(rest, start - (first - 1) * row, row) if start % row else ():
        yield (first - 1, *corner), (1, *size)
    if first < last:
        yield (first, *(0 for _ in rest)), (last - first, *rest)
    for corner, size in boxes(rest, 0, stop - last * row):
        yield (last, *corner), (1, *size)


def clipped(region: Region, start: int, stop: int) -> Iterator[Region]:
    """The elements of a region from ``start`` on and before ``stop``, as regions.

    >>> list(clipped(Region(1, (4,), (3,)), 3, 8))
    [Region(offset=4, sizes=(2,), strides=(3,))]
    """
    if not region.numel or region.end <= start or stop <= region.offset:
        return
    if start <= region.offset and region.end <= stop:
        yield region
        return
    strides = region.strides
    dim = max(range(len(strides)), key=strides.__getitem__)
    stride, size = strides[dim], region.sizes[dim]
    if len(strides) == 1:  # cut where it has to be
        low = max(0, -(-(start - region.offset) // stride))
        high = min(size, -(-(stop - region.offset) // stride))
        cuts = [(low, high)] if low < high else []
    else:
        cuts = [(0, size // 2), (size // 2, size)]
    for low, high in cuts:
        sizes = (*region.sizes[:dim], high - low, *region.sizes[dim + 1 :])
        some = Region.make(region.offset + low * stride, sizes, strides)
        yield from clipped(some, start, stop)
