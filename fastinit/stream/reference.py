"""The number stream in plain torch: slow, readable, and the specification of the other backends.

Function by function and line by line this is ``csrc/stream.h`` and ``backends/triton/stream.py``;
read the comments about the mathematics there. Words are int64 tensors that hold 32-bit unsigned
numbers. Every float32 operation below is one IEEE 754 operation, so nothing depends on the machine. A
value is rounded to the tensor's dtype as it is stored; ``lo`` and ``hi`` keep it in its law's interval.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastinit.stream.kinds import Params
from fastinit.stream.laws import CONSTANT, NORMAL, UNIFORM
from fastinit.stream.rounding import CPU, rounded, scalar

MASK = 0xFFFF_FFFF
SIGN = 0x8000_0000
CHUNK = 1 << 17  # elements computed at once: what a core's cache holds

# --- Philox4x32-10 (Salmon et al., SC11) ---------------------------------------------------------

PHILOX_M0, PHILOX_M1 = 0xD251_1F53, 0xCD9E_8D57
PHILOX_W0, PHILOX_W1 = 0x9E37_79B9, 0xBB67_AE85
PHILOX_ROUNDS = 10


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Four output words for each four counter words: int64 [..., 4] to int64 [..., 4]."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        p0, p1 = PHILOX_M0 * c0, PHILOX_M1 * c2
        c0 = (p1 >> 32 & MASK) ^ c1 ^ k0
        c1 = p1 & MASK
        c2 = (p0 >> 32 & MASK) ^ c3 ^ k1
        c3 = p0 & MASK
        k0, k1 = k0 + PHILOX_W0 & MASK, k1 + PHILOX_W1 & MASK
    return torch.stack((c0, c1, c2, c3), -1)


def philox_words(seed: int, stream: int, block: Tensor) -> Tensor:
    """The four words of each block of a stream: int64 [...] to int64 [..., 4]."""
    low, high = torch.full_like(block, stream & MASK), torch.full_like(block, stream >> 32)
    counter = torch.stack((block & MASK, block >> 32 & MASK, low, high), -1)
    return philox(counter, (seed & MASK, seed >> 32))


# --- float32 arithmetic --------------------------------------------------------------------------


def _float64(x: Tensor | float) -> Tensor:
    return x.double() if isinstance(x, Tensor) else scalar(x, torch.float64)


def fma(a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a * b + c with one rounding, for float32 values.

    The float64 product is exact. The float64 sum is rounded to odd (if inexact, the last bit is set),
    after which rounding to float32 is right (Boldo & Melquiond 2008, "Emulation of FMA and correctly
    rounded sums"); rounding the nearest float64 once more would be wrong about once in 2^29.
    """
    a, b, c = (_float64(x) for x in (a, b, c))
    product = a * b
    total = product + c
    part = total - product  # Knuth's two-sum: the error of the sum, exactly
    error = (product - (total - part)) + (c - part)
    bits = total.view(torch.int64)
    odd = torch.where((error > 0) == (total > 0), bits, bits - 1) | 1
    return torch.where(error == 0, total, odd.view(torch.float64)).to(torch.float32)


def sqrt(value: Tensor) -> Tensor:
    """The float32 square root, rounded once.

    torch's own may go to a vector library that is an ulp off. No float32's root comes near enough to
    the middle of two float32 numbers for float64's last digit to matter.
    """
    return torch.sqrt(value.to(torch.float64)).to(torch.float32)


def maximum(value: Tensor, other: float) -> Tensor:
    """The larger, and ``other`` of two zeros (torch.clamp does not say which)."""
    return torch.where(value > other, value, other).to(torch.float32)


def minimum(value: Tensor, other: float) -> Tensor:
    """The smaller, and ``other`` of two zeros."""
    return torch.where(value < other, value, other).to(torch.float32)


def from_int(word: Tensor) -> Tensor:
    """The word as a signed 32-bit integer, rounded to float32."""
    return ((word ^ SIGN) - SIGN).to(torch.float32)


def from_uint(word: Tensor) -> Tensor:
    """The word as an unsigned 32-bit integer, rounded to float32."""
    return word.to(torch.float32)


def bits(value: Tensor) -> Tensor:
    return value.view(torch.int32).to(torch.int64) & MASK


def from_bits(word: Tensor) -> Tensor:
    return ((word ^ SIGN) - SIGN).to(torch.int32).view(torch.float32)


def shl(word: Tensor, places: int) -> Tensor:
    return word << places & MASK


def mantissa(value: Tensor) -> Tensor:
    """``|value|`` scaled by a power of two to [1/2, 1)."""
    return from_bits(bits(value) & 0x007F_FFFF | 0x3F00_0000)


def exponent(value: Tensor) -> Tensor:
    """The biased exponent of a positive value, 126 for [1/2, 1)."""
    return from_int(bits(value) >> 23)


def exponent_below_half(value: Tensor) -> Tensor:
    """The biased exponent, but 126 for everything from 1/2 on and for negative values."""
    return from_int(torch.clamp(bits(value) >> 23, max=126))


def xor_sign(value: Tensor, word: Tensor) -> Tensor:
    """The value, negated where the word's top bit is set."""
    return from_bits(bits(value) ^ (word & SIGN))


# --- laws ------------------------------------------------------------------------------------------


def stored(value: Tensor, p: Params) -> Tensor:
    # By a tensor: torch may multiply by the reciprocal of a number.
    return value / torch.full_like(value, p.scale) if p.scale != 1.0 else value


def uniform(word: Tensor, p: Params) -> Tensor:
    v = fma(from_int(word >> 8), p.mul, p.add)
    return minimum(maximum(stored(v, p), p.lo), p.hi)


KAPPA = 7291 / 8192


def normal_pair(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    h = float.fromhex
    v = fma(from_int(radius_word), 2.0**-32, 2.0**-33)
    phi = from_int(shl(angle_word, 2)) * 2.0**-31
    m = torch.where(v < 0, v, mantissa(v) - 1.0)
    phi2 = phi * phi
    e = fma(exponent_below_half(v), -KAPPA, KAPPA * 126)
    q = fma(m, h("-0x1.cd0f20p+0"), h("-0x1.094b96p+1"))
    c = fma(phi2, h("-0x1.266aeap-12"), h("0x1.ca4f32p-7"))
    s = fma(phi2, h("-0x1.094c7cp-15"), h("0x1.1fff3cp-9"))
    q = fma(q, m, h("-0x1.85fd0cp+0"))
    q = fma(q, m, h("-0x1.c0adb4p-3"))
    q = fma(q, m, h("-0x1.572516p-2"))
    c = fma(c, phi2, h("-0x1.16b74cp-2"))
    s = fma(s, phi2, h("-0x1.23df12p-4"))
    q = fma(q, m, h("0x1.40edbep-2"))
    q = fma(q, m, h("-0x1.b6a194p-2"))
    q = fma(q, m, h("0x1.48b4e2p-1"))
    c = fma(c, phi2, h("0x1.c3d6e2p-1"))
    s = fma(s, phi2, h("0x1.62dfb4p-1"))
    q = fma(q, m, h("-0x1.48b584p+0"))
    r = sqrt(fma(q, m, e))
    z0 = xor_sign(fma(phi, s, c) * r, angle_word)
    z1 = xor_sign(fma(-phi, s, c) * r, shl(angle_word, 1))
    return z0, z1


TAIL = 7.0


def tail_quantile(ell: Tensor) -> Tensor:
    h = float.fromhex
    r = sqrt(ell + 2.0) - 6.5
    z = torch.full_like(r, h("0x1.78d1bcp-30"))
    z = fma(z, r, h("0x1.39daf0p-29"))
    z = fma(z, r, h("-0x1.20a104p-24"))
    z = fma(z, r, h("-0x1.7e4f0ep-28"))
    z = fma(z, r, h("0x1.faa5f2p-21"))
    z = fma(z, r, h("-0x1.c84f76p-24"))
    z = fma(z, r, h("-0x1.93579cp-18"))
    z = fma(z, r, h("-0x1.150da6p-20"))
    z = fma(z, r, h("0x1.02812ep-15"))
    z = fma(z, r, h("-0x1.5a2aa0p-14"))
    z = fma(z, r, h("0x1.3b6ccap-11"))
    z = fma(z, r, h("-0x1.44bd90p-8"))
    z = fma(z, r, h("0x1.37f5dap+0"))
    return fma(z, r, h("0x1.d0bee2p+2"))


def truncated_normal(word: Tensor, p: Params) -> Tensor:
    h = float.fromhex
    centred = word ^ SIGN
    x = fma(from_int(centred), p.x_mul, p.x_add)
    base = torch.where(x < 0, p.t_below, p.t_above).to(torch.float32)
    t = fma(from_uint(torch.where(x < 0, word, word ^ MASK)), p.t_mul, base)
    y = fma(-t, t, t)
    m = mantissa(y) - 1.0
    ell = torch.full_like(m, h("-0x1.e53008p+0"))
    ell = fma(ell, m, h("-0x1.b40c28p+0"))
    ell = fma(ell, m, h("-0x1.43e4ccp+0"))
    ell = fma(ell, m, h("0x1.b9cdbep-4"))
    ell = fma(ell, m, h("-0x1.07957cp-1"))
    ell = fma(ell, m, h("0x1.703e7ep-1"))
    ell = fma(ell, m, h("-0x1.715760p+0"))
    ell = fma(ell, m, 124.0 - exponent(y))
    z = torch.full_like(ell, h("0x1.14bfbcp-25"))
    z = fma(z, ell, h("-0x1.620322p-20"))
    z = fma(z, ell, h("0x1.3c34f8p-16"))
    z = fma(z, ell, h("-0x1.0e374ap-14"))
    z = fma(z, ell, h("-0x1.179fdep-10"))
    z = fma(z, ell, h("0x1.005ff8p-7"))
    z = fma(z, ell, h("0x1.d1cbc8p-3"))
    z = fma(z, ell, h("0x1.40d92ep+0")) * x
    z = torch.where(ell > TAIL, tail_quantile(ell) * x, z)
    z = fma(z, p.mul, p.add)
    return minimum(maximum(stored(z, p), p.lo), p.hi)


def values(kind: int, p: Params, seed: int, stream: int, index: Tensor) -> Tensor:
    """The values of some elements of a stream, divided by the scale, before they are rounded to a dtype.

    Args:
        kind: the code of a law, but CONSTANT (``fastinit.stream.laws``); p: its parameters.
        seed, stream: in [0, 2^64).
        index: int64 [...]: which elements, counted in row-major order in the full tensor;
            in [0, 2^63).

    Returns:
        float32 [...].
    """
    w = philox_words(seed, stream, index >> 2)
    place = index & 3
    if kind == NORMAL:
        pair = torch.stack((place & 2, place | 1), -1)
        radius_word, angle_word = w.gather(-1, pair).unbind(-1)
        z0, z1 = normal_pair(radius_word, angle_word)
        return stored(fma(torch.where(place & 1 == 0, z0, z1), p.mul, p.add), p)
    word = w.gather(-1, place.unsqueeze(-1)).squeeze(-1)
    return uniform(word, p) if kind == UNIFORM else truncated_normal(word, p)


def fill(
    tensor: Tensor,
    kind: int,
    p: Params,
    seed: int,
    stream: int,
    strides: tuple[int, ...],
    offset: int,
    values: Callable[[int, Params, int, int, Tensor], Tensor] = values,
) -> None:
    """Writes a window: element (i, j, ...) of ``tensor`` is the stream's i*strides[0] + ... + offset.

    Args:
        tensor: any shape, strides and device; one of ``laws.WRITTEN``, to which values are rounded to
            nearest even, and of 8 bits saturated.
        kind, p, seed, stream: as of :func:`values`; CONSTANT, too, the value of which is ``p.add``.
        strides: one for each dimension of the tensor, not negative.
        offset: not negative; the last element is below 2^63.
        values: what gives them; of laws in float64 that of ``fastinit.stream.exact``.
    """
    if kind == CONSTANT:
        # copy_ gives a NaN of other bits; fill_ refuses what overflows float16.
        if p.add != p.add:
            tensor.fill_(p.add)
        else:
            tensor.copy_(scalar(p.add, torch.float64))
        return
    if tensor.numel() > CHUNK:
        dim = max(range(tensor.dim()), key=tensor.size)
        half = tensor.size(dim) // 2
        fill(tensor.narrow(dim, 0, half), kind, p, seed, stream, strides, offset, values)
        rest = tensor.narrow(dim, half, tensor.size(dim) - half)
        fill(rest, kind, p, seed, stream, strides, offset + half * strides[dim], values)
        return
    index = torch.full(tensor.shape, offset, dtype=torch.int64, device=CPU)
    for dim, stride in enumerate(strides):
        steps = torch.arange(tensor.size(dim), device=CPU) * stride
        index += steps.view(-1, *[1] * (tensor.dim() - 1 - dim))
    tensor.copy_(rounded(values(kind, p, seed, stream, index), tensor.dtype))
