"""Part: which elements of a full parameter a tensor holds.

Models are cut in many ways: rows or columns by tensor parallelism, in turns where layers are fused, a
flat range by ZeRO, one expert of many. A :class:`Part` says the outcome, for the tensor of one rank: the
full shape, and the indices that are held of each dimension, or a range of all elements in row-major
order. What is drawn for a part is then what the whole parameter has there.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastinit.base import number
from fastinit.elements.pieces import Piece
from fastinit.elements.strided import Strided

Run = tuple[int, int]
"""(start, length) of consecutive indices."""

Runs = tuple[Run, ...]
"""Of one dimension, in the order in which the tensor has them."""


@dataclass(frozen=True)
class Part:
    """Which elements of a full parameter a tensor holds.

    Args:
        shape: of the full parameter.
        runs: for each dimension the indices that are held, as (start, length) in the order in which the
            tensor has them; by default all. No index twice.
        flat: instead of runs, (start, length) of all elements in row-major order. The tensor is then of
            so many elements, whatever its shape.
        name: the full parameter's name, whose numbers these are; by default that of the tensor.

    Raises:
        NumberTypeError, NumberRangeError: what is no whole number; indices outside the shape.
        ValueError: another number of runs than of dimensions, indices that are there twice, both runs
            and a flat range.

    >>> rows = Part((8, 4)).chunk(0, ranks=2, rank=1)
    >>> rows.runs, rows.local_shape
    ((((4, 4),), ((0, 4),)), (4, 4))
    >>> Part((8, 4), flat=(6, 10)).numel
    10
    """

    shape: tuple[int, ...]
    runs: tuple[Runs, ...] = None  # type: ignore[assignment]  # afterwards there, empty of a flat range
    flat: Run | None = None
    name: str | None = None
    local_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The tensor's, but for dimensions of one element, which it may lack or have beyond these."""

    def __post_init__(self) -> None:
        sizes = _listed("shape", self.shape)
        shape = tuple(number.integer(f"shape[{i}]", n, least=0) for i, n in enumerate(sizes))
        put = object.__setattr__
        put(self, "shape", shape)
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"name must be a str, but got {self.name!r}")
        if self.flat is not None:
            if self.runs:
                raise ValueError(
                    f"runs and flat exclude each other, but got {self.runs} and {self.flat}"
                )
            flat = _run("flat", self.flat, math.prod(shape))
            put(self, "flat", flat)
            put(self, "runs", ())
            put(self, "local_shape", (flat[1],))
            return
        runs = _listed("runs", [[(0, size)] for size in shape] if self.runs is None else self.runs)
        if len(runs) != len(shape):
            raise ValueError(
                f"runs must be of {len(shape)} dimensions, but got {len(runs)}: {runs}"
            )
        held = tuple(
            _merged(f"runs[{i}]", its, size) for i, (its, size) in enumerate(zip(runs, shape))
        )
        put(self, "runs", held)
        put(self, "local_shape", tuple(sum(length for _, length in its) for its in held))

    @property
    def numel(self) -> int:
        """How many elements are held."""
        return math.prod(self.local_shape)

    @property
    def is_whole(self) -> bool:
        """Whether all elements are held, in their order."""
        if self.flat is not None:
            return self.flat == (0, math.prod(self.shape))
        return all(its == _all(size) for its, size in zip(self.runs, self.shape))

    def named(self, name: str) -> Part:
        """The same elements of a parameter of this name."""
        return replace(self, name=name)

    def cut(self, dim: int, runs: Iterable[Run]) -> Part:
        """Of the indices held along a dimension, those at some places.

        Args:
            dim: may be negative.
            runs: (start, length) of places among the indices that are held so far.

        Raises:
            IndexError: there is no such dimension. ValueError: a flat range, which has none; and as
                :class:`Part`.

        >>> Part((12,)).cut(0, [(8, 4), (0, 4)]).cut(0, [(2, 4)]).runs
        (((10, 2), (0, 2)),)
        """
        dim = self._dim(dim)
        held = self.runs[dim]
        places = _merged("runs", _listed("runs", runs), self.local_shape[dim])
        ends = list(itertools.accumulate(length for _, length in held))
        cut = [run for place in places for run in _at(held, ends, place)]
        return replace(self, runs=(*self.runs[:dim], tuple(cut), *self.runs[dim + 1 :]))

    def chunk(self, dim: int, ranks: int, rank: int) -> Part:
        """The rank's chunk of a dimension as ``torch.chunk`` cuts it: ceil(n / ranks) indices each, but
        for the last ones, which may be short or empty (so DTensor's Shard, FSDP2).
        """
        dim, ranks, rank = self._dim(dim), *_rank(ranks, rank)
        return self.cut(dim, [chunk_of(self.local_shape[dim], ranks, rank)])

    def split(self, dim: int, ranks: int, rank: int, stride: int = 1) -> Part:
        """The rank's share of a dimension that divides evenly, in ``stride`` turns (so Megatron).

        Of ranks x stride blocks of equal size each rank has every ranks-th, beginning with its own.

        Raises:
            NumberRangeError: a size that ranks x stride does not divide.

        >>> Part((8,)).split(0, ranks=2, rank=1, stride=2).runs
        (((2, 2), (6, 2)),)
        """
        dim, ranks, rank = self._dim(dim), *_rank(ranks, rank)
        stride, size = number.integer("stride", stride, least=1), self.local_shape[dim]
        if size % (ranks * stride):
            raise number.NumberRangeError(
                f"ranks x stride must divide the {size} indices of dimension {dim}, "
                f"but got {ranks} x {stride}"
            )
        each = size // (ranks * stride)
        return self.cut(dim, [((turn * ranks + rank) * each, each) for turn in range(stride)])

    def select(self, dim: int, index: int) -> Part:
        """One index of those held along a dimension, such as an expert; the tensor may lack it."""
        dim, index = self._dim(dim), number.integer("index", index)
        if not 0 <= index < self.local_shape[dim]:
            number.out_of_range("index", f"one of {self.local_shape[dim]}", index)
        return self.cut(dim, [(index, 1)])

    def pieces(self, tensor: Tensor, argument: str = "tensor") -> list[Piece]:
        """The tensor as blocks of the full one: each a view of it, and which elements these are.

        Raises:
            ValueError: a tensor of another shape; of a flat range, one that is not contiguous.
        """
        if self.flat is not None:
            return self._flat_pieces(tensor, argument)
        here = tensor
        if tuple(here.shape) != self.local_shape:
            if [n for n in here.shape if n != 1] != [n for n in self.local_shape if n != 1]:
                raise ValueError(
                    f"{argument} has shape {tuple(tensor.shape)}, but its part of {self.shape} "
                    f"has {self.local_shape}"
                )
            here = here.view(self.local_shape)
        _, _, strides = Strided.contiguous(self.shape)
        pieces = [Piece(here, Strided(0, self.local_shape, strides))]
        for dim, runs in enumerate(self.runs):
            lengths = [length for _, length in runs]
            pieces = [
                Piece(view, Strided(offset + start * strides[dim], tuple(view.shape), strides))
                for some, (offset, _, _) in pieces
                for (start, _), view in zip(runs, some.split(lengths, dim))
            ]
        return [piece for piece in pieces if piece.which.numel]

    def _flat_pieces(self, tensor: Tensor, argument: str) -> list[Piece]:
        assert self.flat is not None
        start, length = self.flat
        if tensor.numel() != length:
            raise ValueError(
                f"{argument} has {tensor.numel()} elements, but its part of {self.shape} has {length}"
            )
        if not length:
            return []
        if tensor.dim() != 1 and not tensor.is_contiguous():
            raise ValueError(
                f"{argument} must be contiguous or of one dimension, as its part is a flat range, but "
                f"has shape {tuple(tensor.shape)} and strides {tensor.stride()}"
            )
        row, at, pieces = tensor.view(-1), 0, []
        for run in Strided.contiguous(self.shape).numbered(start, start + length):
            block = run.block(self.shape)
            assert block is not None
            pieces.append(Piece(row[at : at + run.numel].view(block.sizes), block))
            at += run.numel
        return pieces

    def _dim(self, dim: int) -> int:
        dim = number.integer("dim", dim)
        if self.flat is not None:
            raise ValueError(f"a flat range has no dimensions to cut, but got {self}")
        if not -len(self.shape) <= dim < len(self.shape):
            raise IndexError(f"dim must be one of {len(self.shape)}, but got {number.said(dim)}")
        return dim % len(self.shape)


def check_part(part: Part, argument: str = "part") -> Part:
    """The part. Raises TypeError for what is none."""
    if not isinstance(part, Part):
        raise TypeError(f"{argument} must be a fastinit.Part, but got {part!r}")
    return part


def one_shape(name: str, shapes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The shape of a parameter, of what its parts say. Raises ValueError for several."""
    shape, *others = sorted(set(map(tuple, shapes)))
    if others:
        raise ValueError(f"parts of {name} are of several shapes: {[shape, *others]}")
    return shape


def nothing(shape: Sequence[int]) -> Part:
    """No element of a parameter of a shape: what a rank has that takes no part in it."""
    return Part(tuple(shape), flat=(0, 0))


def chunk_of(size: int, chunks: int, which: int) -> Run:
    """One of the chunks, empty ones included, that ``torch.chunk`` would make of so many indices."""
    each = -(-size // chunks)
    first = min(which * each, size)
    return first, min(each, size - first)


def _all(size: int) -> Runs:
    return ((0, size),) if size else ()


def _listed(argument: str, value: Iterable[Any]) -> list[Any]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{argument} must be a sequence, but got {value!r}")
    return list(value)


def _rank(ranks: int, rank: int) -> Run:
    ranks, rank = number.integer("ranks", ranks, least=1), number.integer("rank", rank, least=0)
    if rank >= ranks:
        number.out_of_range("rank", f"one of {ranks}", rank)
    return ranks, rank


def _run(argument: str, value: Iterable[int], size: int) -> Run:
    run = _listed(argument, value)
    if len(run) != 2:
        raise ValueError(f"{argument} must be (start, length), but got {value!r}")
    start, length = (number.integer(f"{argument}[{i}]", n, least=0) for i, n in enumerate(run))
    if start + length > size:
        raise number.NumberRangeError(
            f"{argument} must end within {size}, but got {(start, length)}"
        )
    return start, length


def _merged(argument: str, runs: Iterable[Iterable[int]], size: int) -> Runs:
    """The runs without empty ones, neighbours as one; checked."""
    merged: list[Run] = []
    for i, given in enumerate(_listed(argument, runs)):
        start, length = _run(f"{argument}[{i}]", given, size)
        if merged and merged[-1][0] + merged[-1][1] == start:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        elif length:
            merged.append((start, length))
    ordered = sorted(merged)
    for (start, length), (after, _) in itertools.pairwise(ordered):
        if start + length > after:
            raise ValueError(f"{argument} has index {after} twice: {tuple(merged)}")
    return tuple(merged)


def _at(runs: Runs, ends: Sequence[int], place: Run) -> Iterator[Run]:
    """What some runs have at consecutive places.

    Args:
        ends: how many places there are up to the end of each run.
    """
    first, last = place[0], place[0] + place[1]
    for i in range(bisect_right(ends, first), len(runs)):
        start, length = runs[i]
        before = ends[i] - length
        if before >= last:
            return
        low, high = max(first - before, 0), min(last - before, length)
        yield start + low, high - low
