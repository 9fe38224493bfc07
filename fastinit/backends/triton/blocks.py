"""Block formats in Triton: ``fastinit/stream/blocks.py`` and ``csrc/cpu/blocks.h``, line for line."""

import math

import torch
import triton
import triton.language as tl

from fastinit.backends.contract import BlockWrite
from fastinit.backends.triton.fill import float8
from fastinit.backends.triton.stream import INTERPRETED, bits, from_bits, values
from fastinit.stream import laws
from fastinit.stream.blocks import ELEMENTS
from fastinit.stream.formats import BY_POWER, FORMATS
from fastinit.stream.keys import signed

E4M3, E5M2, E2M1 = map(tl.constexpr, range(3))


@triton.jit
def element(v, TO: tl.constexpr):
    """The bits of an element."""
    if TO == E4M3:
        code = float8(v, 3, 7, 0x7E, False)
    elif TO == E5M2:
        code = float8(v, 2, 15, 0x7B, False)
    else:
        code = float8(v, 1, 1, 0x07, False, 4)
    return code


@triton.jit
def quotient(a, b):
    return tl.div_rn(a, b + tl.zeros_like(a))


@triton.jit(do_not_specialize=["to", "at", "offset", "seed", "stream", "tensor_scale"])
def fill_blocks(
    data,
    scale,
    count,  # blocks
    to,  # of the first one
    at,
    offset: tl.int64,
    sizes,  # of the dimensions that blocks stand in, with each kind of strides
    datas,
    scales,
    globals_,
    seed: tl.int64,
    stream: tl.int64,
    p,
    tensor_scale,
    LAW: tl.constexpr,
    TO: tl.constexpr,
    EXPONENT: tl.constexpr,  # of the element's largest number; of E8M0 scales
    BLOCK: tl.constexpr,
    POWER: tl.constexpr,  # whether scales are powers of two
    DIMS: tl.constexpr,
    MANY: tl.constexpr,
):
    """Each program writes MANY blocks."""
    start = tl.program_id(0).to(tl.int64) * MANY
    block = start + tl.arange(0, MANY)
    inside, rest = block < count, block
    # The interpreter does not know the annotations, and keeps [2^31, 2^32) in 32 bits.
    first, to, at = start * 0 + offset, start * 0 + to, start * 0 + at
    seed, stream = start * 0 + seed, start * 0 + stream
    first, to, at = first + tl.zeros_like(rest), to + tl.zeros_like(rest), at + tl.zeros_like(rest)
    if DIMS == 0:  # neighbours everywhere: the compiler sees which stores are aligned
        to, at, first = block * (BLOCK // 2 if TO == E2M1 else BLOCK), block, first + block * BLOCK
    for i in tl.static_range(DIMS):
        above = rest // sizes[DIMS - 1 - i]
        index = rest - above * sizes[DIMS - 1 - i]
        rest = above
        to += index * datas[DIMS - 1 - i]
        at += index * scales[DIMS - 1 - i]
        first += index * globals_[DIMS - 1 - i]
    counter = (first >> 2)[:, None] + tl.arange(0, BLOCK // 4)[None, :]
    counter = tl.reshape(counter, (MANY * (BLOCK // 4),))
    x = tl.reshape(values(counter, seed, stream, p, LAW, False), (MANY, BLOCK))
    most = tl.max((bits(x) & 0x7FFF_FFFF).to(tl.int32, bitcast=True), 1)
    if POWER:
        biased = (most >> 23) - EXPONENT
        biased = tl.where(biased > 0, biased, 0)
        held, factor = biased, from_bits((254 - biased) << 23)
    else:
        ratio = quotient(quotient(from_bits(most), 6.0), tensor_scale)
        ratio = tl.where(ratio > 0.015625, ratio, 0.015625)
        held = element(ratio, E4M3).to(tl.int32)
        one = tl.zeros_like(ratio) + 1.0
        factor = quotient(quotient(one, tensor_scale), from_bits((held + 960) << 20))
    tl.store(scale + at, held.to(tl.uint8), mask=inside)
    code = element(x * factor[:, None], TO).to(tl.uint8, bitcast=True)
    if TO == E2M1:
        low, high = tl.split(tl.reshape(code, (MANY, BLOCK // 2, 2)))
        places = tl.arange(0, BLOCK // 2)
        tl.store(data + to[:, None] + places[None, :], low | (high << 4), mask=inside[:, None])
    else:
        places = tl.arange(0, BLOCK)
        tl.store(data + to[:, None] + places[None, :], code, mask=inside[:, None])


TYPES = {torch.float8_e4m3fn: E4M3, torch.float8_e5m2: E5M2, None: E2M1}
MANY = 4096 if INTERPRETED else 64  # the interpreter pays for operations, not for elements
MOST_DIMS = 8


def fill(write: BlockWrite) -> None:
    """Writes a window of blocks."""
    row, law = FORMATS[write.format], write.law
    p = laws.kernel_params(law, torch.float32)
    for to, at, offset, sizes, *strides in write.windows(MOST_DIMS):
        here = math.prod(sizes)
        # One dimension, and no place before it, as there is no other.
        plain = [step for (step, *_) in strides] == [write.data.shape[-1], 1, row.block]
        if plain and len(sizes) == 1:
            sizes, strides = (), [()] * 3
        many = min(MANY, triton.next_power_of_2(here)) if INTERPRETED else MANY
        fill_blocks[(triton.cdiv(here, many),)](
            write.data,
            write.scale,
            here,
            to,
            at,
            offset,
            tuple(sizes),
            *map(tuple, strides),
            signed(write.seed),
            signed(write.stream),
            tuple(p),
            write.tensor_scale,
            LAW=law.kind,
            TO=TYPES[ELEMENTS[write.format]],
            EXPONENT=row.exponent,
            BLOCK=row.block,
            POWER=row.scaling == BY_POWER,
            DIMS=len(sizes),
            MANY=many,
            enable_fp_fusion=False,
        )
