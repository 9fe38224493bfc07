"""Within: which elements of a tensor some elements of its memory are, and whether some are all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fastinit.elements.strided import Strided, merged_dims, row_major


def within(some: Strided, tensor: Strided) -> tuple[Strided, Strided] | None:
    """The numbers that elements of a memory have in a tensor there, in its row-major order.

    Args:
        some: elements of the memory, in any order, which is kept.
        tensor: where the memory has a tensor's elements, of which it has none twice.

    Returns:
        The elements and their numbers, of the same sizes: a dimension that is several of the tensor's
        comes as these. None if some are not the tensor's, or if no one set of strides says which.

    >>> turned = Strided(0, (2, 3), (1, 2))  # a tensor [2, 3] whose columns are contiguous
    >>> within(Strided(2, (2,), (1,)), turned)[1]  # its second column
    Strided(offset=1, sizes=(2,), strides=(3,))
    >>> within(Strided(0, (6,), (1,)), turned)  # all of it, in the memory's order
    (Strided(offset=0, sizes=(3, 2), strides=(2, 1)), Strided(offset=0, sizes=(3, 2), strides=(1, 3)))
    >>> within(Strided(1, (2,), (1,)), turned) is None  # the end of one column, the start of another
    True
    """
    if tensor.strides == (1,):  # most are
        here = some.offset >= tensor.offset and some.end <= tensor.offset + tensor.sizes[0]
        return (some, some._replace(offset=some.offset - tensor.offset)) if here else None
    dims = merged_dims(zip(tensor.sizes, tensor.strides, row_major(tensor.sizes)))
    dims.sort(key=lambda dim: -dim[1])
    if any(step <= 0 for _, step, _ in dims) or some.offset < tensor.offset:
        return None
    start = _index(some.offset - tensor.offset, dims)
    if start is None:
        return None
    sizes, strides, steps = [], [], []
    waiting = list(zip(some.sizes, some.strides))[::-1]
    while waiting:
        size, stride = waiting.pop()
        step = _index(stride, dims) if size > 1 else [0] * len(dims)
        if step is None:
            return None
        if inner := _carried(size, step, dims):
            waiting += [(inner, stride), (size // inner, stride * inner)]
            continue
        sizes.append(size)
        strides.append(stride)
        steps.append(step)
    for dim, (count, _, _) in enumerate(dims):
        if start[dim] + sum((n - 1) * step[dim] for n, step in zip(sizes, steps)) >= count:
            return None

    def number(index: list[int]) -> int:
        return sum(place * its for place, (_, _, its) in zip(index, dims))

    where = Strided(some.offset, tuple(sizes), tuple(strides))
    numbers = [number(s) if n > 1 else stride for n, stride, s in zip(sizes, strides, steps)]
    return where, Strided(number(start), tuple(sizes), tuple(numbers))


def _index(distance: int, dims: Sequence[tuple[int, ...]]) -> list[int] | None:
    """How far an element is from the first, in each dimension; None if no element is there."""
    index = []
    for count, step, _ in dims:
        place, distance = divmod(distance, step)
        if place >= count:
            return None
        index.append(place)
    return None if distance else index


def _carried(size: int, step: Sequence[int], dims: Sequence[tuple[int, ...]]) -> int:
    """How many of a dimension end one of the tensor's, where more than one is walked; else 0."""
    moved = [dim for dim, count in enumerate(step) if count]
    if len(moved) != 1:
        return 0
    count, each = dims[moved[0]][0], step[moved[0]]
    inner = count // each
    is_split = 1 < inner < size and count % each == 0 and size % inner == 0
    return inner if is_split else 0


def covers(regions: Sequence[Strided], numel: int, wanted: Sequence[Strided]) -> bool:
    """Whether every wanted element of so many is in one of the regions."""
    runs = [(region.offset, region.end) for region in regions if region.is_run]
    wanted = [w for w in wanted if not any(a <= w.offset and w.end <= b for a, b in runs)]
    if not wanted:
        return True
    if sum(region.numel for region in regions) < max(map(_count, wanted)):
        return False
    written = torch.zeros(numel, dtype=torch.bool, device="cpu")
    for region in regions:
        region.on(written).fill_(True)
    return all(bool(region.on(written).all()) for region in wanted)


def _count(region: Strided) -> int:
    """How many elements, of a region that may have one of them in all indices of a dimension."""
    return math.prod(size for size, step in zip(region.sizes, region.strides) if step)
