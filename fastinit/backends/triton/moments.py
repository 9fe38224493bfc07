"""One-pass moments in Triton, for GPUs that the native build does not serve.

This is ``csrc/moments.h``, as on the CPU, in tiles: the same sums in the same order, so the same bits;
read the comments about the mathematics there. A tile is [GROUPS, LANES]: a group is what a warp sums
there, a chunk of CHUNK values or ROWS rows of LANES columns, and each lane adds its values one step
after another. Where several become one, the tile is folded in two again and again, because the order
of a larger reduction is the compiler's to choose. Another kernel merges the groups' results
(merging.py). Kernels are launched with ``enable_fp_fusion=False``.
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
from fastinit.backends.triton.merging import FIELDS, is_finite, merge_in_order
from fastinit.stream import laws, reference_moments

LANES = tl.constexpr(32)
SHORT = tl.constexpr(32)  # steps that 16-bit values are summed in float32
CHUNK = tl.constexpr(1 << 14)
ROWS = tl.constexpr(CHUNK // LANES)
# Which sums are to be trusted; UP_64 brings float64 values there.
LEFT, LEFT_FLOAT16 = tl.constexpr(2.0**-7), tl.constexpr(2.0**-2)
LEAST_SHORT, MOST_SHORT = tl.constexpr(2.0**-48), tl.constexpr(2.0**58)
LEAST_64, MOST_64 = map(tl.constexpr, reference_moments.TRUSTED)
UP_64 = tl.constexpr(reference_moments.UP)

AHEAD = tl.constexpr(8)  # values read before they are added one by one
# Eight groups of 32 lanes are two lanes to a thread of four warps: neighbours, read as one.
GROUPS = 256 if INTERPRETED else 8  # at most; the interpreter pays for operations, not for elements
INDEX_32 = 1 << 30  # indices below need no 64-bit divisions


# --- moments: csrc/moments.h ---------------------------------------------------------------------


@triton.jit
def any_of(tile):
    return tl.max(tl.max(tile.to(tl.int32), 1), 0) > 0


@triton.jit
def right(sums, DTYPE: tl.constexpr, PIVOTED: tl.constexpr):
    """Whether sums are right: all was finite, and no square too small or too large."""
    total, squares, low, high, _ = sums
    most = tl.maximum(high, -low)
    finite = is_finite(total) & is_finite(squares)
    if DTYPE == FLOAT64:
        return finite & ((most <= 0) | ((most >= LEAST_64) & (most <= MOST_64)))
    elif DTYPE != FLOAT32 and not PIVOTED:
        return finite & ((most <= 0) | ((most >= LEAST_SHORT) & (most <= MOST_SHORT)))
    else:
        return finite


@triton.jit
def finish(n, sums, pivot, least_left):
    """(fields of n values with these sums, whether the mean is no better pivot); n may be 0."""
    total, squares, low, high, zeros = sums
    shift = total / tl.where(n > 0, n, 1.0)
    left = squares - total * shift
    mean, m2 = pivot + shift, tl.where(left > 0, left, 0.0)
    low, high = low + 0.0, high + 0.0  # zero has no sign
    constant = low == high
    mean, m2 = tl.where(constant, low, mean), tl.where(constant, 0.0, m2)
    good = constant | (left >= least_left * squares)
    return (n, mean, m2, low, high, zeros, tl.zeros_like(n)), good


# --- reading -------------------------------------------------------------------------------------


@triton.jit
def place(start, index, sizes, strides, DIMS: tl.constexpr):
    """Where an index of the dimensions, counted in row-major order, is."""
    at = start
    for i in tl.static_range(DIMS - 1):
        rest = index // sizes[DIMS - 2 - i]
        at += (index - rest * sizes[DIMS - 2 - i]).to(tl.int64) * strides[DIMS - 1 - i]
        index = rest
    return at + index.to(tl.int64) * strides[0]


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
def accumulate(
    data,
    start,
    first,
    n,
    inside,
    pivot,
    sizes,
    strides,
    DTYPE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    PIVOTED: tl.constexpr,
    DIMS: tl.constexpr,
):
    """The sums of each lane: the first n values from ``start`` and the index ``first`` on."""
    wide: tl.constexpr = tl.float64 if DTYPE == FLOAT64 else tl.float32
    half: tl.constexpr = DTYPE != FLOAT32 and DTYPE != FLOAT64
    short: tl.constexpr = half and not PIVOTED
    part_type: tl.constexpr = tl.float32 if short else tl.float64
    # Values read before they are added: what the registers hold.
    at_once: tl.constexpr = 16 if DIMS == 1 and DTYPE != FLOAT64 else 8
    once: tl.constexpr = SHORT if short else at_once
    # What is masked reads as NaN, which neither a minimum nor a maximum nor a zero is.
    nothing: tl.constexpr = 0x7FC0 if DTYPE == BFLOAT16 else float("nan")
    steps = n if BY_COLUMN else n // LANES
    total, squares = tl.zeros(inside.shape, tl.float64), tl.zeros(inside.shape, tl.float64)
    low = tl.full(inside.shape, float("inf"), wide)
    high = tl.full(inside.shape, float("-inf"), wide)
    zeros = tl.zeros(inside.shape, tl.int32)
    # Of one dimension, places are that of the first value and a multiple of the stride.
    to = data + place(start, first, sizes, strides, DIMS)
    apart = tl.full((), 1 if BY_COLUMN else LANES, tl.int64) * strides[0]
    for done in range(0, tl.max(tl.max(steps, 1), 0), once):
        if short:
            part = tl.zeros(inside.shape, tl.float32)
            part_squares = tl.zeros(inside.shape, tl.float32)
        else:
            part, part_squares = total, squares
        for at in range(done, done + once, at_once):
            left = steps - at
            here = to + at * apart
            for i in tl.static_range(at_once):
                mask = left > i
                if BY_COLUMN:
                    mask = mask & inside
                if DIMS == 1:
                    x = tl.load(here + i * apart, mask=mask, other=nothing)
                else:
                    index = first + (at + i) * (1 if BY_COLUMN else LANES)
                    where = place(start, index, sizes, strides, DIMS)
                    x = tl.load(data + where, mask=mask, other=nothing)
                x = widen(x, DTYPE)
                d = x.to(part_type)
                if PIVOTED:
                    d -= pivot
                d = tl.where(mask, d, 0.0)
                part += d
                part_squares += d * d
                low, high = tl.minimum(low, x), tl.maximum(high, x)
                zeros += (x == 0).to(tl.int32)
        if short:
            total += part.to(tl.float64)
            squares += part_squares.to(tl.float64)
        else:
            total, squares = part, part_squares
    if not BY_COLUMN:  # what is left behind the last full group of lanes
        mask = tl.arange(0, LANES)[None, :] < n - steps * LANES
        where = place(start, first + steps * LANES, sizes, strides, DIMS)
        x = widen(tl.load(data + where, mask=mask, other=nothing), DTYPE)
        d = x.to(tl.float64)
        if PIVOTED:
            d -= pivot
        d = tl.where(mask, d, 0.0)
        total += d
        squares += d * d
        low, high = tl.minimum(low, x), tl.maximum(high, x)
        zeros += (x == 0).to(tl.int32)
    return total, squares, low.to(tl.float64), high.to(tl.float64), zeros.to(tl.float64)


@triton.jit
def together(lanes):
    """[GROUPS, LANES] to [GROUPS, 1]: lane i and lane i + 16, then i and i + 8, and so on."""
    groups: tl.constexpr = lanes.shape[0]
    x = lanes
    for level in tl.static_range(5):
        x = tl.sum(tl.reshape(x, (groups, 2, 16 >> level)), 1)
    return x


@triton.jit
def of_all_lanes(sums):
    total, squares, low, high, zeros = sums
    low, high = tl.min(low, 1, keep_dims=True), tl.max(high, 1, keep_dims=True)
    return together(total), together(squares), low, high, tl.sum(zeros, 1, keep_dims=True)


@triton.jit
def one_by_one(
    data, start, first, n, some, sizes, strides, DTYPE: tl.constexpr, DIMS: tl.constexpr
):
    """The fields of the n values each of ``some``: for what the sums do not tell."""
    count = tl.zeros(some.shape, tl.float64)
    scale, back = count + 1.0, count + 1.0
    if DTYPE == FLOAT64:
        most = count
        for at in range(0, tl.max(tl.max(tl.where(some, n, 0), 1), 0)):
            where = place(start, first + at, sizes, strides, DIMS)
            size = tl.abs(tl.load(data + where, mask=some & (at < n), other=0.0))
            most = tl.where(is_finite(size) & (size > most), size, most)
        scale = tl.where(most > MOST_64, 1.0 / UP_64, tl.where(most < LEAST_64, UP_64, scale))
        back = tl.where(most > MOST_64, UP_64, tl.where(most < LEAST_64, 1.0 / UP_64, back))
    mean, m2, zeros, nonfinite = count, count, count, count
    low, high = count + float("inf"), count + float("-inf")
    for done in range(0, tl.max(tl.max(tl.where(some, n, 0), 1), 0), AHEAD):
        for i in tl.static_range(AHEAD):
            mask = some & (done + i < n)
            where = place(start, first + (done + i), sizes, strides, DIMS)
            x = widen(tl.load(data + where, mask=mask, other=0), DTYPE).to(tl.float64)
            finite = mask & (x - x == 0)
            nonfinite += (mask & ~finite).to(tl.float64)
            mask = finite
            x = tl.where(mask, x, 0.0)
            d = x * scale - mean
            count += mask.to(tl.float64)
            mean = tl.where(mask, mean + d / tl.where(mask, count, 1.0), mean)
            m2 = tl.where(mask, m2 + d * (x * scale - mean), m2)
            low = tl.where(mask & (x < low), x, low)
            high = tl.where(mask & (x > high), x, high)
            zeros += (mask & (x == 0)).to(tl.float64)
    mean, m2 = mean * back, m2 * back * back
    low, high = low + 0.0, high + 0.0
    constant = low == high
    mean, m2 = tl.where(constant, low, mean), tl.where(constant, 0.0, m2)
    return count, mean, m2, low, high, zeros, nonfinite


# --- kernels -------------------------------------------------------------------------------------


@triton.jit
def choose(which, new, old):
    """Each field of ``new`` where ``which``, else of ``old``."""
    return (
        tl.where(which, new[0], old[0]),
        tl.where(which, new[1], old[1]),
        tl.where(which, new[2], old[2]),
        tl.where(which, new[3], old[3]),
        tl.where(which, new[4], old[4]),
        tl.where(which, new[5], old[5]),
        tl.where(which, new[6], old[6]),
    )


# Sizes are no reason to compile the kernel anew, but for those that tell whether loads are aligned.
@triton.jit(do_not_specialize=["groups", "each", "rows"])
def measure(
    data,
    parts,  # [FIELDS, groups], or [FIELDS, groups, LANES] in columns
    pitch,  # from one reading of a batch to the next
    groups,  # in all
    each,  # groups of one reading, or blocks of LANES columns
    rows,  # values of one reading, or rows of columns
    columns,
    sizes,  # of the dimensions after the first
    strides,  # of all dimensions
    DTYPE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    WIDE: tl.constexpr,  # whether indices need 64 bits
    DIMS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Each program measures GROUPS groups."""
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    unit: tl.constexpr = ROWS if BY_COLUMN else CHUNK
    group = tl.program_id(0).to(index) * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    inside = group < groups
    if BY_COLUMN:
        chunk = group // each
        start = ((group - chunk * each) * LANES + lane).to(tl.int64)
        inside = inside & (start < columns)
        to, width = group.to(tl.int64) * LANES + lane, groups.to(tl.int64) * LANES
    else:
        reading = group // each
        chunk = group - reading * each
        start = reading.to(tl.int64) * pitch
        to, width = group.to(tl.int64), groups.to(tl.int64)
    first = chunk * unit
    n = tl.minimum(rows - first, unit).to(tl.int32)
    n = tl.where(group < groups, n, 0)
    here, lanes = inside, first
    if not BY_COLUMN:
        here, lanes = inside & (lane >= 0), first + lane + tl.zeros_like(group)
    sums = accumulate(
        data, start, lanes, n, here, 0.0, sizes, strides, DTYPE, BY_COLUMN, False, DIMS
    )
    if not BY_COLUMN:
        sums = of_all_lanes(sums)
    n = tl.where(inside, n, 0)
    fields, good = finish(n.to(tl.float64), sums, 0.0, LEFT_FLOAT16 if DTYPE == FLOAT16 else LEFT)
    known = right(sums, DTYPE, False)
    told = known & good
    again = inside & ~told
    half: tl.constexpr = DTYPE != FLOAT32 and DTYPE != FLOAT64
    if not half:
        again = again & known
    if any_of(again):  # those around the mean that was seen, in float64
        pivot = fields[1]
        if DTYPE != FLOAT64:
            pivot = pivot.to(tl.float32).to(tl.float64)
        pivot = tl.where(is_finite(pivot), pivot, 0.0)
        some = tl.where(again, n, 0)
        sums = accumulate(
            data, start, lanes, some, here, pivot, sizes, strides, DTYPE, BY_COLUMN, True, DIMS
        )
        if not BY_COLUMN:
            sums = of_all_lanes(sums)
        better, good = finish(n.to(tl.float64), sums, pivot, LEFT)
        fields = choose(again, better, fields)
        told = tl.where(again, right(sums, DTYPE, True) & (good | (pivot != 0)), told)
    serial = inside & ~told
    if any_of(serial):
        slow = one_by_one(data, start, first, n, serial, sizes, strides, DTYPE, DIMS)
        fields = choose(serial, slow, fields)
    for field in tl.static_range(FIELDS):
        tl.store(parts + field * width + to, fields[field], mask=inside)


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
    parts = torch.empty(FIELDS.value * width, dtype=torch.float64, device=tensor.device)
    if groups:
        tile = min(GROUPS, triton.next_power_of_2(groups)) if INTERPRETED else GROUPS
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
            WIDE=max(rows, width) >= INDEX_32,
            DIMS=dims,
            GROUPS=tile,
            num_warps=4,
            enable_fp_fusion=False,
        )
    if by_column:
        merge_in_order(parts, columns, chunks, 1, blocks * LANES.value, raw, FIELDS.value)
    else:
        merge_in_order(parts, batch.readings, chunks, chunks, 1, raw, batch.raw_pitch)
