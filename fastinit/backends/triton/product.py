"""The moments of a linear layer's output in Triton: a matrix product that stores no product.

Each program computes a tile of outputs, in float32, and instead of the tile it stores the tile's
moments, in float64: those of the values to the tensors' own rounding, around the tile's mean. They are
merged in the order of the tiles (fastinit/backends/triton/merging.py). Within a tile the order of sums
is the compiler's: the same bits on every run, but not on every kind of GPU.
"""

# Triton's language: the types are those of its compiler, not Python's.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinit.backends.triton.fill import (
    BFLOAT16,
    FLOAT16,
    INTERPRETED,
    bits,
    from_bits,
    plain_arithmetic,
)
from fastinit.backends.triton.merging import FIELDS, merge, merge_in_order
from fastinit.stream import laws

INTERPRETING = tl.constexpr(INTERPRETED)
TILES = 1 << 16  # of a launch: 3.5 MiB of moments
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
def of_tile(v, row_inside, column_inside):
    """The fields of float32 values, each a float64 number."""
    finite = row_inside[:, None] & column_inside[None, :] & (v - v == 0)
    count = sum_of(finite.to(tl.int32))
    values = tl.sum(row_inside.to(tl.int32), 0) * tl.sum(column_inside.to(tl.int32), 0)
    zeros = sum_of((finite & (v == 0)).to(tl.int32))
    low = tl.min(tl.min(tl.where(finite, v, float("inf")), 1), 0)
    high = tl.max(tl.max(tl.where(finite, v, float("-inf")), 1), 0)
    n = count.to(tl.float64)
    mean = sum_of(tl.where(finite, v, 0.0).to(tl.float64)) / tl.where(count > 0, n, 1.0)
    d = tl.where(finite, v.to(tl.float64) - mean, 0.0)
    m2 = sum_of(d * d)
    low, high = low.to(tl.float64) + 0.0, high.to(tl.float64) + 0.0  # zero has no sign
    return n, mean, m2, low, high, zeros.to(tl.float64), (values - count).to(tl.float64)


@triton.jit(do_not_specialize=["rows", "columns", "inner", "bias_stride"])
def product_moments(
    x,
    weight,
    bias,
    parts,  # float64 [7, tiles]
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

    # In two halves: the registers would not hold more in float64. Neighbours are in one thread.
    even, odd = tl.split(tl.reshape(v, (M, N // 2, 2)))
    column = left * N + 2 * tl.arange(0, N // 2)
    fields = merge(
        of_tile(even, row < rows, column < columns),
        of_tile(odd, row < rows, column + 1 < columns),
    )
    to, width = parts + top.to(tl.int64) * wide + left, tall.to(tl.int64) * wide
    for field in tl.static_range(FIELDS):
        tl.store(to + field * width, fields[field])


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
        parts = torch.empty(FIELDS.value, tiles, dtype=torch.float64, device=x.device)
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
                num_warps=4 if full else 8,
                num_stages=3,
                enable_fp_fusion=False,
            )
        merge_in_order(parts, FIELDS.value, 1, tiles, tiles, 1, total, FIELDS.value)
    if launches == 1:
        return totals[0]
    merged = torch.empty(FIELDS.value, dtype=torch.float64, device=x.device)
    parts = totals.t().contiguous()
    merge_in_order(parts, FIELDS.value, 1, launches, launches, 1, merged, FIELDS.value)
    return merged
