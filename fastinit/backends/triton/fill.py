"""The number stream and its fills in Triton, for GPUs that the native build does not serve.

Function by function and line by line this is ``csrc/stream.h`` and ``fastinit/stream/reference.py``;
read the comments about the mathematics there. Only operations that IEEE 754 rounds exactly occur, and
the kernels are launched with ``enable_fp_fusion=False``. 16-bit values are rounded here by integer
arithmetic where Triton's own conversion differs between compiler and interpreter.

``TRITON_INTERPRET=1``, set before this module is imported, runs the same text on the CPU.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinit.elements.strided import Strided, runs
from fastinit.stream import laws
from fastinit.stream.keys import signed
from fastinit.stream.kinds import Params

# A kernel sees globals only if they are constexpr.
UNIFORM, NORMAL, CONSTANT = map(tl.constexpr, (laws.UNIFORM, laws.NORMAL, laws.CONSTANT))
FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = map(tl.constexpr, range(len(laws.DTYPES)))
E4M3FN, E5M2, E4M3FNUZ = (tl.constexpr(len(laws.DTYPES) + i) for i in range(3))

SIGN = tl.constexpr(0x8000_0000)
PHILOX_M0, PHILOX_M1 = tl.constexpr(0xD251_1F53), tl.constexpr(0xCD9E_8D57)
PHILOX_W0, PHILOX_W1 = tl.constexpr(0x9E37_79B9), tl.constexpr(0xBB67_AE85)
PHILOX_ROUNDS = tl.constexpr(10)


@triton.constexpr_function
def h(text):
    return float.fromhex(text)


# --- Philox4x32-10 -------------------------------------------------------------------------------


@triton.jit
def low(x):
    """The low half of a 64-bit number."""
    return x.to(tl.uint64).to(tl.uint32)


@triton.jit
def high(x):
    return (x.to(tl.uint64) >> 32).to(tl.uint32)


@triton.jit
def philox(block, seed, stream):
    """The four words of each block of a stream."""
    c0, c1 = low(block), high(block)
    c2, c3 = tl.zeros_like(c0) + low(stream), tl.zeros_like(c0) + high(stream)
    k0, k1 = low(seed), high(seed)
    m0, m1 = tl.full(c0.shape, PHILOX_M0, tl.uint32), tl.full(c0.shape, PHILOX_M1, tl.uint32)
    for _ in tl.static_range(PHILOX_ROUNDS):
        p0_high, p0_low = tl.umulhi(c0, m0), c0 * m0
        p1_high, p1_low = tl.umulhi(c2, m1), c2 * m1
        c0 = p1_high ^ c1 ^ k0
        c1 = p1_low
        c2 = p0_high ^ c3 ^ k1
        c3 = p0_low
        k0 += PHILOX_W0
        k1 += PHILOX_W1
    return c0, c1, c2, c3


# --- float32 arithmetic --------------------------------------------------------------------------


@triton.jit
def set_(like, value):
    return tl.full(like.shape, value, tl.float32)


@triton.jit
def maximum(value, other):
    return tl.where(value > other, value, other)


@triton.jit
def minimum(value, other):
    return tl.where(value < other, value, other)


@triton.jit
def from_int(word):
    return word.to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def from_uint(word):
    return word.to(tl.float32)


@triton.jit
def bits(value):
    return value.to(tl.uint32, bitcast=True)


@triton.jit
def from_bits(word):
    return word.to(tl.float32, bitcast=True)


@triton.jit
def mantissa(value):
    return from_bits((bits(value) & 0x007F_FFFF) | 0x3F00_0000)


@triton.jit
def exponent(value):
    return from_int(bits(value) >> 23)


@triton.jit
def exponent_below_half(value):
    e = bits(value) >> 23
    return from_int(tl.where(e < 126, e, 126))


@triton.jit
def xor_sign(value, word):
    return from_bits(bits(value) ^ (word & SIGN))


# --- laws ----------------------------------------------------------------------------------------


@triton.jit
def stored(v, scale, SCALED: tl.constexpr):
    return tl.div_rn(v, set_(v, scale)) if SCALED else v


@triton.jit
def uniform(word, p, SCALED: tl.constexpr):
    mul, add, lo, hi, _, _, _, _, _, scale = p
    v = tl.fma(from_int(word >> 8), mul, add)
    return minimum(maximum(stored(v, scale, SCALED), lo), hi)


KAPPA = tl.constexpr(7291 / 8192)


@triton.jit
def normal_pair(radius_word, angle_word):
    v = tl.fma(from_int(radius_word), h("0x1p-32"), h("0x1p-33"))
    phi = from_int(angle_word << 2) * h("0x1p-31")
    m = tl.where(v < 0, v, mantissa(v) - 1.0)
    phi2 = phi * phi
    e = tl.fma(exponent_below_half(v), -KAPPA, KAPPA * 126)
    q = tl.fma(m, h("-0x1.cd0f20p+0"), h("-0x1.094b96p+1"))
    c = tl.fma(phi2, h("-0x1.266aeap-12"), h("0x1.ca4f32p-7"))
    s = tl.fma(phi2, h("-0x1.094c7cp-15"), h("0x1.1fff3cp-9"))
    q = tl.fma(q, m, h("-0x1.85fd0cp+0"))
    q = tl.fma(q, m, h("-0x1.c0adb4p-3"))
    q = tl.fma(q, m, h("-0x1.572516p-2"))
    c = tl.fma(c, phi2, h("-0x1.16b74cp-2"))
    s = tl.fma(s, phi2, h("-0x1.23df12p-4"))
    q = tl.fma(q, m, h("0x1.40edbep-2"))
    q = tl.fma(q, m, h("-0x1.b6a194p-2"))
    q = tl.fma(q, m, h("0x1.48b4e2p-1"))
    c = tl.fma(c, phi2, h("0x1.c3d6e2p-1"))
    s = tl.fma(s, phi2, h("0x1.62dfb4p-1"))
    q = tl.fma(q, m, h("-0x1.48b584p+0"))
    r = tl.sqrt_rn(tl.fma(q, m, e))
    z0 = xor_sign(tl.fma(phi, s, c) * r, angle_word)
    z1 = xor_sign(tl.fma(-phi, s, c) * r, angle_word << 1)
    return z0, z1


TAIL = tl.constexpr(7.0)


@triton.jit
def tail_quantile(ell):
    r = tl.sqrt_rn(ell + 2.0) - 6.5
    z = set_(r, h("0x1.78d1bcp-30"))
    z = tl.fma(z, r, h("0x1.39daf0p-29"))
    z = tl.fma(z, r, h("-0x1.20a104p-24"))
    z = tl.fma(z, r, h("-0x1.7e4f0ep-28"))
    z = tl.fma(z, r, h("0x1.faa5f2p-21"))
    z = tl.fma(z, r, h("-0x1.c84f76p-24"))
    z = tl.fma(z, r, h("-0x1.93579cp-18"))
    z = tl.fma(z, r, h("-0x1.150da6p-20"))
    z = tl.fma(z, r, h("0x1.02812ep-15"))
    z = tl.fma(z, r, h("-0x1.5a2aa0p-14"))
    z = tl.fma(z, r, h("0x1.3b6ccap-11"))
    z = tl.fma(z, r, h("-0x1.44bd90p-8"))
    z = tl.fma(z, r, h("0x1.37f5dap+0"))
    return tl.fma(z, r, h("0x1.d0bee2p+2"))


@triton.jit
def truncated_normal(word, p, SCALED: tl.constexpr):
    mul, add, lo, hi, x_mul, x_add, t_mul, t_below, t_above, scale = p
    centred = word ^ SIGN
    x = tl.fma(from_int(centred), x_mul, x_add)
    base = tl.where(x < 0, t_below, t_above)
    t = tl.fma(from_uint(tl.where(x < 0, word, ~word)), t_mul, base)
    y = tl.fma(-t, t, t)
    m = mantissa(y) - 1.0
    ell = set_(m, h("-0x1.e53008p+0"))
    ell = tl.fma(ell, m, h("-0x1.b40c28p+0"))
    ell = tl.fma(ell, m, h("-0x1.43e4ccp+0"))
    ell = tl.fma(ell, m, h("0x1.b9cdbep-4"))
    ell = tl.fma(ell, m, h("-0x1.07957cp-1"))
    ell = tl.fma(ell, m, h("0x1.703e7ep-1"))
    ell = tl.fma(ell, m, h("-0x1.715760p+0"))
    ell = tl.fma(ell, m, 124.0 - exponent(y))
    z = set_(ell, h("0x1.14bfbcp-25"))
    z = tl.fma(z, ell, h("-0x1.620322p-20"))
    z = tl.fma(z, ell, h("0x1.3c34f8p-16"))
    z = tl.fma(z, ell, h("-0x1.0e374ap-14"))
    z = tl.fma(z, ell, h("-0x1.179fdep-10"))
    z = tl.fma(z, ell, h("0x1.005ff8p-7"))
    z = tl.fma(z, ell, h("0x1.d1cbc8p-3"))
    z = tl.fma(z, ell, h("0x1.40d92ep+0")) * x
    z = tl.where(ell > TAIL, tail_quantile(ell) * x, z)
    z = tl.fma(z, mul, add)
    return minimum(maximum(stored(z, scale, SCALED), lo), hi)


# --- fills ---------------------------------------------------------------------------------------


@triton.jit
def in_order(a, b, c, d):
    """Four tensors [n] as one [n, 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (a.shape[0], 4))


@triton.jit
def values(block, seed, stream, p, LAW: tl.constexpr, SCALED: tl.constexpr):
    """The four float32 values of each block: [n] to [n, 4]."""
    if LAW == CONSTANT:
        return tl.full((block.shape[0], 4), p[1], tl.float32)
    # In order only when the values are there: to order the words would move them between threads.
    w0, w1, w2, w3 = philox(block, seed, stream)
    if LAW == NORMAL:
        z0, z1 = normal_pair(w0, w1)
        z2, z3 = normal_pair(w2, w3)
        return stored(tl.fma(in_order(z0, z1, z2, z3), p[0], p[1]), p[9], SCALED)
    elif LAW == UNIFORM:
        v0, v1 = uniform(w0, p, SCALED), uniform(w1, p, SCALED)
        v2, v3 = uniform(w2, p, SCALED), uniform(w3, p, SCALED)
        return in_order(v0, v1, v2, v3)
    else:
        z0, z1 = truncated_normal(w0, p, SCALED), truncated_normal(w1, p, SCALED)
        z2, z3 = truncated_normal(w2, p, SCALED), truncated_normal(w3, p, SCALED)
        return in_order(z0, z1, z2, z3)


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
INTERPRETED = not isinstance(fill_runs, triton.runtime.JITFunction)
VERSION = triton.__version__
BLOCK = 16384 if INTERPRETED else 256  # the interpreter pays for operations, not for elements


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """As a GPU's: to the interpreter, torch.set_flush_denormal makes zeros of denormal numbers."""
    flushed = INTERPRETED and sys.float_info.min * 0.5 == 0.0
    if flushed:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        if flushed:
            torch.set_flush_denormal(True)


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
