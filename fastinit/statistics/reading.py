"""What is to be read of a tensor: checked, and in the order of its memory, in a few dimensions."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastinit.backends.contract import Reading
from fastinit.base import number
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.part import Part
from fastinit.elements.strided import Strided
from fastinit.stream import laws

MAX_DIMS = 8
"""Dimensions that cannot be merged, of what a backend reads at once: csrc/kernels.h and backends/triton/
have no more."""


def checked(x: Tensor, i: int, dim: int | None, part: Part | None) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype not in laws.DTYPES:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"x must be a float16, bfloat16, float32 or float64 tensor, but got {got} (number {i})"
        )
    if part is not None:
        x = _as_part(x, f"x (number {i})", dim, part)
    if dim is not None and not -x.dim() <= dim < x.dim():
        raise IndexError(
            f"dim must be in the range of x's {x.dim()} dimensions, but got {number.said(dim)}"
        )
    return tensors.values(x, f"x (number {i})")


def _as_part(x: Tensor, argument: str, dim: int | None, part: Part) -> Tensor:
    """The tensor with the dimensions of its parameter."""
    shard.part_of(x, argument, part)
    part.pieces(x, argument)
    if part.flat is not None and dim is not None:
        raise ValueError(f"{argument} is a flat range, which has no channels along dim={dim}")
    return x if part.flat is not None else x.detach().view(part.local_shape)


def readings_of(
    x: Tensor, dim: int | None, raw: Tensor, split: list[tuple[Tensor, Tensor]]
) -> Iterator[Reading]:
    """What is to be read, and where the moments of it, or counts, go.

    Args:
        split: takes (result, results of its parts in their order) where x has more dimensions than a
            backend reads at once.
    """
    if dim is None:
        flat = Strided(0, (x.numel(),), (1,))
        _, shape, strides = flat if x.is_contiguous() else Strided.of(x).in_memory_order()
        if len(shape) <= MAX_DIMS:
            yield Reading(x, shape, strides, False, raw)
            return
        view = x.as_strided(shape, strides)
        fewest = min(range(len(shape)), key=shape.__getitem__)
        parts = raw.new_empty(shape[fewest], len(raw))
        split.append((raw, parts))
        for part, result in zip(view.unbind(fewest), parts.unbind()):
            yield from readings_of(part, None, result, split)
        return
    channels = x.shape[dim]
    if channels == 0:
        return
    rest = x.select(dim, 0)
    _, shape, strides = Strided.of(rest).in_memory_order()
    if x.stride(dim) == 1 and channels > 1 and len(shape) < MAX_DIMS:
        yield Reading(x, [*shape, channels], [*strides, 1], True, raw)
        return
    for part, result in zip(x.unbind(dim), raw.unbind()):
        yield from readings_of(part, None, result, split)
