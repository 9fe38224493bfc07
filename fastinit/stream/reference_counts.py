"""Counts in plain torch, chunk by chunk: what the kernels' are equal to (``csrc/counts.h``).

A value is looked at as the bits of its magnitude in float32, whose order is that of the numbers; one of
float64 is rounded to it first, as torch's conversions do, but remains finite, and not 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastinit.stream.formats import (
    BINS,
    BLOCK,
    BY_POWER,
    BY_TENSOR,
    UNSCALED,
    Counting,
    Format,
)
from fastinit.stream.reference import CHUNK
from fastinit.stream.reference_moments import MAX, MIN, widened

INFINITE = 0x7F800000
"""The bits of float32's infinity: the least of what is not finite."""
LARGEST_32 = float(torch.finfo(torch.float32).max)


def counts(view: Tensor, by_column: bool, counting: Counting, raw: Tensor) -> Tensor:
    """int64 [width], or of each index of the last dimension, [channels, width].

    Args:
        raw: the raw moments of the tensor that these values are of, or a part of.
    """
    if view.numel() > CHUNK:
        dim, at = _cut(view, by_column, counting.in_blocks)
        if at:
            rest = view.narrow(dim, at, view.size(dim) - at)
            first = counts(view.narrow(dim, 0, at), by_column, counting, raw)
            return first + counts(rest, by_column, counting, raw)
    size = _by_channel(magnitudes(view), by_column)
    most = torch.maximum(raw[..., MAX], -raw[..., MIN])  # without finite values -inf
    most = most.clamp(0, LARGEST_32).to(torch.float32)
    found = [n for row in counting.rows for n in _shares(size, row, most)]
    if counting.histogram:
        found += _bins(size, _by_channel(_exponents(view), by_column))
    together = torch.stack(found, -1) if found else size.new_zeros(len(size), 0)
    return together if by_column else together[0]


def _by_channel(x: Tensor, by_column: bool) -> Tensor:
    """[channels, values], or with one channel [1, ...]."""
    return x.reshape(-1, x.shape[-1]).t() if by_column else x.unsqueeze(0)


def _cut(view: Tensor, by_column: bool, in_blocks: bool) -> tuple[int, int]:
    """The dimension to cut, and where; 0 where there is nothing to cut."""
    sizes = list(view.shape[:-1] if by_column else view.shape)
    if in_blocks:
        sizes[-1] = sizes[-1] // BLOCK
    dim = max(range(len(sizes)), key=sizes.__getitem__)
    unit = BLOCK if in_blocks and dim == len(sizes) - 1 else 1
    return dim, sizes[dim] // 2 * unit


def magnitudes(x: Tensor) -> Tensor:
    """int64, of the same shape: the bits of each value's magnitude in float32."""
    if x.dtype is torch.float32:
        return (x.view(torch.int32) & 0x7FFFFFFF).long()
    if x.dtype is torch.bfloat16:
        return (x.view(torch.int16) & 0x7FFF).long() << 16
    wide = widened(x).abs()
    normal = wide.clamp(2.0**-126, LARGEST_32).to(torch.float32).view(torch.int32).long()
    # Halves of the least number, to even; torch.set_flush_denormal(True) makes zeros of float32's.
    small = torch.round(wide * 2.0**149).clamp(0, 2.0**23).long()
    size = torch.where(wide < 2.0**-126, small, normal).clamp(1)
    return torch.where(wide == 0, 0, torch.where(wide.isfinite(), size, INFINITE))


def _shares(size: Tensor, row: Format, most: Tensor) -> list[Tensor]:
    """Those flushed, saturated and subnormal, [channels] each."""
    if row.block:
        size = _in_blocks(size, row.block)
    kept, normal, over = (bits.unsqueeze(-1) for bits in bounds(row, _scale(size, row, most)))
    found = (
        (size > 0) & (size < torch.minimum(kept, size.new_tensor(INFINITE))),
        (size >= over) & (size < INFINITE),
        (size >= kept) & (size < normal) & (size < INFINITE),
    )
    return [one.flatten(1).sum(1) for one in found]


def _in_blocks(size: Tensor, block: int) -> Tensor:
    """The last dimension as [blocks, block], filled up with zeros."""
    length = size.shape[-1]
    blocks = -(-length // block)
    padded = torch.nn.functional.pad(size, (0, blocks * block - length))
    return padded.view(*size.shape[:-1], blocks, block)


def _scale(size: Tensor, row: Format, most: Tensor) -> Tensor:
    """float64: what the values of each last dimension are divided by."""
    if row.scaling == UNSCALED:
        return torch.ones(size.shape[:-1], dtype=torch.float64, device=size.device)
    if row.scaling == BY_TENSOR:
        return (most / row.largest).double().expand(size.shape[:-1])
    block = torch.where(size < INFINITE, size, 0).amax(-1)
    if row.scaling == BY_POWER:
        return power(((block >> 23) - 127 - row.exponent).clamp(-127, 127))
    tensor = most / (row.largest * 448)
    ratio = block.to(torch.int32).view(torch.float32) / row.largest / tensor
    return torch.where(tensor > 0, e4m3(ratio) * tensor.double(), 0.0)


def e4m3(x: Tensor) -> Tensor:
    """float64: positive float32 values as E4M3 has them, the largest for what is beyond it."""
    x = x.double().clamp(max=448.0)
    unit = power((x.clamp(min=2.0**-6).view(torch.int64) >> 52) - 1023 - 3)
    return torch.round(x / unit) * unit


def bounds(row: Format, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int64, from which magnitudes on a value divided by the scale is kept, normal, and saturated.

    A scale of 0 gives back nothing but 0.
    """
    bits = (
        _least_bits(row.kept * scale, False),
        _least_bits(row.normal * scale, True),
        _least_bits(row.over * scale, row.over_itself),
    )
    kept, normal, over = (torch.where(scale > 0, one, INFINITE) for one in bits)
    return kept, normal, over


def _least_bits(bound: Tensor, itself: bool) -> Tensor:
    """The bits of the least float32 number from ``bound`` on, or if not ``itself``, above it."""
    bits = magnitudes(bound)
    value = _number(bits)
    return torch.where((value < bound) | (value == bound) & (not itself), bits + 1, bits).clamp(
        max=INFINITE
    )


def _number(bits: Tensor) -> Tensor:
    """float64: the number with these bits of float32, also of denormal ones."""
    exponent, mantissa = bits >> 23, (bits & 0x7FFFFF).double()
    normal = (1 + mantissa * 2.0**-23) * power(exponent - 127)
    return torch.where(exponent > 0, normal, mantissa * 2.0**-149)


def _bins(size: Tensor, exponent: Tensor) -> list[Tensor]:
    """How many values there are of each exponent, [channels] each."""
    exponent = torch.where(size < INFINITE, exponent, BINS)
    exponent = torch.where(size > 0, exponent, BINS + 1).flatten(1)
    table = size.new_zeros(len(size), BINS + 2)
    table.scatter_add_(1, exponent, torch.ones_like(exponent))
    return list(table[:, :BINS].unbind(1))


def _exponents(x: Tensor) -> Tensor:
    """int64, of the same shape: each value's bin. Of float64 not that of what it is rounded to."""
    if x.dtype is torch.float64:
        return ((x.view(torch.int64) >> 52 & 2047) - 896).clamp(0, BINS - 1)
    return magnitudes(x) >> 23


def power(exponent: Tensor) -> Tensor:
    """float64: 2 to normal exponents, exactly."""
    return (exponent + 1023 << 52).view(torch.float64)
