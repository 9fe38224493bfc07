"""Strided: the one way to say which elements of a tensor are meant, and where they are in memory.

Elements are counted in a storage, or in a full tensor in row-major order. Sets of the same sizes make a
pair: where elements are, and which of the full tensor's they are (:class:`Piece`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.base import number

COUNTED = 1 << 22
"""Elements: of a set of more, and of unusual strides, nobody counts whether each is there once."""


class Strided(NamedTuple):
    """Elements ``offset + i * strides[0] + j * strides[1] + ...``, i in ``range(sizes[0])`` and so on.

    >>> Strided.contiguous((4, 3))
    Strided(offset=0, sizes=(4, 3), strides=(3, 1))
    """

    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Strided:
        """A tensor's elements in its storage."""
        return cls(int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())

    @classmethod
    def contiguous(cls, shape: Sequence[int]) -> Strided:
        """All elements of a tensor of this shape."""
        return cls(0, tuple(shape), row_major(shape))

    @classmethod
    def run(cls, start: int, count: int) -> Strided:
        """Consecutive elements, merged."""
        return _run(start, count)

    @property
    def numel(self) -> int:
        """How many elements."""
        return math.prod(self.sizes)

    @property
    def end(self) -> int:
        """One past the last element, if there are any."""
        return self.offset + sum((n - 1) * s for n, s in zip(self.sizes, self.strides)) + 1

    @property
    def overlaps(self) -> bool:
        """Whether two indices stand for one element.

        Sorted by stride, each dimension must step over all that the smaller ones reach: that is exact
        for every view that slicing, transposing, expanding and unfolding make. ``as_strided`` makes
        others: of those the elements are counted, and more than ``COUNTED`` are taken for overlapping.
        """
        if self.numel < 2:
            return False
        dims = sorted((step, size) for size, step in zip(self.sizes, self.strides) if size != 1)
        reach = 0
        for step, size in dims:
            if step <= reach:
                break
            reach += step * (size - 1)
        else:
            return False
        if dims[0][0] == 0 or self.numel > COUNTED:
            return True
        return bool(self.numbers().unique().numel() < self.numel)

    def numbers(self, device: torch.device | str = "cpu") -> Tensor:
        """Which element of the full tensor each is, int64 of these sizes.

        >>> Strided(3, (2, 2), (4, 1)).numbers().tolist()
        [[3, 4], [7, 8]]
        """
        found = torch.tensor(self.offset, device=device)
        for size, stride in zip(self.sizes, self.strides):
            found = found[..., None] + torch.arange(size, device=device) * stride
        return found

    def check(self, what: str) -> None:
        """Raises ValueError unless these are elements that a tensor can have, each once.

        Args:
            what: they are, for the message.
        """
        said = f"{what} at {number.said(tuple(self))}"
        if len(self.sizes) != len(self.strides):
            raise ValueError(f"{said} has {len(self.sizes)} sizes and {len(self.strides)} strides")
        if min((self.offset, *self.sizes, *self.strides)) < 0:
            raise ValueError(f"{said} has negative numbers")
        sizes = tuple([max(size, 1) for size in self.sizes])  # torch multiplies them all the same
        if max(math.prod(sizes), self._replace(sizes=sizes).end) > 1 << 63:
            raise ValueError(f"{said} goes beyond the 2^63 elements of a tensor")
        if self.overlaps:
            raise ValueError(f"{said} has elements twice")

    @property
    def is_run(self) -> bool:
        """Whether the elements are consecutive and in order."""
        return self.merged().strides in ((), (1,))

    @property
    def start(self) -> tuple[int, ...]:
        """The index, by dimension, at which a :meth:`block` begins in the full tensor."""
        places, rest = [], self.offset
        for stride in self.strides:
            place, rest = divmod(rest, stride)
            places.append(place)
        return tuple(places)

    def on(self, memory: Tensor) -> Tensor:
        """The view of a contiguous tensor that has these of its elements."""
        return memory.as_strided(self.sizes, self.strides, memory.storage_offset() + self.offset)

    def merged(self) -> Strided:
        """The same elements in as few dimensions as can be, so that equal orders of them are equal.

        >>> Strided(3, (2, 1, 4), (4, 9, 1)).merged()
        Strided(offset=3, sizes=(8,), strides=(1,))
        """
        if len(self.sizes) == 1 and self.sizes[0] != 1:
            return self
        return _of_dims(self.offset, merged_dims(zip(self.sizes, self.strides)))

    @classmethod
    def merged_of(cls, tensor: Tensor) -> Strided:
        """:meth:`of`, merged."""
        if tensor.is_contiguous() and tensor.numel():
            return cls.run(int(tensor.storage_offset()), tensor.numel())
        return cls.of(tensor).merged()

    def in_memory_order(self) -> Strided:
        """The same elements in the order of their addresses, merged; of one dimension at least.

        >>> Strided(0, (2, 3, 4), (12, 1, 3)).in_memory_order()
        Strided(offset=0, sizes=(24,), strides=(1,))
        """
        dims = sorted(zip(self.sizes, self.strides), key=lambda d: -d[1])
        return _of_dims(self.offset, merged_dims(dims) or [(1, 1)])

    def as_set(self) -> Strided:
        """The same elements in one form, whatever their order: that of their addresses, merged.

        >>> Strided(0, (2, 3), (1, 2)).as_set(), Strided(4, (1,), (9,)).as_set()
        (Strided(offset=0, sizes=(6,), strides=(1,)), Strided(offset=4, sizes=(), strides=()))
        """
        return self.in_memory_order().merged()

    @property
    def text(self) -> str:
        """In few words, of what is merged.

        >>> Strided.run(4, 8).text, Strided(1, (4, 2), (6, 2)).text
        ('4:12', '1+4x6+2x2')
        """
        if self.is_run:
            return f"{self.offset}:{self.offset + self.numel}"
        return "+".join([str(self.offset), *(f"{n}x{s}" for n, s in zip(self.sizes, self.strides))])

    def meets(self, other: Strided) -> bool:
        """Whether two merged sets have an element in common; of strides that do not nest, whether they
        may.

        >>> Strided(0, (4, 2), (6, 1)).meets(Strided(2, (4, 2), (6, 1)))
        False
        >>> Strided(0, (4, 5), (6, 1)).meets(Strided(5, (4,), (6,)))
        False
        """
        if not (self.numel and other.numel) or self.end <= other.offset or other.end <= self.offset:
            return False
        one, two = self.in_memory_order(), other.in_memory_order()
        if one.strides != two.strides:
            one, two = one._with(two.strides), two._with(one.strides)
            for dim, step in enumerate(one.strides):
                if any(
                    its._replace(
                        sizes=its.sizes[dim + 1 :], strides=its.strides[dim + 1 :], offset=0
                    ).end
                    > step
                    for its in (one, two)
                ):
                    return True

        def reached(distance: int, dim: int) -> bool:
            if dim == len(one.strides):
                return distance == 0
            least, step = distance // one.strides[dim], one.strides[dim]
            return any(
                -two.sizes[dim] < count < one.sizes[dim]
                and reached(distance - count * step, dim + 1)
                for count in (least, least + 1)
            )

        return reached(two.offset - one.offset, 0)

    def _with(self, strides: Sequence[int]) -> Strided:
        """The same elements in memory order, with dimensions of one element for strides it lacks."""
        sizes = {**dict.fromkeys(strides, 1), **dict(zip(self.strides, self.sizes))}
        steps = tuple(sorted(sizes, reverse=True))
        return Strided(self.offset, tuple(sizes[step] for step in steps), steps)

    def numbered(self, start: int, stop: int) -> Iterator[Strided]:
        """Its elements number ``start`` to ``stop - 1``, counted in their order.

        >>> list(Strided.contiguous((4, 3)).numbered(2, 10))  # doctest: +NORMALIZE_WHITESPACE
        [Strided(offset=2, sizes=(1,), strides=(1,)), Strided(offset=3, sizes=(2, 3), strides=(3, 1)),
        Strided(offset=9, sizes=(1,), strides=(1,))]
        """
        if start >= stop:
            return
        if not self.sizes:
            yield self
            return
        (_, *sizes), (step, *strides) = self.sizes, self.strides
        row = math.prod(sizes)
        first, last = -(-start // row), stop // row  # whole rows; the first may be behind the last

        def within(index: int, low: int, high: int) -> Iterator[Strided]:
            one = Strided(self.offset + index * step, tuple(sizes), tuple(strides))
            return one.numbered(low, high)

        if start % row:
            yield from within(first - 1, start % row, min(row, stop - (first - 1) * row))
        if first < last:
            yield Strided(self.offset + first * step, (last - first, *sizes), self.strides)
        if first <= last:
            yield from within(last, 0, stop % row)

    def clipped(
        self, start: int, stop: int, which: Strided | None = None
    ) -> Iterator[tuple[Strided, Strided]]:
        """Its elements within ``range(start, stop)`` of what they are counted in, each once.

        Args:
            which: elements of the same sizes: those in the same places are given too. By default these.

        >>> [where for where, _ in Strided(1, (4,), (3,)).clipped(3, 8)]
        [Strided(offset=4, sizes=(2,), strides=(3,))]
        """
        which = which or self
        if not self.numel or self.end <= start or stop <= self.offset:
            return
        dims = merged_dims(zip(self.sizes, self.strides, which.strides))
        sizes, strides, others = zip(*dims) if dims else ((), (), ())
        some, its = (
            self._replace(sizes=sizes, strides=strides),
            Strided(which.offset, sizes, others),
        )
        if start <= self.offset and self.end <= stop:
            yield some, its
            return
        dim = max(range(len(dims)), key=strides.__getitem__)
        stride, size = strides[dim], sizes[dim]
        if len(dims) == 1:  # cut where it has to be
            low = max(0, -(-(start - self.offset) // stride))
            high = min(size, -(-(stop - self.offset) // stride))
            cuts = [(low, high)] if low < high else []
        else:
            cuts = [(0, size // 2), (size // 2, size)]
        for low, high in cuts:
            sizes = (*some.sizes[:dim], high - low, *some.sizes[dim + 1 :])
            where = Strided(some.offset + low * stride, sizes, strides)
            yield from where.clipped(
                start, stop, Strided(its.offset + low * others[dim], sizes, others)
            )

    def blocks(self, shape: Sequence[int], most: int) -> list[tuple[Strided, int]] | None:
        """Blocks of a full tensor of this shape that it is, in its order; None if more than most.

        Each comes with the number that its first element has in this order; the others follow.

        >>> Strided(2, (2, 4), (8, 1)).blocks((8, 2), 2)  # doctest: +NORMALIZE_WHITESPACE
        [(Strided(offset=2, sizes=(2, 2), strides=(2, 1)), 0),
         (Strided(offset=10, sizes=(2, 2), strides=(2, 1)), 4)]
        """
        found: list[tuple[Strided, int]] = []

        def cut(some: Strided, first: int) -> bool:
            if not some.numel:
                return True
            if (block := some.block(shape)) is not None:
                found.append((block, first))
                return len(found) <= most
            offset, (size, *sizes), (step, *strides) = some
            rows = Strided(offset, tuple(sizes), tuple(strides))
            return all(
                cut(rows._replace(offset=offset + i * step), first + i * rows.numel)
                for i in range(size)
            )

        return found if cut(self.merged(), 0) else None

    def block(self, shape: Sequence[int]) -> Strided | None:
        """The same elements with the strides of a full tensor of this shape; None if they are no block.

        A block is a range of indices in each dimension.

        >>> Strided(1, (4, 2), (3, 1)).block((4, 3))
        Strided(offset=1, sizes=(4, 2), strides=(3, 1))
        >>> Strided(3, (3,), (1,)).block((4, 3))
        Strided(offset=3, sizes=(1, 3), strides=(3, 1))
        >>> Strided(1, (4,), (1,)).block((4, 3)) is None
        True
        """
        if self.numel == 0 or 0 in shape:
            return None
        strides = row_major(shape)
        start = Strided(self.offset, tuple(shape), strides).start
        sizes, dim = [1] * len(shape), len(shape) - 1
        for size, step in zip(reversed(self.sizes), reversed(self.strides)):
            while dim >= 0 and strides[dim] < step:
                dim -= 1
            if dim < 0 or strides[dim] != step:
                return None
            while size > 1:  # a dimension here may be several of the tensor's, merged
                if dim < 0:
                    return None
                if start[dim] + size <= shape[dim]:
                    sizes[dim], size = size, 1
                elif start[dim] == 0 and size % shape[dim] == 0:
                    sizes[dim], size = shape[dim], size // shape[dim]
                else:
                    return None
                dim -= 1
        return Strided(self.offset, tuple(sizes), strides)


whole = lru_cache(maxsize=4096)(Strided.contiguous)
"""The same, of tensors with memory, as they are asked for at each write of a model."""


@lru_cache(maxsize=4096)
def _run(start: int, count: int) -> Strided:
    # Asked for at each write of a model, whose parameters are of few sizes.
    return Strided(start, (), ()) if count == 1 else Strided(start, (count,), (1,))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor.

    >>> row_major((2, 3, 4))
    (12, 4, 1)
    """
    return tuple([math.prod(shape[dim:]) for dim in range(1, len(shape) + 1)])


def runs(where: Strided, which: Strided) -> tuple[list[tuple[int, ...]], int, int]:
    """(dimensions that runs stand in, each its size and both strides; a run's length, and its stride).

    A run is neighbours in the full tensor: the dimension in which the stride of ``which`` is 1. Without
    one, each element is a run. Dimensions come in the order of these strides, merged where they are one
    in both sets: a contiguous tensor is one run.

    >>> runs(Strided(0, (2, 3), (3, 1)), Strided(0, (2, 3), (3, 1)))
    ([], 6, 1)
    >>> runs(Strided(0, (2, 3), (1, 2)), Strided(0, (2, 3), (3, 1)))
    ([(2, 1, 3)], 3, 2)
    """
    dims = merged_dims(sorted(zip(where.sizes, where.strides, which.strides), key=lambda d: -d[2]))
    length, stride, _ = dims.pop() if dims and dims[-1][2] == 1 else (1, 1, 1)
    return dims, length, stride


def merged_dims(dims: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Dimensions (size, stride, ...) without those of one element, neighbours as one where they are.

    There are as many strides as sets that share the sizes; two dimensions are one if they are in each.
    """
    found: list[tuple[int, ...]] = []
    for size, *strides in dims:
        if size == 1:
            continue
        if found and found[-1][1:] == tuple([size * stride for stride in strides]):
            size *= found.pop()[0]
        found.append((size, *strides))
    return found


def _of_dims(offset: int, dims: list[tuple[int, ...]]) -> Strided:
    return Strided(offset, tuple([size for size, _ in dims]), tuple([step for _, step in dims]))
