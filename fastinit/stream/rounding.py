"""Rounding: the values of a dtype next to a number, without the flags or modes of a machine."""

from __future__ import annotations

import math
import struct

import torch

FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
"""The 8-bit dtypes. Rounding to them saturates: beyond the largest value is the largest value."""


CPU = torch.device("cpu")
"""Where the specification computes, whatever torch's default device is."""


def scalar(value: float, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without dimensions there."""
    return torch.tensor(value, dtype=dtype, device=CPU)


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values in a dtype, to nearest even; of 8 bits saturated (OFP8's SAT mode), but NaN.

    torch's own conversion of what is beyond 8 bits gives NaN, infinities or the largest value, by dtype,
    device and version.
    """
    if values.dtype == dtype:
        return values
    if dtype in FLOAT8:
        values = values.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
    return values.to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """In which values of a dtype are computed: at least float32 of floating-point ones.

    >>> wide(torch.bfloat16), wide(torch.float64), wide(torch.int8)
    (torch.float32, torch.float64, torch.int8)
    """
    if not (dtype.is_floating_point or dtype.is_complex) or dtype.itemsize >= 4 << dtype.is_complex:
        return dtype
    return torch.complex64 if dtype.is_complex else torch.float32


def float32(value: float) -> float:
    """The nearest float32, ties to even; infinity beyond its range. Never -0.0."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0]) + 0.0
    except OverflowError:
        return math.copysign(math.inf, value)


def nearest(value: float, dtype: torch.dtype) -> float:
    """The nearest value that ``dtype`` and float32 both hold."""
    value = float32(value)
    if dtype not in (torch.float32, torch.float64):
        value = rounded(scalar(value, torch.float32), dtype).item() + 0.0
    return value


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest value of ``dtype`` (float32 for float64) that is not below ``value``."""
    near = nearest(value, dtype)
    return near if near >= value else neighbour(near, dtype, 1)


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` (float32 for float64) that is not above ``value``."""
    near = nearest(value, dtype)
    return near if near <= value else neighbour(near, dtype, -1)


def below(value: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` (float32 for float64) below ``value``."""
    near = nearest(value, dtype)
    return near if near < value else neighbour(near, dtype, -1)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def neighbour(value: float, dtype: torch.dtype, direction: int) -> float:
    held = torch.float32 if dtype == torch.float64 else dtype
    integers = _INTEGERS[held.itemsize]
    bits = int(scalar(value, torch.float32).to(held).view(integers).item())
    sign = -1 << (8 * held.itemsize - 1)
    ordered = bits if bits >= 0 else sign - bits  # integers in the order of the values
    ordered += direction
    if value == 0.0 and ordered < 0:  # both zeros stand at 0
        ordered = -1
    if abs(ordered) >= -sign:  # behind the largest value is nothing where zero has no sign
        return direction * math.inf
    bits = ordered if ordered >= 0 else sign - ordered
    found = float(scalar(bits, integers).view(held).item())
    return found if found == found else direction * math.inf  # 8 bits have no infinity there
