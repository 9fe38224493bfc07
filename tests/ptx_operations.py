"""What PTX instructions compute, in numpy: their types, and the function behind an opcode.

Part of ptxrun.py. What is not here is an unknown instruction: a rounding mode, a fused operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

Words = Any  # unsigned words or bools, one for each thread or one for all


class Fault(Exception):
    """What a kernel must not do."""


# --- types -----------------------------------------------------------------------------------------

TYPES: dict[str, Any] = {
    f"{letter}{bits}": np.dtype(f"{kind}{bits // 8}")
    for letter, kind in (("b", "u"), ("u", "u"), ("s", "i"), ("f", "f"))
    for bits in (8, 16, 32, 64)
    if (letter, bits) != ("f", 8)
} | {
    "pred": np.dtype(bool),
    "f32x2": np.dtype("u8"),
    "f16x2": np.dtype("u4"),
    "bf16x2": np.dtype("u4"),
}


def unsigned(dtype: Any) -> Any:
    return dtype if dtype.kind == "b" else np.dtype(f"u{dtype.itemsize}")


def typed(words: Words, dtype: Any) -> Any:
    """Words as numbers of a type; of wider words, their low bits."""
    if words.dtype.itemsize != dtype.itemsize:
        words = words.astype(unsigned(dtype))
    return words.view(dtype)


def words(numbers: Any) -> Words:
    return numbers.view(unsigned(numbers.dtype))


def extended(value: Words, dtype: Any, register: Any) -> Words:
    """Words of a type as a register holds them: with the sign, or zeros, before them."""
    if value.dtype.itemsize >= register.itemsize:
        return value
    return words(value.view(dtype).astype(f"{dtype.kind}{register.itemsize}"))


# --- arithmetic ------------------------------------------------------------------------------------


def fma(a: Any, b: Any, c: Any) -> Any:
    """float32 a * b + c with one rounding, as in fastinit/stream/reference.py."""
    product, c = np.multiply(a, b, dtype=np.float64), c.astype(np.float64)
    total = np.atleast_1d(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    odd = np.where((error > 0) == (total > 0), bits, bits - 1) | 1
    exact = (error == 0) | ~np.isfinite(total)
    return np.where(exact, total, odd.view(np.float64)).astype(np.float32)


def smaller(a: Any, b: Any) -> Any:
    """The one that is a number; -0 is less than +0."""
    either = np.where((a < b) | np.isnan(b), words(a), words(b))
    return np.where(a == b, words(a) | words(b), either).view(a.dtype)


def larger(a: Any, b: Any) -> Any:
    return -smaller(-a, -b)


def divided(a: Any, b: Any) -> Any:
    """Integers, towards zero."""
    if (b == 0).any():
        raise Fault("division by zero")
    quotient = np.floor_divide(a, b)
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(quotient.dtype)


def permuted(a: Any, b: Any, selectors: Any) -> Any:
    """prmt: each byte is one of eight, or its sign."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(a)
    for i in range(4):
        selector = selectors >> np.uint32(4 * i) & np.uint32(15)
        byte = both >> (selector & np.uint32(7)).astype(np.uint64) * np.uint64(8) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        chosen = np.where(selector & np.uint32(8), sign, byte)
        result |= chosen.astype(a.dtype) << np.uint32(8 * i)
    return result


def lookup(a: Any, b: Any, c: Any, table: Any) -> Any:
    terms = [
        (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        for i in range(8)
        if int(table) >> i & 1
    ]
    return np.bitwise_or.reduce(np.broadcast_arrays(*terms))


def wide(a: Any, b: Any) -> Any:
    double = f"{a.dtype.kind}{2 * a.dtype.itemsize}"
    return a.astype(double) * b.astype(double)


def field(a: Any, position: Any, length: Any) -> Any:
    """A bit field, extended as the type wants it."""
    bits, at, n = 8 * a.dtype.itemsize, int(position), int(length)
    if not 0 < n <= bits - at:
        raise Fault(f"a bit field of {n} bits at {at}")
    return a << a.dtype.type(bits - n - at) >> a.dtype.type(bits - n)


def bfloat16(a: Any) -> Any:
    b = words(a)
    rounded = b + np.uint32(0x7FFF) + (b >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
    return np.where(np.isnan(a), 0x7FFF, rounded).astype(np.uint16)


def eights(high: Any, low: Any, dtype: Any) -> Any:
    """Two float32 as 8-bit numbers, saturated, in 16 bits."""
    most = float(ml_dtypes.finfo(dtype).max)
    kept = (np.clip(a, -most, most).astype(dtype).view(np.uint8) for a in (low, high))
    first, second = (k.astype(np.uint16) for k in kept)
    return first | second << np.uint16(8)


def both(low: Any, high: Any) -> Words:
    """Two words as one of twice their width."""
    double = f"u{2 * low.dtype.itemsize}"
    shift = np.array(8 * low.dtype.itemsize, double)[()]
    return low.astype(double) | high.astype(double) << shift


def halves(both: Words) -> tuple[Words, Words]:
    half = f"u{both.dtype.itemsize // 2}"
    return both.astype(half), (both >> both.dtype.type(4 * both.dtype.itemsize)).astype(half)


INTEGERS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul.lo": np.multiply,
    "mul.hi": lambda a, b: wide(a, b) >> wide(a, b).dtype.type(8 * a.dtype.itemsize),
    "mul.wide": wide,
    "mad.lo": lambda a, b, c: a * b + c,
    "div": divided,
    "rem": lambda a, b: a - divided(a, b) * b,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "shl": lambda a, n: a << n.astype(a.dtype),
    "shr": lambda a, n: a >> n.astype(a.dtype),
    "bfe": field,
    "lop3": lookup,
    "prmt": permuted,
    "setp.eq": np.equal,
    "setp.ne": np.not_equal,
    "setp.lt": np.less,
    "setp.le": np.less_equal,
    "setp.gt": np.greater,
    "setp.ge": np.greater_equal,
}
FLOATS: dict[str, Callable[..., Any]] = {
    "add.rn": np.add,
    "sub.rn": np.subtract,
    "mul.rn": np.multiply,
    "div.rn": np.divide,
    "min": smaller,
    "max": larger,
    "neg": np.negative,
    "rcp.rn": np.reciprocal,
    "setp.eq": np.equal,
    "setp.neu": np.not_equal,  # true of a NaN, as those that follow
    "setp.lt": np.less,
    "setp.le": np.less_equal,
    "setp.gt": np.greater,
    "setp.ge": np.greater_equal,
    "setp.ltu": lambda a, b: ~(a >= b),
    "setp.gtu": lambda a, b: ~(a <= b),
    "setp.leu": lambda a, b: ~(a > b),
    "setp.geu": lambda a, b: ~(a < b),
    "setp.nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
FLOATS32 = FLOATS | {
    "fma.rn": fma,
    "sqrt.rn": lambda a: np.sqrt(a.astype(np.float64)).astype(np.float32),
}
PREDICATES: dict[str, Callable[..., Any]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "xor": np.logical_xor,
}
HALVES: dict[str, Callable[..., Any]] = {
    "min": smaller,
    "max": larger,
    "add.rn": np.add,
    "set.eq.f16x2": lambda a, b: np.equal(a, b).astype(a.dtype),
}
CONVERSIONS: dict[str, Callable[..., Any]] = {
    "rn.f32.s32": lambda a: a.astype(np.float32),
    "rn.f32.u32": lambda a: a.astype(np.float32),
    "rn.f32.f64": lambda a: a.astype(np.float32),
    "rn.f64.s32": lambda a: a.astype(np.float64),
    "rn.f64.s64": lambda a: a.astype(np.float64),
    "f32.f16": lambda a: a.astype(np.float32),
    "rzi.s32.f32": lambda a: a.astype(np.int32),
    "rzi.u32.f64": lambda a: a.astype(np.uint32),
    "f64.f32": lambda a: a.astype(np.float64),
    "rn.f16.f32": lambda a: a.astype(np.float16),
    "rn.f16x2.f32": lambda a, b: both(words(b.astype(np.float16)), words(a.astype(np.float16))),
    "rn.bf16x2.f32": lambda a, b: both(bfloat16(b), bfloat16(a)),
    "rn.satfinite.e4m3x2.f32": lambda a, b: eights(a, b, ml_dtypes.float8_e4m3fn),
    "rn.satfinite.e5m2x2.f32": lambda a, b: eights(a, b, ml_dtypes.float8_e5m2),
}


def in_pairs(function: Callable[..., Any], dtype: Any = np.float32) -> Callable[..., Any]:
    """An operation on float32 or float16 numbers, for both halves of twice their bits."""
    whole = np.dtype(f"u{2 * np.dtype(dtype).itemsize}")

    def run(*arguments: Any) -> Any:
        pairs = (np.atleast_1d(a)[:, None].view(dtype) for a in arguments)
        return np.ascontiguousarray(function(*pairs)).view(whole)[:, 0]

    return run


def of_bfloat16(function: Callable[..., Any]) -> Callable[..., Any]:
    """One that gives one of its operands, on float32, for both halves of 32 bits."""

    def run(*arguments: Any) -> Any:
        pairs = (np.atleast_1d(a)[:, None].view(np.uint16) for a in arguments)
        wide = ((a.astype(np.uint32) << np.uint32(16)).view(np.float32) for a in pairs)
        high = words(function(*wide)) >> np.uint32(16)
        return np.ascontiguousarray(high.astype(np.uint16)).view(np.uint32)[:, 0]

    return run


def operation(opcode: str) -> tuple[Callable[..., Any], list[Any]] | None:
    """What an instruction computes from its operands, and their types (the last repeats)."""
    name, _, kind = opcode.rpartition(".")
    first, *modifiers = name.split(".")
    dtype = TYPES.get(kind)
    function: Callable[..., Any] | None = None
    types = [dtype]
    if first == "cvt" and opcode[4:] in CONVERSIONS:
        function = CONVERSIONS[opcode[4:]]
    elif dtype is None:
        return None
    elif first == "cvt" and len(modifiers) == 1 and {modifiers[0][0], kind[0]} <= {"u", "s"}:
        to = TYPES[modifiers[0]]
        function = lambda a: a.astype(to)  # noqa: E731
    elif name in ("mov", "cvta.to.global", "cvta.param"):
        function = lambda a: a  # noqa: E731
    elif name == "selp":
        function, types = lambda a, b, p: np.where(p, a, b), [dtype, dtype, TYPES["pred"]]
    elif kind == "pred":
        function = PREDICATES.get(name)
    elif kind == "f64":
        function = FLOATS.get(name)
    elif kind == "f32":
        function = FLOATS32.get(name)
    elif kind == "f32x2":
        function = in_pairs(FLOATS32[name]) if name in FLOATS32 else None
    elif kind == "f16x2":
        function = in_pairs(HALVES[name], np.float16) if name in HALVES else None
    elif kind == "bf16x2":
        function = of_bfloat16(HALVES[name]) if name in ("min", "max") else None
    elif kind[0] in "bus":
        function = INTEGERS.get(name)
        if first in ("shl", "shr", "bfe"):
            types = [dtype, TYPES["u32"]]
    return (function, types) if function else None
