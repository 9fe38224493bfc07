"""Rows: some of a parameter's indices of the first dimension, such as new tokens of an embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastinit.base import number
from fastinit.elements import shards as shard
from fastinit.elements.part import Part, Run

Rows = slice | Sequence[int] | Tensor
"""Indices of the first dimension: a slice, a range, whole numbers, or a tensor of these or of bools."""


def runs_of(rows: Any, size: int, argument: str) -> list[Run]:
    """(start, length) of the indices, each once and in their order.

    Args:
        rows: as :data:`Rows`; negative ones count from the end.
        size: of the dimension.

    Raises:
        TypeError, ValueError: what is no such thing; indices outside the dimension.

    >>> runs_of(slice(-2, None), 5, "rows"), runs_of([4, 0, 3], 5, "rows")
    ([(3, 2)], [(0, 1), (3, 2)])
    """
    if isinstance(rows, slice):
        rows = range(size)[rows]
    elif isinstance(rows, Tensor):
        if rows.dim() != 1 or rows.is_floating_point() or rows.is_complex():
            raise TypeError(f"{argument} must be of one dimension and whole, but got {rows}")
        if rows.dtype == torch.bool:
            if rows.numel() != size:
                raise ValueError(f"{argument} must have {size} bools, but got {rows.numel()}")
            rows = rows.nonzero().flatten()
        rows = rows.tolist()
    elif isinstance(rows, str) or not isinstance(rows, Sequence):
        raise TypeError(f"{argument} must be a slice or whole numbers, but got {rows!r}")
    found: list[Run] = []
    indices = [number.integer(argument, row) for row in rows]
    if outside := [row for row in indices if not -size <= row < size]:
        raise ValueError(f"{argument} must be rows of {size}, but got {outside[0]}")
    for row in sorted({row % size for row in indices}):
        if found and sum(found[-1]) == row:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((row, 1))
    return found


def held_rows(
    tensor: Tensor, runs: Sequence[Run], argument: str, part: Part | None = None
) -> Iterator[tuple[Tensor, Part]]:
    """Views of what this rank has of some rows, each with what it is of the parameter.

    Args:
        part: of the parameter, where the tensor is one and does not say so itself.

    Raises:
        NotImplementedError: of a flat range; and as ``fastinit.elements.shards.part_of``.
    """
    part = shard.part_of(tensor, argument, part)
    here = shard.local(tensor)
    part = Part(tuple(here.shape)) if part is None else part
    if not part.numel:
        return
    if part.flat is not None:
        raise NotImplementedError(f"{argument} is a flat range, of which no rows can be filled")
    at = 0
    for start, length in part.runs[0]:
        for first, count in runs:
            low, high = max(first, start), min(first + count, start + length)
            if low < high:
                place = (at + low - start, high - low)
                yield here.detach().narrow(0, *place), part.cut(0, [place])
        at += length
