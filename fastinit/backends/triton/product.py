"""The moments of a linear layer's output in Triton: a matrix product that stores no product.

Each program computes a tile of outputs, in float32, and instead of the tile it stores what it met there:
of the values to the tensors' own rounding, scaled to their largest and around their mean, in pairs of
float32 (pairs.py), of which few become float64. Moments are made of that and merged in the order of
the tiles (merging.py). Within a tile the order of sums is the compiler's: the same bits on every run,
but not on every kind of GPU.
"""

# Triton's language: the types are those of its compiler, not Python's.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinit.backends.triton.merging import FIELDS, MET, is_finite, merge_in_order, power_of_two
from fastinit.backends.triton.moments import exponent_of
from fastinit.backends.triton.pairs import add_distance, as_float64, no_sums, slices
from fastinit.backends.triton.stream import (
    BFLOAT16,
    FLOAT16,
    INTERPRETED,
    bits,
    from_bits,
    plain_arithmetic,
)
from fastinit.stream import laws

INTERPRETING = tl.constexpr(INTERPRETED)
TILES = 1 << 16  # of a launch: 4.5 MiB of what was met
TOGETHER = tl.constexpr(8)  # tiles below each other that share the weights in the cache


@triton.jit
def rounded(v, DTYPE: tl.constexpr):
    """float32 to the float32 that is stored as another type, rounded to nearest even."""
    if DTYPE == FLOAT16:
        return v.to(tl.float16).to(tl.float32)
    elif DTYPE == BFLOAT16:
        b = bits(v)
        b = (b + 0x7FFF + ((b >> 16) & 1)) & 0xFFFF_0000
        return tl.where(v != v, v, from_bits(b))
    else:
        return v


@triton.jit
def sum_of(tile):
    return tl.sum(tl.sum(tile, 1), 0)


@triton.jit
def of_tile(v, row_inside, column_inside, LEVELS: tl.constexpr):
    """What was met of float32 values [M, N]: MET numbers (merging.py)."""
    M: tl.constexpr = v.shape[0]
    N: tl.constexpr = v.shape[1]
    inside = row_inside[:, None] & column_inside[None, :]
    finite = inside & is_finite(v)
    count = sum_of(finite.to(tl.int32))
    values = tl.sum(row_inside.to(tl.int32), 0) * tl.sum(column_inside.to(tl.int32), 0)
    zeros = sum_of((finite & (v == 0)).to(tl.int32))
    low = tl.min(tl.min(tl.where(finite, v, float("inf")), 1), 0)
    high = tl.max(tl.max(tl.where(finite, v, float("-inf")), 1), 0)
    exponent = exponent_of(tl.maximum(high, -low))
    v *= power_of_two(-exponent).to(tl.float32)
    mean = sum_of(tl.where(finite, v, 0.0)).to(tl.float64) / tl.maximum(count, 1).to(tl.float64)
    pivot = mean.to(tl.float32)  # near it: any will do
    v = tl.where(finite, v, pivot)
    # Each lane has 2^LEVELS values.
    apart: tl.constexpr = N >> LEVELS
    parts = slices(tl.reshape(v, (M, 1 << LEVELS, apart)), LEVELS)
    lanes = no_sums((M, apart, 1), tl.float32)
    for i in tl.static_range(1 << LEVELS):
        lanes = add_distance(lanes, parts[i], pivot)
    total, squares = as_float64(lanes)
    total, squares = tl.sum(sum_of(total), 0), tl.sum(sum_of(squares), 0)
    return count, total, squares, low, high, zeros, values - count, pivot, exponent


@triton.jit(do_not_specialize=["rows", "columns", "inner", "bias_stride"])
def product_moments(
    x,
    weight,
    bias,
    parts,  # float64 [MET, tiles]
    rows,
    columns,
    inner,
    x_row,  # strides
    x_inner,
    weight_row,
    weight_inner,
    bias_stride,
    DTYPE: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN: tl.constexpr,  # whether K divides ``inner``
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    LEVELS: tl.constexpr,  # a tile has 2^LEVELS slices, whose values a lane sums
):
    """Each program measures M rows and N columns of x @ weight.T + bias."""
    tall, wide = tl.cdiv(rows, M), tl.cdiv(columns, N)
    # Down TOGETHER tiles, then to the right.
    program = tl.program_id(0)
    band = program // (TOGETHER * wide)
    within = program - band * (TOGETHER * wide)
    height = tl.minimum(tall - band * TOGETHER, TOGETHER)
    top, left = band * TOGETHER + within % height, within // height

    row, column = top * M + tl.arange(0, M), left * N + tl.arange(0, N)
    k = tl.arange(0, K)
    # Behind the edges: any row and column, which is not measured.
    x_at = x + (row % rows).to(tl.int64)[:, None] * x_row + k.to(tl.int64)[None, :] * x_inner
    weight_at = weight + (column % columns).to(tl.int64)[None, :] * weight_row
    weight_at += k.to(tl.int64)[:, None] * weight_inner
    x_step = tl.full((), K, tl.int64) * x_inner
    weight_step = tl.full((), K, tl.int64) * weight_inner
    v = tl.zeros((M, N), tl.float32)
    for done in range(0, inner, K):
        if EVEN:
            a, b = tl.load(x_at), tl.load(weight_at)
        else:
            left_k = inner - done
            a = tl.load(x_at, mask=k[None, :] < left_k, other=0.0)
            b = tl.load(weight_at, mask=k[:, None] < left_k, other=0.0)
        if INTERPRETING:  # which multiplies the bits of bfloat16 as integers
            a, b = a.to(tl.float32), b.to(tl.float32)
        v = tl.dot(a, b, v, input_precision="ieee")
        x_at += x_step
        weight_at += weight_step
    if BIAS:
        added = tl.load(bias + (column % columns).to(tl.int64) * bias_stride)
        v += added.to(tl.float32)[None, :]
    v = rounded(v, DTYPE)

    met = of_tile(v, row < rows, column < columns, LEVELS)
    to, width = parts + top.to(tl.int64) * wide + left, tall.to(tl.int64) * wide
    for field in tl.static_range(MET):
        tl.store(to + field * width, met[field].to(tl.float64))


@plain_arithmetic()
def linear_moments(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Raw moments, float64 [7], of ``x @ weight.T + bias``; the device is the current one.

    Args:
        x: [rows, in]; float32, float16 or bfloat16.
        weight: [out, in].
        bias: [out], or None.
    """
    rows, inner, columns = *x.shape, len(weight)
    full = x.dtype == torch.float32  # is multiplied without tensor cores, one row of K at a time
    m, n, k = (64, 64, 16) if full else (128, 128, 64)
    wide = triton.cdiv(columns, n)
    tall = max(1, TILES // max(wide, 1)) * m  # rows of a launch
    launches = max(1, triton.cdiv(rows, tall))
    totals = torch.empty(launches, FIELDS.value, dtype=torch.float64, device=x.device)
    for launch, total in enumerate(totals):
        some = x[launch * tall : (launch + 1) * tall]
        tiles = triton.cdiv(len(some), m) * wide
        parts = torch.empty(MET.value, tiles, dtype=torch.float64, device=x.device)
        if tiles:
            product_moments[(tiles,)](
                some,
                weight,
                some if bias is None else bias,
                parts,
                len(some),
                columns,
                inner,
                *some.stride(),
                *weight.stride(),
                0 if bias is None else bias.stride(0),
                DTYPE=laws.DTYPES.index(x.dtype),
                BIAS=bias is not None,
                EVEN=inner % k == 0,
                M=m,
                N=n,
                K=k,
                LEVELS=4,
                num_warps=4 if full else 8,
                num_stages=3,
                enable_fp_fusion=False,
            )
        merge_in_order(parts, MET.value, 1, tiles, tiles, 1, total, FIELDS.value)
    if launches == 1:
        return totals[0]
    merged = torch.empty(FIELDS.value, dtype=torch.float64, device=x.device)
    parts = totals.t().contiguous()
    merge_in_order(parts, FIELDS.value, 1, launches, launches, 1, merged, FIELDS.value)
    return merged
