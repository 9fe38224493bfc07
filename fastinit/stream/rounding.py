"""Rounding: the values of a dtype next to a number, without the flags or modes of a machine."""

from __future__ import annotations

import math
import struct

import torch


def float32(value: float) -> float:
    """The nearest float32, ties to even; infinity beyond its range. Never -0.0."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0]) + 0.0
    except OverflowError:
        return math.copysign(math.inf, value)


def nearest(value: float, dtype: torch.dtype) -> float:
    """The nearest value that ``dtype`` and float32 both hold."""
    value = float32(value)
    if dtype in (torch.float16, torch.bfloat16):
        value = torch.tensor(value, dtype=torch.float32).to(dtype).item() + 0.0
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


def neighbour(value: float, dtype: torch.dtype, direction: int) -> float:
    held = torch.float32 if dtype == torch.float64 else dtype
    integers = torch.int32 if held == torch.float32 else torch.int16
    bits = int(torch.tensor(value, dtype=held).view(integers).item())
    sign = -1 << (31 if held == torch.float32 else 15)
    ordered = bits if bits >= 0 else sign - bits  # integers in the order of the values
    ordered += direction
    if value == 0.0 and ordered < 0:  # both zeros stand at 0
        ordered = -1
    bits = ordered if ordered >= 0 else sign - ordered
    return float(torch.tensor(bits, dtype=integers).view(held).item())
