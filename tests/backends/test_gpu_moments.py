"""What GPUs give (tests/gpu_moments.py has their bits) against exact sums and the CPU's."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import gpu_moments
import pytest
import torch
from gpu_moments import near, raw_moments
from same_bits import drawn, forced
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.statistics.tensor import moments
from fastinit.stream import laws
from fastinit.stream.reference_moments import COUNT, M2, MEAN

NIST = sorted((Path(__file__).parents[1] / "vectors" / "nist").glob("*.txt"))


def digits(got: float, expected: Fraction) -> float:
    if expected == 0:
        return math.inf if got == 0 else 0.0
    error = abs(Fraction(got) / expected - 1)
    return math.inf if error == 0 else -math.log10(error)


@pytest.mark.parametrize("repeated", [1, 40])
@pytest.mark.parametrize("path", NIST, ids=lambda path: path.stem)
def test_nist_data_to_twelve_digits(path: Path, repeated: int) -> None:
    text = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    x = torch.tensor([float(line) for line in text], dtype=torch.float32)
    values = [Fraction(v) for v in x.tolist()]
    mean = sum(values, Fraction(0)) / len(values)
    m2 = repeated * sum(((v - mean) ** 2 for v in values), Fraction(0))
    raw = raw_moments(x.repeat(repeated), by_column=False)
    assert raw[COUNT] == repeated * len(values)
    assert digits(raw[MEAN].item(), mean) >= 12
    assert digits(raw[M2].item(), m2) >= 12


def distributions(dtype: torch.dtype) -> dict[str, Tensor]:
    x = drawn(300, 130, seed=3).double()
    tiny, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    steps = torch.arange(x.numel(), dtype=torch.float64).view(x.shape)
    broken = x.clone()
    broken[::7, 5], broken[3], broken[:, 9] = math.inf, math.nan, -math.inf
    return {
        "normal": x,
        "of every size": drawn(300, 130, seed=4, reach=12).double(),
        "rectified": x.clamp(min=0),
        "in order": steps.remainder(1024) / 64,
        **{f"{far} deviations from zero": x + far for far in (2.5, 4, 8, 11, 15, 200, 3000)},
        "near the largest": x.sign() * largest * (1 - x.abs() / 1e4),
        "large and alike": largest / 2 * (1 + x.abs() / 1e4),
        "denormal": x * tiny / 4,
        "small": x * tiny * 1e4,
        "broken": broken,
        "broken, far, large": broken * largest / 1e6 + largest / 50,
        "one that stands out": x.clone().index_fill_(0, torch.tensor([7]), 1e4),
    }


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_it_is_the_cpu_s_to_thirteen_digits(dtype: torch.dtype, by_column: bool) -> None:
    name = "native" if backends.native.module else "reference"
    for what, values in distributions(dtype).items():
        x = values.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
        x[values.isnan()] = math.nan
        x[values.isinf()] = values[values.isinf()].to(dtype)
        with forced(name):
            expected = moments(x, dim=1 if by_column else None).raw
        assert near(raw_moments(x, by_column), expected), what


def test_a_constant_has_no_variance() -> None:
    for value in (0.0, -0.0, 0.1, 1e7, -3e38, 1e-40):
        raw = raw_moments(torch.full((20_001,), value), by_column=False)
        assert raw[M2] == 0
        assert raw[MEAN] == torch.tensor(value).double()


def test_near_sees_the_fourteenth_digit_and_no_other() -> None:
    raw = raw_moments(drawn(5000, seed=1), by_column=False)
    for field in (MEAN, M2):
        for error, seen in ((1e-12, True), (1e-15, False)):
            other = raw.clone()
            size = raw[M2] if field == M2 else (raw[M2] / raw[COUNT]).sqrt()
            other[field] += error * size
            assert near(other, raw) != seen
    other = raw.clone()
    other[gpu_moments.MIN] *= 1 + 2.0**-52
    assert not near(other, raw)
