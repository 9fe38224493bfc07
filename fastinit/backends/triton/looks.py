"""What is seen of a chunk in one look at it, in Triton: sums in pairs, extremes and counts.

A tile is [GROUPS, RUNS, LANES]: a group is a chunk of CHUNK values, or of ROWS rows of LANES columns, of
which RUNS runs of SHORT rows are summed at once, 16 bytes to a thread.
"""

# Triton's language: the types are those of its compiler, not Python's.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from fastinit.backends.triton.merging import is_finite
from fastinit.backends.triton.pairs import (
    add_distance,
    add_run,
    add_runs,
    add_short,
    add_value,
    as_float64,
    no_sums,
)
from fastinit.backends.triton.places import place, widen
from fastinit.backends.triton.stream import BFLOAT16, FLOAT32, FLOAT64

LANES = tl.constexpr(32)
SHORT = tl.constexpr(32)  # rows of a run
AT_ONCE = tl.constexpr(8)  # rows of a run that are read before their values are added


@triton.jit
def no_values(shape: tl.constexpr, DTYPE: tl.constexpr):
    """(least, largest, zeros, not finite)."""
    dtype: tl.constexpr = tl.float64 if DTYPE == FLOAT64 else tl.float32
    low, high = tl.full(shape, float("inf"), dtype), tl.full(shape, float("-inf"), dtype)
    # Few enough for float32, in which a GPU counts 16-bit zeros faster.
    counts: tl.constexpr = tl.int32 if DTYPE == FLOAT32 else tl.float32
    return low, high, tl.zeros(shape, counts), tl.zeros(shape, tl.int32)


@triton.jit
def add(
    sums, seen, at, mask, around, DTYPE: tl.constexpr, MASKED: tl.constexpr, AROUND: tl.constexpr
):
    """Reads values. The first look is around zero, another at finite values, scaled, around a pivot."""
    low, high, zeros, nonfinite = seen
    if MASKED:  # NaN is neither a minimum nor a maximum nor a zero
        x = tl.load(at, mask=mask, other=0x7FC0 if DTYPE == BFLOAT16 else float("nan"))
    else:
        x = tl.load(at)
    short: tl.constexpr = x.dtype.primitive_bitwidth == 16
    x = widen(x, DTYPE)
    if AROUND:
        scale, pivot = around
        finite = is_finite(x)
        nonfinite += (mask & ~finite).to(tl.int32)
        sums = add_distance(sums, tl.where(finite, x * scale, pivot), pivot)
        low, high = tl.where(finite & (x < low), x, low), tl.where(finite & (x > high), x, high)
    else:
        v = tl.where(mask, x, 0.0) if MASKED else x
        sums = add_short(sums, v) if short else add_value(sums, v)
        low, high = tl.minimum(low, x), tl.maximum(high, x)
    zeros += (x == 0).to(zeros.dtype)
    return sums, (low, high, zeros, nonfinite)


@triton.jit
def add_rows(
    sums,
    seen,
    base,
    found,
    row,  # [groups, RUNS, 1]
    lane,  # [1, 1, LANES]; columns are where base is
    left,  # rows, [groups, RUNS, 1]
    inside,
    around,
    sizes,
    strides,
    DTYPE: tl.constexpr,
    WIDTH: tl.constexpr,  # values of a row that are one behind another
    MASKED: tl.constexpr,
    AROUND: tl.constexpr,
    DIMS: tl.constexpr,
):
    """A run of each of RUNS."""
    apart = tl.full((), WIDTH, tl.int64) * strides[0]
    to = base + row * apart + lane * tl.full((), 1, tl.int64) * strides[0]
    most = tl.minimum(tl.max(tl.max(left, 1)), SHORT) if MASKED else SHORT
    for step in range(0, most, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            if DIMS == 1:
                at = to + i * apart
            else:
                at = base + place(found, (row + step + i) * WIDTH + lane, sizes, strides, DIMS)
            mask = (left > step + i) & inside
            sums, seen = add(sums, seen, at, mask, around, DTYPE, MASKED, AROUND)
        to += AT_ONCE * apart
    return sums, seen


@triton.jit
def reshaped(tiles, shape: tl.constexpr):
    return (
        tl.reshape(tiles[0], shape),
        tl.reshape(tiles[1], shape),
        tl.reshape(tiles[2], shape),
        tl.reshape(tiles[3], shape),
    )


@triton.jit
def together(lanes):
    """[groups, LANES] to [groups, 1]: lane i and lane i + 16, then i and i + 8, and so on."""
    groups: tl.constexpr = lanes.shape[0]
    x = lanes
    for level in tl.static_range(5):
        x = tl.sum(tl.reshape(x, (groups, 2, 16 >> level)), 1)
    return x


@triton.jit
def look(
    base,  # [groups, 1, 1], or in columns [groups, 1, LANES]
    found,  # coordinates of the first value or row
    lane,  # [1, 1, LANES], or 0 in columns
    n,  # values, [groups, 1], or in columns [groups, LANES]
    inside,  # alike
    scale,
    pivot,
    sizes,
    strides,
    DTYPE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    AROUND: tl.constexpr,
    DIMS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """(total, squares, low, high, count, zeros, nonfinite) of each group, or each of its columns."""
    RUNS: tl.constexpr = 1 << LEVELS
    WIDTH: tl.constexpr = 1 if BY_COLUMN else LANES
    wide: tl.constexpr = tl.float64 if DTYPE == FLOAT64 else tl.float32
    groups: tl.constexpr = n.shape[0]
    steps = n if BY_COLUMN else n // LANES
    run = tl.arange(0, RUNS)[None, :, None]
    here, around = inside[:, None, :], (scale[:, None, :], pivot[:, None, :])
    whole = tl.min(tl.where(inside, steps, 0))
    lanes = no_sums((groups, LANES), wide)
    seen = no_values((groups, RUNS, LANES), DTYPE)
    for done in range(0, tl.max(steps), RUNS * SHORT):
        runs = no_sums((groups, RUNS, LANES), wide)
        row = done + run * SHORT
        left = steps[:, None, :] - row
        if AROUND:
            runs, seen = add_rows(
                *(runs, seen, base, found, row, lane, left, here, around, sizes, strides),
                *(DTYPE, WIDTH, True, True, DIMS),
            )
        elif done + RUNS * SHORT <= whole:
            runs, seen = add_rows(
                *(runs, seen, base, found, row, lane, left, here, around, sizes, strides),
                *(DTYPE, WIDTH, False, False, DIMS),
            )
        else:
            runs, seen = add_rows(
                *(runs, seen, base, found, row, lane, left, here, around, sizes, strides),
                *(DTYPE, WIDTH, True, False, DIMS),
            )
        lanes = add_runs(lanes, runs, LEVELS)
    low, high, zeros, nonfinite = seen
    low, high = tl.min(low, 1), tl.max(high, 1)
    zeros, nonfinite = tl.sum(zeros, 1), tl.sum(nonfinite, 1)
    if not BY_COLUMN:  # what is left behind the last row
        on = steps[:, None, :] * LANES + lane
        if DIMS == 1:
            at = base + on.to(tl.int64) * strides[0]
        else:
            at = base + place(found, on, sizes, strides, DIMS)
        one: tl.constexpr = (groups, 1, LANES)
        run, rest = add(
            *(no_sums(one, wide), no_values(one, DTYPE), at, on < n[:, None, :], around),
            *(DTYPE, True, AROUND),
        )
        shape: tl.constexpr = (groups, LANES)
        lanes, rest = add_run(lanes, reshaped(run, shape)), reshaped(rest, shape)
        low, high = tl.minimum(low, rest[0]), tl.maximum(high, rest[1])
        zeros, nonfinite = zeros + rest[2], nonfinite + rest[3]
    total, squares = as_float64(lanes)
    if not BY_COLUMN:
        total, squares = together(total), together(squares)
        low, high = tl.min(low, 1, keep_dims=True), tl.max(high, 1, keep_dims=True)
        zeros = tl.sum(zeros, 1, keep_dims=True)
        nonfinite = tl.sum(nonfinite, 1, keep_dims=True)
    return total, squares, low, high, n - nonfinite, zeros, nonfinite
