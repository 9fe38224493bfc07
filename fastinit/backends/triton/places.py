"""Where values of a tensor lie, and what they are, in Triton."""

# Triton's language: the types are those of its compiler, not Python's.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from fastinit.backends.triton.stream import BFLOAT16, FLOAT16


@triton.jit
def coordinates(index, sizes, DIMS: tl.constexpr):
    """Of an index of the dimensions, counted in row-major order; the last one first."""
    found = ()
    for i in tl.static_range(DIMS - 1):
        rest = index // sizes[DIMS - 2 - i]
        found += (index - rest * sizes[DIMS - 2 - i],)  # type: ignore[assignment]
        index = rest
    return found + (index,)  # noqa: RUF005 - Triton unpacks none


@triton.jit
def place(found, on, sizes, strides, DIMS: tl.constexpr):
    """Where the index is that is ``on`` < 2^31 behind that of these coordinates."""
    at = tl.zeros(on.shape, tl.int64)
    on = on.to(tl.int64)
    for i in tl.static_range(DIMS - 1):
        size = tl.full((), sizes[DIMS - 2 - i], tl.int64)
        here = found[i] + on
        # 64 bits take several times as long to divide: a size that needs them is passed once, if at all.
        small = size < 1 << 31
        some = here.to(tl.uint32) // tl.where(small, size, 1).to(tl.uint32)
        on = tl.where(small, some.to(tl.int64), (here >= size).to(tl.int64))
        at += (here - on * size) * strides[DIMS - 1 - i]
    return at + (found[DIMS - 1] + on) * strides[0]


@triton.jit
def widen(x, DTYPE: tl.constexpr):
    """float32, or float64 if that is stored; bfloat16 comes as its bits."""
    if DTYPE == BFLOAT16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == FLOAT16:
        return x.to(tl.float32)
    else:
        return x
