"""A constant in each dtype: rounded as by torch, without a sign of zero, and real."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from same_bits import ISAS, bits, isa

from fastinit.backends.choose import backend
from fastinit.fills.operator import Request, fill_, fill_many_
from fastinit.stream import laws

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

DTYPES = (*laws.DTYPES, *laws.COMPLEX)


def bit_patterns() -> list[float]:
    """float32 values where a conversion to 16 bits has cases, and random ones."""
    draw = random.Random(1)
    words = [draw.getrandbits(32) for _ in range(300)]
    for sign in (0, 1 << 31):
        for exponent in (0, 1, 2, 100, 101, 102, 103, 112, 113, 114, 127, 142, 143, 254, 255):
            for low in (
                0,
                1,
                0x0FFF,
                0x1000,
                0x1001,
                0x2FFF,
                0x3000,
                0x7FFF,
                0x8000,
                0x8001,
                0x18000,
            ):
                words.append(sign | exponent << 23 | low)
                words.append(sign | exponent << 23 | 0x7F_FFFF - low)
        words += [sign | 0x477FF000 - 1, sign | 0x477FF000, sign | 0x33000000, sign | 0x33000001]
    values = [struct.unpack("f", struct.pack("I", word))[0] for word in words]
    return [value + 0.0 for value in values]  # -0.0 is 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["reference", *ISAS])
def test_constants_are_rounded_as_by_torch(name: str, dtype: torch.dtype) -> None:
    values = bit_patterns()
    expected = torch.tensor(values, dtype=torch.float32).to(dtype)
    got = torch.empty(len(values), dtype=dtype)
    with backend("reference") if name == "reference" else isa(name):
        for i, value in enumerate(values):
            fill_(got[i], laws.constant(value))
    numbers = ~torch.tensor(values).isnan()
    assert bits(got[numbers]).equal(bits(expected[numbers]))
    assert bool(got[~numbers].isnan().all())


@pytest.mark.parametrize("name", ["reference", *ISAS])
def test_zero_has_no_sign(name: str) -> None:
    """Laws that compare equal write the same bits, whichever of them was used first."""
    with backend("reference") if name == "reference" else isa(name):
        for one, other in (
            (laws.constant(-0.0), laws.constant(0.0)),
            (laws.normal(-0.0, 0.0), laws.normal(0.0, 0.0)),
            (laws.uniform(-0.0, 1e-44), laws.uniform(0.0, 1e-44)),
        ):
            assert one == other
            laws.kernel_params.cache_clear()
            first = fill_(torch.empty(500, 2).t(), one, seed=1)
            laws.kernel_params.cache_clear()
            assert bits(fill_(torch.empty(500, 2).t(), other, seed=1)).equal(bits(first))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_constant_is_real(dtype: torch.dtype) -> None:
    tensor = torch.full((3, 5), 7 + 7j, dtype=dtype)
    fill_(tensor, laws.constant(2.5))
    assert torch.equal(tensor, torch.full_like(tensor, 2.5))
    fill_many_([Request(tensor.t(), laws.constant(-1.0), seed=0)])
    assert torch.equal(tensor, torch.full_like(tensor, -1.0))
