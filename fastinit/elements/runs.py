"""Windows as runs: which of a tensor's elements are neighbours in the stream, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Dim(NamedTuple):
    """One dimension of a window: its size, and its strides in memory and in the stream."""

    size: int
    local: int
    stream: int


def runs(
    shape: Sequence[int], local: Sequence[int], stream: Sequence[int]
) -> tuple[list[Dim], int, int]:
    """(dimensions that the runs stand in, a run's length, its stride in memory).

    A run is neighbours in the stream: the dimension whose stream stride is 1. Without one, each
    element is a run. Dimensions come in the order of their stream strides, neighbours that are one
    dimension in both address spaces merged: a contiguous tensor is one run.

    >>> runs((2, 3), (3, 1), (3, 1))
    ([], 6, 1)
    >>> runs((2, 3), (1, 2), (3, 1))
    ([Dim(size=2, local=1, stream=3)], 3, 2)
    """
    dims = [Dim(*d) for d in zip(shape, local, stream) if d[0] != 1]
    dims.sort(key=lambda d: -d.stream)
    merged: list[Dim] = []
    for d in dims:
        outer = merged[-1] if merged else None
        if outer and (outer.local, outer.stream) == (d.local * d.size, d.stream * d.size):
            merged[-1] = Dim(outer.size * d.size, d.local, d.stream)
        else:
            merged.append(d)
    if merged and merged[-1].stream == 1:
        return merged[:-1], merged[-1].size, merged[-1].local
    return merged, 1, 1


def in_memory_order(shape: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sizes and strides of the dimensions from the largest stride on, merged where they are one.

    >>> in_memory_order((2, 3, 4), (12, 1, 3))
    ([24], [1])
    """
    dims = sorted((d for d in zip(strides, shape) if d[1] != 1), key=lambda d: -d[0])
    merged: list[tuple[int, int]] = []
    for stride, size in dims:
        if merged and merged[-1][0] == stride * size:
            merged[-1] = (stride, merged[-1][1] * size)
        else:
            merged.append((stride, size))
    merged = merged or [(1, 1)]
    return [size for _, size in merged], [stride for stride, _ in merged]
