"""Counting in Triton, in a read of its own: what ``stream/reference_counts.py`` says, in one kernel.

A tile is [BLOCKS, 32] values: blocks lie along the last dimension, filled up to whole ones. From which
magnitudes on a value is kept, normal and saturated stands in tables, one row for each scale that a block
may have, which the reference's own ``bounds`` make: on the device, so that nothing waits.
"""

# Triton's language: the types are those of its compiler, not Python's.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinit.backends.contract import Counted
from fastinit.backends.triton.places import coordinates, place, widen
from fastinit.backends.triton.stream import FLOAT64, INTERPRETED, plain_arithmetic
from fastinit.stream import formats, laws, reference_counts
from fastinit.stream.formats import BY_E4M3, BY_TENSOR, UNSCALED, Counting, Format
from fastinit.stream.reference_moments import MAX, MIN

BLOCK = tl.constexpr(formats.BLOCK)
BINS = tl.constexpr(formats.BINS)
SHARES = tl.constexpr(len(formats.SHARES))
INFINITE = tl.constexpr(reference_counts.INFINITE)
BY_POWER = tl.constexpr(formats.BY_POWER)
SCALES = tl.constexpr(256)  # at most, of a format
TILES = 16  # of a program
BLOCKS = (
    2048 if INTERPRETED else 64
)  # of a tile; the interpreter pays for operations, not for elements


@triton.jit
def magnitude(x, DTYPE: tl.constexpr):
    """The bits of it in float32; a float64 value remains finite, and not 0."""
    x = widen(x, DTYPE)
    size = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if DTYPE == FLOAT64:
        size = tl.minimum(tl.maximum(size, 1), INFINITE - 1)
        size = tl.where(x == 0, 0, tl.where(x - x == 0, size, INFINITE))
    return size


@triton.jit
def bin_of(x, size, DTYPE: tl.constexpr):
    """Of its exponent; the one behind the last of what is 0 or infinite."""
    if DTYPE == FLOAT64:
        e = (x.to(tl.int64, bitcast=True) >> 52 & 2047).to(tl.int32) - 896
        e = tl.minimum(tl.maximum(e, 0), BINS - 1)
    else:
        e = size >> 23
    return tl.where((size > 0) & (size < INFINITE), e, BINS)


@triton.jit
def e4m3_bits(x):
    small = (x + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    bits = x.to(tl.int32, bitcast=True)
    normal = (bits + 0x7FFFF + (bits >> 20 & 1) >> 20) - 960
    return tl.where(x < 448.0, tl.where(x < 0.015625, small, normal), 126)


@triton.jit
def shares(size, table, tensor, LARGEST: tl.constexpr, SCALING: tl.constexpr, EACH: tl.constexpr):
    """How many values of a tile are flushed, saturated and subnormal."""
    if EACH:
        size = tl.reshape(size, (size.shape[0] * (BLOCK // EACH), EACH))
        most = tl.max(tl.where(size < INFINITE, size, 0), 1)[:, None]
        if SCALING == BY_POWER:
            row = most >> 23
        else:
            scale = tl.load(tensor)
            ratio = tl.div_rn(most.to(tl.float32, bitcast=True), tl.full((), LARGEST, tl.float32))
            ratio = tl.div_rn(ratio, tl.where(scale > 0, scale, 1.0))
            row = tl.where(scale > 0, e4m3_bits(ratio), 0)
        table += row * SHARES
    kept, normal, over = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    flushed = (size > 0) & (size < kept) & (size < INFINITE)
    saturated = (size >= over) & (size < INFINITE)
    subnormal = (size >= kept) & (size < normal) & (size < INFINITE)
    return (
        tl.sum(tl.sum(flushed.to(tl.int32), 1)),
        tl.sum(tl.sum(saturated.to(tl.int32), 1)),
        tl.sum(tl.sum(subnormal.to(tl.int32), 1)),
    )


# Sizes are no reason to compile the kernel anew.
@triton.jit(do_not_specialize=["total", "row", "padded"])
def count(
    data,
    counts,  # int64: of each format its shares, then the bins
    tables,  # int32 [formats, SCALES, SHARES]
    tensors,  # float32 [formats]: the tensor's part of the scales
    total,  # values, each row filled up
    row,  # of the last dimension
    padded,  # filled up
    sizes,  # of the dimensions after the first
    strides,
    DTYPE: tl.constexpr,
    SCALINGS: tl.constexpr,
    EACH: tl.constexpr,  # values of a block; 0: none
    LARGEST: tl.constexpr,
    FORMATS: tl.constexpr,
    HISTOGRAM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Each program counts TILES tiles."""
    first = tl.program_id(0).to(tl.int64) * (TILES * BLOCKS * BLOCK)
    on = tl.arange(0, BLOCKS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    slot = tl.arange(0, 64)
    found, bins = tl.zeros((64,), tl.int32), tl.zeros((BINS + 1,), tl.int32)
    for tile in range(TILES):
        index = first + tile * (BLOCKS * BLOCK) + on
        inside = index < total
        if DIMS == 1:
            inside &= index < row
            at = index * strides[0]
        else:
            line = index // padded
            column = index - line * padded
            inside &= column < row
            start = coordinates(line * row + column, sizes, DIMS)
            at = place(start, on * 0, sizes, strides, DIMS)
        x = tl.load(data + at, mask=inside, other=0)
        size = magnitude(x, DTYPE)
        for i in tl.static_range(FORMATS):
            table = tables + i * SCALES * SHARES
            of = shares(size, table, tensors + i, LARGEST[i], SCALINGS[i], EACH[i])
            for j in tl.static_range(SHARES):
                found += tl.where(slot == i * SHARES + j, of[j], 0)
        if HISTOGRAM:
            each = bin_of(x, size, DTYPE)
            bins += tl.histogram(tl.reshape(each, (BLOCKS * BLOCK,)), BINS + 1)
    tl.atomic_add(counts + slot, found.to(tl.int64), mask=slot < FORMATS * SHARES)
    if HISTOGRAM:
        bin = tl.arange(0, BINS + 1)
        to = counts + FORMATS * SHARES + bin
        tl.atomic_add(to, bins.to(tl.int64), mask=bin < BINS)


@plain_arithmetic()
def count_many(counted: Sequence[Counted], counting: Counting) -> None:
    """Adds to the counts of each; none has channels."""
    for reading, moments in counted:
        tensor, shape, strides, _, counts = reading
        row, unit = shape[-1], BLOCK.value if counting.in_blocks else 1
        padded = -(-row // unit) * unit
        total = math.prod(shape[:-1]) * padded
        if not total:
            continue
        tables, tensors = _tables(counting, moments)
        blocks = min(BLOCKS, triton.next_power_of_2(triton.cdiv(total, BLOCK.value)))
        tiles = min(TILES, triton.cdiv(total, blocks * BLOCK.value))
        count[(triton.cdiv(total, tiles * blocks * BLOCK.value),)](
            tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor,
            counts,
            tables,
            tensors,
            total,
            row,
            padded,
            tuple(shape[1:]),
            tuple(strides),
            DTYPE=laws.DTYPES.index(tensor.dtype),
            SCALINGS=tuple(format.scaling for format in counting.rows),
            EACH=tuple(format.block for format in counting.rows),
            LARGEST=tuple(format.largest for format in counting.rows),
            FORMATS=len(counting.rows),
            HISTOGRAM=counting.histogram,
            DIMS=len(shape),
            BLOCKS=blocks,
            TILES=tiles,
            enable_fp_fusion=False,
        )


def _tables(counting: Counting, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Of each format the bounds for each scale, and the tensor's part of these."""
    most = torch.maximum(moments[..., MAX], -moments[..., MIN])
    most = most.clamp(0, reference_counts.LARGEST_32).to(torch.float32).reshape(-1)[:1]
    tables = moments.new_zeros(len(counting.rows), SCALES.value, SHARES.value, dtype=torch.int32)
    tensors = moments.new_zeros(len(counting.rows), dtype=torch.float32)
    for i, row in enumerate(counting.rows):
        tensors[i : i + 1] = most / (row.largest * (448 if row.scaling == BY_E4M3 else 1))
        scale = _scales(row, tensors[i])
        tables[i] = torch.stack(reference_counts.bounds(row, scale), -1)
    return tables, tensors


def _scales(row: Format, tensor: Tensor) -> Tensor:
    """float64 [SCALES], by the number that the kernel has of a block."""
    number = torch.arange(SCALES.value, device=tensor.device)
    if row.scaling == UNSCALED:
        return torch.ones_like(number, dtype=torch.float64)
    if row.scaling == BY_TENSOR:
        return tensor.double().expand(SCALES.value)
    if row.scaling == BY_POWER.value:
        return reference_counts.power((number - 127 - row.exponent).clamp(-127, 127))
    normal = (number + 960 << 20).to(torch.int32).view(torch.float32)
    return torch.where(number < 8, number * 2.0**-9, normal).double() * tensor.double()
