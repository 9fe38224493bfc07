"""Merging in Triton: what was met of chunks becomes their moments, and these those of the whole.

Moments are tuples of seven fields (count, mean, m2, min, max, zeros, nonfinite), float64 tiles of one
shape. Chunks are merged pairwise and in their order, as csrc/cuda does, by programs that are launched
again until one is left.
"""

# Triton's language: the types are those of its compiler, not Python's.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinit.stream import reference_moments

FIELDS = tl.constexpr(reference_moments.FIELDS)
PIVOT, EXPONENT, MET = (tl.constexpr(FIELDS.value + i) for i in range(3))
"""Of what was met there are MET fields: for mean and m2 the sums of distances from a pivot and of their
squares, of values times 2^-exponent; then the pivot and the exponent."""
TREE_LEVELS = (0, 4)  # of pairwise merges in a program, each compiled once; 8 of them spill 4 KB


@triton.jit
def is_finite(x):
    return x - x == 0


@triton.jit
def power_of_two(exponent):
    return (exponent.to(tl.int64) + 1023 << 52).to(tl.float64, bitcast=True)


@triton.jit
def moments_of(met, pivot, exponent):
    """The moments of values of which that was met; there may be none."""
    count, total, squares, low, high, zeros, nonfinite = met
    back = power_of_two(exponent)
    shift = total / tl.where(count > 0, count, 1.0)
    left = squares - total * shift
    mean, m2 = (pivot + shift) * back, tl.where(left > 0, left, 0.0) * back * back
    low, high = low + 0.0, high + 0.0  # zero has no sign
    constant = low == high
    mean, m2 = tl.where(constant, low, mean), tl.where(constant, 0.0, m2)
    return count, mean, m2, low, high, zeros, nonfinite


@triton.jit
def merge(a, b):
    """The moments of two sets together (Chan, Golub & LeVeque 1979)."""
    count = a[0] + b[0]
    both = (a[0] > 0) & (b[0] > 0)
    step = tl.where(both, b[1] - a[1], 0.0)
    share = b[0] / tl.where(both, count, 1.0)
    # The mean does not overflow, but the way to it may.
    quarters = a[1] * 0.25 + (b[1] * 0.25 - a[1] * 0.25) * share
    mean = tl.where(is_finite(step), a[1] + step * share, quarters * 4.0)
    mean = tl.where(both, mean, tl.where(b[0] > 0, b[1], a[1]))
    m2 = a[2] + b[2] + step * (a[0] * share) * step
    m2 = tl.where(both, m2, tl.where(b[0] > 0, b[2], a[2]))
    low, high = tl.where(a[3] < b[3], a[3], b[3]), tl.where(a[4] > b[4], a[4], b[4])
    return count, mean, m2, low, high, a[5] + b[5], a[6] + b[6]


@triton.jit
def load_fields(parts, width, at, mask):
    """The fields at [FIELDS, width] of some place, and of no values where masked."""
    return (
        tl.load(parts + at, mask=mask, other=0.0),
        tl.load(parts + width + at, mask=mask, other=0.0),
        tl.load(parts + 2 * width + at, mask=mask, other=0.0),
        tl.load(parts + 3 * width + at, mask=mask, other=float("inf")),
        tl.load(parts + 4 * width + at, mask=mask, other=float("-inf")),
        tl.load(parts + 5 * width + at, mask=mask, other=0.0),
        tl.load(parts + 6 * width + at, mask=mask, other=0.0),
    )


@triton.jit
def merge_pairs(fields, RESULTS: tl.constexpr, HALF: tl.constexpr):
    """[RESULTS, 2 * HALF] to [RESULTS, HALF]: neighbours together."""
    shape: tl.constexpr = (RESULTS, HALF, 2)
    a0, b0 = tl.split(tl.reshape(fields[0], shape))
    a1, b1 = tl.split(tl.reshape(fields[1], shape))
    a2, b2 = tl.split(tl.reshape(fields[2], shape))
    a3, b3 = tl.split(tl.reshape(fields[3], shape))
    a4, b4 = tl.split(tl.reshape(fields[4], shape))
    a5, b5 = tl.split(tl.reshape(fields[5], shape))
    a6, b6 = tl.split(tl.reshape(fields[6], shape))
    return merge((a0, a1, a2, a3, a4, a5, a6), (b0, b1, b2, b3, b4, b5, b6))


@triton.jit(
    do_not_specialize=[
        *("width", "results", "chunks", "apart", "chunk_apart"),
        *("blocks", "into_apart", "into_field"),
    ]
)
def merge_parts(
    parts,  # [FEW, width]
    into,
    width: tl.int64,
    results,
    chunks,  # of each result
    apart,  # from one result to the next
    chunk_apart,
    blocks,  # of 2^LEVELS chunks
    into_apart,  # from one result to the next, and from one field to the next
    into_field,
    FEW: tl.constexpr,  # fields in parts: FIELDS, or MET
    RESULTS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Each program merges a block of each of RESULTS results."""
    tree: tl.constexpr = 1 << LEVELS
    block = tl.program_id(0) % blocks
    result = (tl.program_id(0) // blocks).to(tl.int64) * RESULTS + tl.arange(0, RESULTS)[:, None]
    task = block.to(tl.int64) * tree + tl.arange(0, tree)[None, :]
    at, mask = result * apart + task * chunk_apart, (result < results) & (task < chunks)
    fields = load_fields(parts, width, at, mask)
    if FEW == MET:
        pivot = tl.load(parts + PIVOT * width + at, mask=mask, other=0.0)
        exponent = tl.load(parts + EXPONENT * width + at, mask=mask, other=0.0)
        fields = moments_of(fields, pivot, exponent.to(tl.int32))
    for level in tl.static_range(LEVELS):
        fields = merge_pairs(fields, RESULTS, tree >> (level + 1))
    to = result * into_apart + block
    for field in tl.static_range(FIELDS):
        tl.store(into + to + field * into_field, fields[field], mask=result < results)


def merge_in_order(
    parts: Tensor,
    fields: int,
    results: int,
    chunks: int,
    apart: int,
    chunk_apart: int,
    raw: Tensor,
    raw_pitch: int,
) -> None:
    """Merges the moments of chunks pairwise.

    Args:
        parts: float64 [fields, chunks of all results], in which a result's chunks are ``chunk_apart``
            and results are ``apart`` from each other.
        fields: MET, or FIELDS if these are moments.
        raw: where the first result's fields go; the next one's are ``raw_pitch`` further on.
    """
    while True:
        levels = next(n for n in TREE_LEVELS if chunks <= 1 << n or n == TREE_LEVELS[-1])
        blocks = max(1, triton.cdiv(chunks, 1 << levels))
        together_ = 1 << (TREE_LEVELS[-1] - levels)
        if blocks == 1:
            into, into_apart, into_field = raw, raw_pitch, 1
        else:
            width = results * blocks
            into = torch.empty(FIELDS.value * width, dtype=torch.float64, device=raw.device)
            into_apart, into_field = blocks, width
        merge_parts[(triton.cdiv(results, together_) * blocks,)](
            parts,
            into,
            parts.numel() // fields,
            results,
            chunks,
            apart,
            chunk_apart,
            blocks,
            into_apart,
            into_field,
            FEW=fields,
            RESULTS=together_,
            LEVELS=levels,
            num_warps=4,
            enable_fp_fusion=False,
        )
        if blocks == 1:
            return
        parts, fields, chunks, apart, chunk_apart = into, FIELDS.value, blocks, blocks, 1
