"""The number stream in Triton: the arithmetic of fills, and what runs it.

Function by function and line by line this is ``csrc/stream.h`` and ``fastinit/stream/reference.py``;
read the comments about the mathematics there. Only operations that IEEE 754 rounds exactly occur, and
the kernels are launched with ``enable_fp_fusion=False``.

``TRITON_INTERPRET=1``, set before this module is imported, runs the same text on the CPU.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl

from fastinit.stream import laws

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


# --- values ---------------------------------------------------------------------------------------


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


# --- what runs it --------------------------------------------------------------------------------

INTERPRETED = not isinstance(values, triton.runtime.JITFunction)
VERSION = triton.__version__


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
