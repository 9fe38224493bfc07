"""Counting values of tensors that have been measured: what conversions would lose, and exponents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.backends.contract import Counted, Reading
from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.elements.strided import Strided
from fastinit.statistics import across
from fastinit.statistics.reading import MAX_DIMS, checked, readings_of
from fastinit.stream.formats import BLOCK, BY_E4M3, BY_TENSOR, Counting


def check_scales(counting: Counting, dim: int | None) -> None:
    """Raises NotImplementedError where values of one channel have their scales with others."""
    if dim is not None and counting.is_scaled:
        which = ", ".join(n for n, row in zip(counting.formats, counting.rows) if row.scaling)
        raise NotImplementedError(
            f"formats that are scaled ({which}) have no shares by channel (dim={dim}): their scales are "
            f"those of blocks or of the whole tensor"
        )


def zero_counts(channels: Sequence[int], counting: Counting, device: torch.device) -> Tensor:
    return torch.zeros(*channels, counting.width, dtype=torch.int64, device=device)


def are_counted_at_once(x: Tensor, dim: int | None, part: Part | None, counting: Counting) -> bool:
    """Whether values are counted as they are measured: in the same order, and with nobody else's."""
    return (
        bool(counting.width and x.numel() and not counting.needs_largest)
        and dim is None
        and (part is None or part.is_whole)
        and (not counting.in_blocks or _has_blocks_in_a_row(x))
    )


def _has_blocks_in_a_row(x: Tensor) -> bool:
    """Whether each block along the last dimension begins where the one before ends."""
    return x.dim() <= 1 or (x.is_contiguous() and x.shape[-1] % BLOCK == 0)


def counted(
    xs: Sequence[Tensor],
    dim: int | None,
    parts: Sequence[Part | None],
    raws: Sequence[Tensor],
    counting: Counting,
    known: Sequence[Tensor | None],
) -> list[Tensor]:
    """int64 [width] or [channels, width], of what this rank holds of each.

    Args:
        raws: raw moments of all of each.
        known: what was counted already, as it was measured.

    Raises:
        NotImplementedError: a part whose blocks, or whose tensor's largest magnitude, are not all here.
    """
    found: list[Tensor] = []
    asked: dict[torch.device, list[Counted]] = {}
    split: list[tuple[Tensor, Tensor]] = []
    with internals.without_modes(), torch.no_grad():
        for i, (x, part, raw, counts) in enumerate(zip(xs, parts, raws, known)):
            if counts is not None:
                found.append(counts)
                continue
            here = checked(x, i, dim, part)
            found.append(zero_counts(raw.shape[:-1], counting, raw.device))  # of channels
            if across.is_outside(x) or not here.numel():
                continue
            _check_part(x, i, part, counting)
            if counting.in_blocks:
                readings = rows_of(here, found[-1], split)
            else:
                readings = readings_of(here, dim, found[-1], split)
            asked.setdefault(raw.device, []).extend(Counted(one, raw) for one in readings)
        for device, some in asked.items():
            backends.choose_measuring(device).count_many(some, counting)
        for all_of_it, results in reversed(split):
            all_of_it.copy_(results.sum(0))
    return found


def _check_part(x: Tensor, i: int, part: Part | None, counting: Counting) -> None:
    """Raises NotImplementedError where scales depend on what other ranks hold."""
    if shard.is_dtensor(x):
        part = shard.part_of(x.detach())
    elif part is not None and not part.is_whole:
        for name, row in zip(counting.formats, counting.rows):
            if row.scaling in (BY_TENSOR, BY_E4M3):
                raise NotImplementedError(
                    f"{name} is scaled by the largest magnitude of all the tensor, of which x "
                    f"(number {i}) is {part}; of a DTensor it is known"
                )
    if part is None or part.is_whole or not counting.in_blocks or not part.shape:
        return
    runs = () if part.flat else part.runs[-1]
    last = part.shape[-1]
    whole = all(
        start % BLOCK == 0
        and (length % BLOCK == 0 or (start + length == last and run == len(runs) - 1))
        for run, (start, length) in enumerate(runs)
    )
    if part.flat or not whole:
        raise NotImplementedError(
            f"blocks of {BLOCK} along the last dimension lie on several ranks: x (number {i}) is {part}"
        )


def rows_of(x: Tensor, counts: Tensor, split: list[tuple[Tensor, Tensor]]) -> Iterator[Reading]:
    """What is to be read where the last dimension has to stay the last one."""
    if _has_blocks_in_a_row(x):
        yield Reading(x, (x.numel(),), (x.stride(0) if x.dim() == 1 else 1,), False, counts)
        return
    row = x.shape[-1]
    _, shape, strides = Strided.of(x.select(-1, 0)).in_memory_order()
    few = min(len(shape), MAX_DIMS - 1)
    outer = list(itertools.product(*map(range, shape[few:])))
    parts = counts.new_zeros(len(outer), len(counts)) if len(outer) > 1 else counts[None]
    if len(outer) > 1:
        split.append((counts, parts))
    for index, result in zip(outer, parts):
        offset = x.storage_offset() + sum(i * s for i, s in zip(index, strides[few:]))
        view = x.as_strided((*shape[:few], row), (*strides[:few], x.stride(-1)), offset)
        yield Reading(view, tuple(view.shape), view.stride(), False, result)
