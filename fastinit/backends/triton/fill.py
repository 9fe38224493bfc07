"""Fills in Triton, for GPUs that the native build does not serve: what is stored, and where.

16-bit values are rounded here by integer arithmetic where Triton's own conversion differs between
compiler and interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinit.backends.triton.stream import (
    BFLOAT16,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INTERPRETED,
    bits,
    from_bits,
    values,
)
from fastinit.elements.strided import Strided, runs
from fastinit.stream.keys import signed
from fastinit.stream.kinds import Params


@triton.jit
def float8(
    v,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    LARGEST: tl.constexpr,
    ONE_ZERO: tl.constexpr,
    BITS: tl.constexpr = 8,
):
    """The bits of a type of 8 bits, or 4 (csrc/float8.h), saturated."""
    DROPPED: tl.constexpr = 23 - MANTISSA
    MAGIC: tl.constexpr = (151 - BIAS - MANTISSA) << 23
    b = bits(v)
    magnitude = b & 0x7FFF_FFFF
    small = bits(from_bits(magnitude) + from_bits(tl.full(b.shape, MAGIC, tl.uint32))) - MAGIC
    rebased = magnitude - (((127 - BIAS) << 23) - ((1 << (DROPPED - 1)) - 1))
    large = (rebased + ((magnitude >> DROPPED) & 1)) >> DROPPED
    stored = tl.where(magnitude < ((128 - BIAS) << 23), small, large)
    stored = tl.where(stored > LARGEST, LARGEST, stored)
    sign = (b >> (32 - BITS)) & (1 << (BITS - 1))
    if ONE_ZERO:
        sign = tl.where(stored == 0, 0, sign)
    stored = tl.where(v != v, 0x80 if ONE_ZERO else 0x7F, stored | sign)
    return stored.to(tl.uint8).to(tl.int8, bitcast=True)


@triton.jit
def convert(v, DTYPE: tl.constexpr):
    """float32 to what is stored: the bits of 16-bit types, rounded to nearest even."""
    if DTYPE == FLOAT16:
        half = v.to(tl.float16).to(tl.uint16, bitcast=True)
        stored = tl.where(v != v, 0x7E00, half).to(tl.int16, bitcast=True)
    elif DTYPE == BFLOAT16:
        b = bits(v)
        b = (b + 0x7FFF + ((b >> 16) & 1)) >> 16
        stored = tl.where(v != v, 0x7FC0, b).to(tl.uint16).to(tl.int16, bitcast=True)
    elif DTYPE == FLOAT64:
        stored = v.to(tl.float64)
    elif DTYPE == FLOAT32:
        stored = v
    elif DTYPE == E4M3FN:
        stored = float8(v, 3, 7, 0x7E, False)
    elif DTYPE == E5M2:
        stored = float8(v, 2, 15, 0x7B, False)
    elif DTYPE == E4M3FNUZ:
        stored = float8(v, 3, 8, 0x7F, True)
    else:
        stored = float8(v, 2, 16, 0x7F, True)
    return stored


# A seed of 1 is a number like any other: not a reason to compile the kernel anew.
@triton.jit(do_not_specialize=["offset", "seed", "stream"])
def fill_runs(
    data,
    length,  # elements of a run
    local,  # its local stride
    slots,  # blocks that a run may touch
    offset: tl.int64,  # the first run's first element
    skip,  # offset % 4
    rows,  # runs
    sizes,  # of the dimensions that the runs stand in, with both their strides
    locals_,
    globals_,
    seed: tl.int64,
    stream: tl.int64,
    p,
    LAW: tl.constexpr,
    DTYPE: tl.constexpr,
    SCALED: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes BLOCK blocks of four elements, in runs of neighbours in the stream."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    slot = start + tl.arange(0, BLOCK)
    columns = tl.arange(0, 4)[None, :]
    # The interpreter does not know the annotations, and keeps [2^31, 2^32) in 32 bits.
    offset, seed, stream = start * 0 + offset, start * 0 + seed, start * 0 + stream
    if DIMS == 0:  # one run: scalars, so that the compiler sees which stores are aligned
        v = convert(values((offset >> 2) + slot, seed, stream, p, LAW, SCALED), DTYPE)
        at = slot[:, None] * 4 + (columns - skip)
        if (start * 4 >= skip) & ((start + BLOCK) * 4 - skip <= length):
            tl.store(data + at * local, v)
        else:
            tl.store(data + at * local, v, mask=(at >= 0) & (at < length))
    else:
        row = slot // slots
        slot -= row * slots
        inside = row < rows
        to = tl.zeros_like(slot)
        first = to + offset
        for i in tl.static_range(DIMS):
            rest = row // sizes[DIMS - 1 - i]
            index = row - rest * sizes[DIMS - 1 - i]
            row = rest
            to += index * locals_[DIMS - 1 - i]
            first += index * globals_[DIMS - 1 - i]
        v = convert(values((first >> 2) + slot, seed, stream, p, LAW, SCALED), DTYPE)
        at = slot[:, None] * 4 + columns - (first & 3)[:, None]
        mask = inside[:, None] & (at >= 0) & (at < length)
        tl.store(data + to[:, None] + at * local, v, mask=mask)


STORED_AS = {1: torch.int8, 2: torch.int16}
BLOCK = 16384 if INTERPRETED else 256  # the interpreter pays for operations, not for elements


def fill(
    tensor: Tensor,
    kind: int,
    dtype: int,
    p: Params,
    seed: int,
    stream: int,
    strides: tuple[int, ...],
    offset: int,
) -> None:
    """Writes a window: element (i, j, ...) of ``tensor`` is the stream's i*strides[0] + ... + offset.

    The tensor has elements. ``dtype`` is the index in ``laws.WRITTEN``.
    """
    which = Strided(offset, tuple(tensor.shape), strides)
    outer, length, local = runs(Strided.of(tensor), which)
    rows = tensor.numel() // length
    skip = offset % 4
    slots = (length + 6) // 4 if outer else (skip + length + 3) // 4
    block = min(BLOCK, triton.next_power_of_2(rows * slots)) if INTERPRETED else BLOCK
    fill_runs[(triton.cdiv(rows * slots, block),)](
        tensor.view(STORED_AS[tensor.element_size()]) if tensor.element_size() < 4 else tensor,
        length,
        local,
        slots,
        offset,
        skip,
        rows,
        *(tuple(dim[i] for dim in outer) for i in range(3)),
        signed(seed),
        signed(stream),
        tuple(p),
        LAW=kind,
        DTYPE=dtype,
        SCALED=p.scale != 1.0,
        DIMS=len(outer),
        BLOCK=block,
        enable_fp_fusion=False,
    )
