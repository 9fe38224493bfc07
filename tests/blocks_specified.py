"""Block formats as their standards have them, in NumPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from same_bits import ISAS, TRITON, bits
from torch import Tensor

from fastinit import Blocks
from fastinit.fills.operator import fill_
from fastinit.stream import blocks, laws
from fastinit.stream.laws import Law

FORMATS = tuple(blocks.ELEMENTS)
BLOCK = {"mxfp8": 32, "mxfp8_e5m2": 32, "mxfp4": 32, "nvfp4": 16}
BUILDS = ("reference", *ISAS)
# Triton's interpreter takes a tenth of a second for a call: it is asked for some of what others are.
EVERY = (*BUILDS, *TRITON)

# --- the specifications, in NumPy -----------------------------------------------------------------

ELEMENTS: dict[str, tuple[Any, int, float]] = {
    "mxfp8": (ml_dtypes.float8_e4m3fn, 8, 448.0),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15, 57344.0),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2, 6.0),
    "nvfp4": (ml_dtypes.float4_e2m1fn, 2, 6.0),
}
"""Type, exponent of the largest number, and that number (OCP MX v1.0, table 1)."""


def as_specified(wide: Tensor, format: str, tensor_scale: float) -> tuple[Tensor, Tensor]:
    """Bytes of data [..., bytes] and of scales [..., blocks] of float32 values."""
    kind, exponent, largest = ELEMENTS[format]
    x = wide.unflatten(-1, (-1, BLOCK[format])).numpy()
    most = np.abs(x).max(-1, keepdims=True)
    if format == "nvfp4":
        whole = np.float32(tensor_scale)
        ratio = np.clip(most / np.float32(6) / whole, np.float32(2.0**-6), np.float32(448))
        scale = ratio.astype(ml_dtypes.float8_e4m3fn)
        y = x * (np.float32(1) / whole / scale.astype(np.float32))
    else:  # section 6.3, in float64: the division is exact
        floor = np.where(most > 0, np.frexp(most.astype(np.float64))[1] - 1, -1000)
        power = np.ldexp(1.0, np.clip(floor - exponent, -127, 127))
        scale = power.astype(ml_dtypes.float8_e8m0fnu)
        y = x.astype(np.float64) / power
    held = np.clip(y, -largest, largest).astype(np.float32).astype(kind)
    codes = held.view(np.uint8)
    if ELEMENTS[format][0] is ml_dtypes.float4_e2m1fn:
        codes = (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)
    data = torch.from_numpy(np.ascontiguousarray(codes)).flatten(-2)
    return data, torch.from_numpy(scale.view(np.uint8)).squeeze(-1)


def assert_holds(got: Blocks, wide: Tensor, what: object = "") -> None:
    """It is what the specification makes of float32 values, to the bit."""
    whole = 1.0 if got.tensor_scale is None else float(got.tensor_scale)
    data, scale = as_specified(wide, got.format, whole)
    assert bits(got.scale).equal(scale.flatten()), what
    assert bits(got.data).equal(data.flatten()), what


def filled(shape: tuple[int, ...], format: str, law: Law, **key: Any) -> Blocks:
    return fill_(Blocks.empty(shape, format), law, **{"seed": 5, **key})


LAW = laws.normal(0.0, 0.5)


# --- refused ----------------------------------------------------------------------------------------


def u8(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)
