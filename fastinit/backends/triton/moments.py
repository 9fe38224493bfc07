"""One-pass moments in Triton, for GPUs that the native build does not serve.

This is ``csrc/cuda/`` in tiles: the same sums in the same order, so the same bits (tests/gpu_moments.py
has them in numpy); read the comments about the mathematics there. What was met of a chunk (looks.py) is
written as it is; a second launch looks again where that does not tell, and a third makes moments of it
and merges them (merging.py). Kernels are launched with ``enable_fp_fusion=False``.
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
from fastinit.backends.triton.looks import LANES, look
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
from fastinit.backends.triton.places import coordinates
from fastinit.backends.triton.stream import (
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INTERPRETED,
    plain_arithmetic,
)
from fastinit.stream import laws, reference_moments

CHUNK = tl.constexpr(1 << 14)
ROWS = tl.constexpr(CHUNK // LANES)
LOOKS = tl.constexpr(3)  # after the first: to learn the scale, the mean, and to sum

# A warp has a chunk, and each of its threads 16 bytes of a row: of 2^LEVELS runs at once. Another look
# goes run by run. The interpreter pays for operations, not for elements.
GROUPS = 256 if INTERPRETED else 1  # at most
LEVELS = {dtype: 4 - int(math.log2(dtype.itemsize)) for dtype in laws.DTYPES}

AGAIN = tl.constexpr(4096)  # more than any exponent: added to it where another look is due
LIMIT = tl.constexpr(1001)  # above all exponents' sizes
LEAST_64, MOST_64 = map(tl.constexpr, reference_moments.TRUSTED)


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
