"""Block formats in plain torch: float32 values as elements of few bits, of which some share a scale.

Line for line this is ``csrc/cpu/blocks.h``, and in Triton ``backends/triton/blocks.py``. Blocks lie
along the last dimension. A value is divided by its block's scale, rounded to nearest even, and
saturated; what that scale is, says

- of the ``mx`` formats OCP's Microscaling Formats (MX) v1.0, section 6.3: the power of two
  2^(floor(log2 absmax) - the exponent of the element's largest number), at least 2^-127. Division by it
  is exact. torchao's ``ScaleCalculationMode.FLOOR`` gives the same bits, except that it divides by
  2^-126 where the scale is 2^-127.
- of ``nvfp4``, of which no standard speaks, torchao's ``NVFP4Tensor``: E4M3(float32(absmax / 6) /
  tensor_scale), at least 2^-6, all in float32. Values are multiplied by (1 / tensor_scale) / that.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastinit.base.number import FLOAT32_MAX, NumberRangeError
from fastinit.stream import laws, reference
from fastinit.stream.formats import BY_POWER, FORMATS
from fastinit.stream.laws import Law
from fastinit.stream.rounding import CPU, float32, rounded

ELEMENTS = {
    "mxfp8": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp4": None,
    "nvfp4": None,
}
"""The formats that are written, of ``formats.FORMATS``, in the order of kernels' codes, with the dtype
of an element; None of those of 4 bits, two of which are a byte, the first one in the low bits."""

LEAST_E4M3 = 2.0**-6
"""The least block scale of NVFP4: a normal number."""

TENSOR_SCALES = 2.0**-120, 2.0**117
"""What a tensor's scale may be: its reciprocal, divided by any block's scale, is a normal number."""

LARGEST_NORMAL = 6.7637
"""The largest magnitude of the stream's normal numbers, in standard deviations."""


def quantised(x: Tensor, name: str, tensor_scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Packed elements and scales of values, as bytes.

    Args:
        x: float32 [..., block], finite. name: of the format. tensor_scale: of nvfp4.

    Returns:
        uint8 [..., bytes of a block], and uint8 [...].
    """
    row, element = FORMATS[name], ELEMENTS[name]
    most = x.abs().amax(-1)
    if row.scaling == BY_POWER:
        biased = ((most.view(torch.int32) >> 23) - row.exponent).clamp(min=0)
        scale, factor = biased.to(torch.uint8), (254 - biased << 23).view(torch.float32)
    else:
        # By tensors: torch may multiply by the reciprocal of a number.
        whole = torch.full_like(most, tensor_scale)
        ratio = (most / torch.full_like(most, row.largest) / whole).clamp(min=LEAST_E4M3)
        held = rounded(ratio, torch.float8_e4m3fn)
        scale, factor = held.view(torch.uint8), torch.ones_like(most) / whole / held.float()
    y = x * factor.unsqueeze(-1)
    if element is not None:
        return rounded(y, element).view(torch.uint8), scale
    codes = e2m1(y)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scale


def e2m1(x: Tensor) -> Tensor:
    """uint8, of the same shape: the bits of the nearest of 0, 1/2, 1, 3/2, 2, 3, 4, 6, ties to even."""
    m = x.abs()
    code = torch.signbit(x).to(torch.uint8) << 3
    for middle, up in zip((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0), (False, True) * 4):
        code += (m >= middle) if up else (m > middle)
    return code


def values(data: Tensor, scale: Tensor, name: str, tensor_scale: float = 1.0) -> Tensor:
    """float32 [..., block]: what bytes [..., bytes of a block] and scales [...] mean."""
    element = ELEMENTS[name]
    if element is None:
        codes = torch.stack((data & 15, data >> 4), -1).flatten(-2).long()
        x = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=data.device)[codes & 7]
        x = torch.where(codes > 7, -x, x)
    else:
        x = data.view(element).float()
    if FORMATS[name].scaling == BY_POWER:
        exponent = scale.to(torch.int32).unsqueeze(-1) - 127
        return torch.ldexp(x, exponent)
    return x * (scale.view(torch.float8_e4m3fn).float() * tensor_scale).unsqueeze(-1)


@lru_cache(maxsize=256)
def tensor_scale_of(law: Law) -> float:
    """The scale of a whole NVFP4 tensor of a law: the largest magnitude that it has, over 6 * 448.

    The law says it, and no value is looked at: every shard has the same one. What is drawn hardly
    reaches the largest magnitude, which costs nothing: block scales are then less than E4M3's largest
    number, of as many digits. Of zeros it is 1.

    Raises:
        NumberRangeError: it is beyond ``TENSOR_SCALES``.
    """
    most, row = largest_magnitude(law), FORMATS["nvfp4"]
    scale = float32(most / (row.largest * 448.0)) if most else 1.0
    least, largest = TENSOR_SCALES
    if not least <= scale <= largest:
        said = f"{scale:.3g} of {law.name}{law.arguments}"
        raise NumberRangeError(
            f"tensor_scale must be from {least:.3g} to {largest:.3g}, but got {said}"
        )
    return scale


def float8_scale_of(law: Law, dtype: torch.dtype) -> float:
    """The scale of a float8 tensor of a law: the least power of two with which no value saturates.

    Division by it is exact, and every dtype that scales are kept in has it. It is at least 2^-126; of
    zeros it is 1.

    Raises:
        NumberRangeError: a law with values that are not finite.
    """
    check_law(law, str(dtype).removeprefix("torch."))
    if not (most := largest_magnitude(law)):
        return 1.0
    mantissa, exponent = math.frexp(most / torch.finfo(dtype).max)
    return math.ldexp(1.0, max(exponent - (mantissa == 0.5), -126))


@lru_cache(maxsize=256)
def largest_magnitude(law: Law) -> float:
    """No float32 value of the law's stream has a larger one (of truncated normals by more than 1e-5)."""
    if law.kind == laws.NORMAL:
        mean, std = law.arguments
        return abs(mean) + LARGEST_NORMAL * std
    if law.kind == laws.CONSTANT:
        return abs(law.p0)
    p = laws.kernel_params(law, torch.float32)
    law_of = reference.uniform if law.kind == laws.UNIFORM else reference.truncated_normal
    return float(
        law_of(torch.tensor([0, reference.MASK], device=CPU), p).abs().max()
    )  # quantiles ascend


def check_law(law: Law, name: str) -> None:
    """Raises unless values of a law are held by a block format.

    Raises:
        NumberRangeError: a law with values that are not finite in float32, which a block's scale would
            follow; and as :func:`fastinit.stream.laws.kernel_params`.
        ValueError: a law that is scaled or exact itself.
    """
    laws.check_dtype(law, name)
    laws.kernel_params(law, torch.float32)
    if not largest_magnitude(law) <= FLOAT32_MAX:
        raise NumberRangeError(
            f"a law must have finite values to be stored in {name}, but got {law.name}{law.arguments}"
        )


def fill(
    data: Tensor,
    scale: Tensor,
    law: Law,
    seed: int,
    stream: int,
    strides: tuple[int, ...],
    offset: int,
    name: str,
    tensor_scale: float,
) -> None:
    """Writes a window of blocks.

    Args:
        data: uint8 [..., bytes of a block]; scale: uint8 [...]; of any strides.
        strides, offset: of the blocks' first values, as those of :func:`fastinit.stream.reference.fill`.
    """
    block = FORMATS[name].block
    if scale.numel() * block > reference.CHUNK and max(scale.shape) > 1:
        dim = max(range(scale.dim()), key=scale.size)
        half, rest = scale.size(dim) // 2, scale.size(dim) - scale.size(dim) // 2
        for start, some in ((0, half), (half, rest)):
            here = data.narrow(dim, start, some), scale.narrow(dim, start, some)
            at = offset + start * strides[dim]
            fill(*here, law, seed, stream, strides, at, name, tensor_scale)
        return
    x = torch.empty(*scale.shape, block, dtype=torch.float32, device=CPU)
    p = laws.kernel_params(law, torch.float32)
    reference.fill(x, law.kind, p, seed, stream, (*strides, 1), offset)
    for to, made in zip((data, scale), quantised(x, name, tensor_scale)):
        to.copy_(made)
