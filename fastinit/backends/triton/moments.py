"""One-pass moments in Triton, for GPUs that the native build does not serve.

This is ``csrc/cuda/`` in tiles: the same sums in the same order, so the same bits (tests/gpu_moments.py
has them in numpy); read the comments about the mathematics there. A tile is [GROUPS, RUNS, LANES]: a
group is a chunk of CHUNK values, or of ROWS rows of LANES columns, of which RUNS runs of SHORT rows are
summed at once, 16 bytes to a thread. What was met of a chunk is written as it is; a second launch looks
again where that does not tell, and a third makes moments of it and merges them (merging.py). Kernels are
launched with ``enable_fp_fusion=False``.
"""

# Triton's language: the types are those of its compiler, not Python's.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fastinit.backends.contract import Reading
from fastinit.backends.triton.batches import Batch, batches
from fastinit.backends.triton.fill import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INTERPRETED,
    plain_arithmetic,
)
from fastinit.backends.triton.merging import (
    EXPONENT,
    FIELDS,
    MET,
    PIVOT,
    is_finite,
    load_fields,
    merge_in_order,
    power_of_two,
)
from fastinit.backends.triton.pairs import (
    add_distance,
    add_run,
    add_runs,
    add_short,
    add_value,
    as_float64,
    no_sums,
)
from fastinit.stream import laws, reference_moments

LANES = tl.constexpr(32)
SHORT = tl.constexpr(32)  # rows of a run
CHUNK = tl.constexpr(1 << 14)
ROWS = tl.constexpr(CHUNK // LANES)
LOOKS = tl.constexpr(3)  # after the first: to learn the scale, the mean, and to sum

AT_ONCE = tl.constexpr(8)  # rows of a run that are read before their values are added
# A warp has a chunk, and each of its threads 16 bytes of a row: of 2^LEVELS runs at once. Another look
# goes run by run. The interpreter pays for operations, not for elements.
GROUPS = 256 if INTERPRETED else 1  # at most
LEVELS = {dtype: 4 - int(math.log2(dtype.itemsize)) for dtype in laws.DTYPES}

AGAIN = tl.constexpr(4096)  # more than any exponent: added to it where another look is due
LIMIT = tl.constexpr(1001)  # above all exponents' sizes
LEAST_64, MOST_64 = map(tl.constexpr, reference_moments.TRUSTED)


# --- reading -------------------------------------------------------------------------------------


@triton.jit
def coordinates(index, sizes, DIMS: tl.constexpr):
    """Of an index of the dimensions, counted in row-major order; the last one first."""
    found = ()
    for i in tl.static_range(DIMS - 1):
        rest = index // sizes[DIMS - 2 - i]
        found += (index - rest * sizes[DIMS - 2 - i],)  # type: ignore[assignment]
        index = rest
    return found + (index,)  # noqa: RUF005 - Triton unpacks none


@triton.jit
def place(found, on, sizes, strides, DIMS: tl.constexpr):
    """Where the index is that is ``on`` < 2^31 behind that of these coordinates."""
    at = tl.zeros(on.shape, tl.int64)
    on = on.to(tl.int64)
    for i in tl.static_range(DIMS - 1):
        size = tl.full((), sizes[DIMS - 2 - i], tl.int64)
        here = found[i] + on
        # 64 bits take several times as long to divide: a size that needs them is passed once, if at all.
        small = size < 1 << 31
        some = here.to(tl.uint32) // tl.where(small, size, 1).to(tl.uint32)
        on = tl.where(small, some.to(tl.int64), (here >= size).to(tl.int64))
        at += (here - on * size) * strides[DIMS - 1 - i]
    return at + (found[DIMS - 1] + on) * strides[0]


@triton.jit
def widen(x, DTYPE: tl.constexpr):
    """float32, or float64 if that is stored; bfloat16 comes as its bits."""
    if DTYPE == BFLOAT16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == FLOAT16:
        return x.to(tl.float32)
    else:
        return x


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


# --- looking -------------------------------------------------------------------------------------


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


@triton.jit
def exponent_of(most):
    """Of a value, no further from 0 than that 2^-exponent is a normal number; 0 of what is none."""
    if most.dtype == tl.float64:
        e = (most.to(tl.int64, bitcast=True) >> 52 & 2047).to(tl.int32) - 1023
    else:
        e = (most.to(tl.int32, bitcast=True) >> 23 & 255) - 127
    limit: tl.constexpr = 1000 if most.dtype == tl.float64 else 126
    some = (most > 0) & is_finite(most)
    return tl.where(some, tl.minimum(tl.maximum(e, -limit), limit), 0)


@triton.jit
def told(met, pivot, exponent, DTYPE: tl.constexpr, AROUND: tl.constexpr):
    """Whether the sums are right, and enough of the squares is left without the mean's."""
    total, squares, low, high, count, _, _ = met
    if DTYPE == FLOAT64:
        least, most, left = LEAST_64, MOST_64, 2.0**-7
    elif DTYPE == FLOAT32 or AROUND:
        least, most, left = 2.0**-40, float("inf"), 2.0**-4
    else:  # the squares are no pairs
        least, most, left = 2.0**-48, 2.0**58, 2.0**-2 if DTYPE == FLOAT16 else 2.0**-7
    largest = tl.maximum(high, -low)
    size = tl.where(exponent != 0, 1.0, largest)
    within = (size >= least) & (size <= most)
    enough = total * total <= (1 - left) * (count.to(tl.float64) * squares)
    known = (low == high) | (largest <= 0)
    right = is_finite(total) & is_finite(squares)
    return right & (known | (within & ((pivot != 0) | enough)))


@triton.jit
def write(to, width, mask, met, pivot, exponent, again):
    """What was met, and whether another look is due."""
    total, squares, low, high, count, zeros, nonfinite = met
    exponent = tl.where(again, exponent + AGAIN, exponent)
    fields = (count, total, squares, low, high, zeros, nonfinite, pivot, exponent)
    for field in tl.static_range(MET):
        tl.store(to + field * width, fields[field].to(tl.float64), mask=mask)


@triton.jit
def around(to, width, mask, wide: tl.constexpr):
    """(pivot, exponent) of the next look: the mean that was seen, and the largest value's size."""
    count, total, _, low, high, _, _ = load_fields(to, width, 0, mask)
    pivot = tl.load(to + PIVOT * width, mask=mask, other=0.0)
    before = tl.load(to + EXPONENT * width, mask=mask, other=AGAIN).to(tl.int32) - AGAIN
    exponent = exponent_of(tl.maximum(high, -low).to(wide))
    mean = tl.where(count > 0, total / tl.maximum(count, 1.0) + pivot, 0.0)
    pivot = (mean * power_of_two(before - exponent)).to(wide)
    return tl.where(is_finite(pivot), pivot, 0.0), exponent


# --- kernel --------------------------------------------------------------------------------------


# Sizes are no reason to compile the kernel anew, but for those that tell whether loads are aligned.
@triton.jit(do_not_specialize=["groups", "each", "rows"])
def measure(
    data,
    parts,  # [MET, groups], or [MET, groups, LANES] in columns
    pitch,  # from one reading of a batch to the next
    groups,  # in all
    each,  # groups of one reading, or blocks of LANES columns
    rows,  # values of one reading, or rows of columns
    columns,
    sizes,  # of the dimensions after the first
    strides,  # of all dimensions
    DTYPE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    AROUND: tl.constexpr,  # whether these are the looks after the first
    DIMS: tl.constexpr,
    GROUPS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Each program measures GROUPS groups."""
    wide: tl.constexpr = tl.float64 if DTYPE == FLOAT64 else tl.float32
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    inside = group < groups
    if BY_COLUMN:
        chunk = group // each
        start = (group - chunk * each).to(tl.int64) * LANES + lane
        inside = inside & (start < columns)
        to, width = parts + (group.to(tl.int64) * LANES + lane), groups.to(tl.int64) * LANES
    else:
        reading = group // each
        chunk = group - reading * each
        start = reading.to(tl.int64) * pitch
        to, width = parts + group.to(tl.int64), groups.to(tl.int64)
    unit: tl.constexpr = ROWS if BY_COLUMN else CHUNK
    first = chunk.to(tl.int64) * unit
    n = tl.where(inside, tl.minimum(rows - first, unit), 0).to(tl.int32)
    if DIMS == 1:
        start += first * strides[0]
    base = data + start[:, None, :]
    found = coordinates(first[:, None, :], sizes, DIMS)
    on = lane[:, None, :] * 0 if BY_COLUMN else lane[:, None, :]
    if not AROUND:
        pivot, exponent = n.to(wide) * 0.0, n * 0
        met = look(
            *(base, found, on, n, inside, pivot, pivot, sizes, strides),
            *(DTYPE, BY_COLUMN, AROUND, DIMS, LEVELS),
        )
        again = ~told(met, pivot, exponent, DTYPE, AROUND)
        write(to, width, inside, met, pivot, exponent, again)
    else:
        for done in range(LOOKS):
            due = tl.load(to + EXPONENT * width, mask=inside, other=0.0)
            some = due > AGAIN - LIMIT
            if tl.max(some.to(tl.int32)) > 0:
                pivot, exponent = around(to, width, some, wide)
                met = look(
                    *(base, found, on, tl.where(some, n, 0), inside),
                    *(power_of_two(-exponent).to(wide), pivot, sizes, strides),
                    *(DTYPE, BY_COLUMN, AROUND, DIMS, LEVELS),
                )
                again = ~told(met, pivot, exponent, DTYPE, AROUND) & (done < LOOKS - 1)
                tl.debug_barrier()  # all threads have read what is written now
                write(to, width, some, met, pivot, exponent, again)
                tl.debug_barrier()


# --- launches ------------------------------------------------------------------------------------


@plain_arithmetic()
def moments_many(readings: Sequence[Reading]) -> None:
    """Writes the raw moments of each reading; all are on one device, the current one."""
    for batch in batches(readings):
        _moments(batch)


def _moments(batch: Batch) -> None:
    tensor, shape, strides, by_column, raw = batch.reading
    columns = shape[-1] if by_column else 1
    dims = len(shape) - by_column
    rows = math.prod(shape[:dims])
    chunks = triton.cdiv(rows, ROWS.value if by_column else CHUNK.value)
    blocks = triton.cdiv(columns, LANES.value) if by_column else 0
    groups = chunks * (blocks if by_column else batch.readings)
    width = groups * (LANES.value if by_column else 1)
    parts = torch.empty(MET.value * width, dtype=torch.float64, device=tensor.device)
    tile = min(GROUPS, triton.next_power_of_2(groups))
    for around in (False, True) if groups else ():
        levels = 0 if around else LEVELS[tensor.dtype]
        measure[(triton.cdiv(groups, tile),)](
            tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor,
            parts,
            batch.pitch,
            groups,
            blocks if by_column else chunks,
            rows,
            columns,
            tuple(shape[1:dims]),
            tuple(strides[:dims]),
            DTYPE=laws.DTYPES.index(tensor.dtype),
            BY_COLUMN=by_column,
            AROUND=around,
            DIMS=dims,
            GROUPS=tile,
            LEVELS=4 if INTERPRETED else levels,
            num_warps=1,
            enable_fp_fusion=False,
        )
    if by_column:
        merge_in_order(
            parts, MET.value, columns, chunks, 1, blocks * LANES.value, raw, FIELDS.value
        )
    else:
        merge_in_order(parts, MET.value, batch.readings, chunks, chunks, 1, raw, batch.raw_pitch)
