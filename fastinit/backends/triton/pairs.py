"""Sums in pairs of float32, in Triton: ``csrc/cuda/runs.cuh`` in tiles, with the mathematics there.

A run's sums are a tuple (total, total_low, squares, squares_low) of tiles of one shape: of float32 a
number is high + low, of which low is what high's roundings left out; float64 has no use for low.
"""

# Triton's language: the types are those of its compiler, not Python's.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def no_sums(shape: tl.constexpr, dtype: tl.constexpr):
    none = tl.zeros(shape, dtype)
    return none, none, none, none


@triton.jit
def two_sum(a, b):
    """The sum, and what its rounding left out."""
    total = a + b
    y = total - a
    return total, (a - (total - y)) + (b - y)


@triton.jit
def add_value(sums, v):
    """A value, around zero."""
    total, total_low, squares, squares_low = sums
    if v.dtype == tl.float64:
        return total + v, total_low, squares + v * v, squares_low
    else:
        total, left_out = two_sum(total, v)
        square = v * v
        error = tl.fma(v, v, -square)
        squares, squares_left = two_sum(squares, square)
        return total, total_low + left_out, squares, squares_low + (squares_left + error)


@triton.jit
def add_short(sums, v):
    """A 16-bit value: its square is exact in float32, where a run of them is summed."""
    return sums[0] + v, sums[1], tl.fma(v, v, sums[2]), sums[3]


@triton.jit
def add_distance(sums, v, pivot):
    """The distance of a value from the pivot, which is a pair itself."""
    total, total_low, squares, squares_low = sums
    if v.dtype == tl.float64:
        return add_value(sums, v - pivot)
    else:
        d, low = two_sum(v, -pivot)
        total, left_out = two_sum(total, d)
        square = d * d
        error = tl.fma(d + d, low, tl.fma(d, d, -square))
        squares, squares_left = two_sum(squares, square)
        return (
            total,
            total_low + (left_out + low),
            squares,
            squares_low + (squares_left + error),
        )


@triton.jit
def add_run(sums, run):
    total, total_low, squares, squares_low = sums
    if total.dtype == tl.float64:
        return total + run[0], total_low, squares + run[2], squares_low
    else:
        total, left = two_sum(total, run[0])
        squares, squares_left = two_sum(squares, run[2])
        return (
            total,
            total_low + (left + run[1]),
            squares,
            squares_low + (squares_left + run[3]),
        )


@triton.jit
def slices(x, LEVELS: tl.constexpr):
    """[groups, 2^LEVELS, lanes] to as many [groups, lanes, 1], in their order."""
    groups: tl.constexpr = x.shape[0]
    lanes: tl.constexpr = x.shape[2]
    parts = (tl.permute(x, (0, 2, 1)),)
    for level in tl.static_range(LEVELS):
        halves = ()
        for i in tl.static_range(1 << level):
            two = tl.reshape(parts[i], (groups, lanes, 2, 1 << (LEVELS - 1 - level)))
            halves += tl.split(tl.permute(two, (0, 1, 3, 2)))
        parts = halves  # type: ignore[assignment]
    return parts


@triton.jit
def add_runs(sums, runs, LEVELS: tl.constexpr):
    """Those of [groups, 2^LEVELS, lanes] to [groups, lanes], one after another."""
    shape: tl.constexpr = sums[0].shape
    total, total_low = slices(runs[0], LEVELS), slices(runs[1], LEVELS)
    squares, squares_low = slices(runs[2], LEVELS), slices(runs[3], LEVELS)
    for i in tl.static_range(1 << LEVELS):
        run = (
            tl.reshape(total[i], shape),
            tl.reshape(total_low[i], shape),
            tl.reshape(squares[i], shape),
            tl.reshape(squares_low[i], shape),
        )
        sums = add_run(sums, run)
    return sums


@triton.jit
def as_float64(sums):
    """(total, squares)."""
    total = sums[0].to(tl.float64) + sums[1].to(tl.float64)
    return total, sums[2].to(tl.float64) + sums[3].to(tl.float64)
