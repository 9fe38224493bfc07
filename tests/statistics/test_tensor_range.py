"""Moments over the whole range of each dtype, on each backend, against exact arithmetic.

Each distribution at each power of two, down to denormal numbers and up to the largest: no square, sum
or mean may overflow or be lost on the way. Also where the caller makes zeros of denormal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache

import gpu_moments
import pytest
import torch
from same_bits import ISAS, TRITON, bits, forced
from torch import Tensor

from fastinit import linear_moments
from fastinit.backends.choose import backend
from fastinit.statistics.tensor import Moments, moments
from fastinit.stream import laws

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")  # numpy's
VALUES = 100  # of a row: several steps of all lanes, and a rest
LEAST = torch.finfo(torch.float64).smallest_normal
# float32 sums of up to 32 values, each addition rounded to 2^-24, would allow 9.2e-7 of std.
TOLERANCE = {torch.float16: 1e-6, torch.bfloat16: 1e-6, torch.float32: 1e-12, torch.float64: 1e-12}


def normal(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64)


def with_some(x: Tensor, *values: float) -> Tensor:
    x[torch.arange(len(values)) * 7 % len(x)] = torch.tensor(values, dtype=x.dtype)
    return x


DISTRIBUTIONS: dict[str, Callable[[int], Tensor]] = {
    "normal": normal,
    "after a ReLU": lambda n: normal(n).clamp(min=0),
    "far from zero": lambda n: normal(n) / 40 + 1.5,
    "one among zeros": lambda n: with_some(torch.zeros(n, dtype=torch.float64), 0.0, 1.5),
    "huge and tiny": lambda n: normal(n) * 2.0 ** -torch.arange(n).remainder(60).double(),
    "of both signs": lambda n: 1.5 - 3.0 * torch.arange(n).remainder(2).double(),
    "two neighbours": lambda n: with_some(torch.ones(n, dtype=torch.float64), 1.0, 1.0078125),
    "constant": lambda n: torch.full((n,), -1.5, dtype=torch.float64),
    "not finite": lambda n: with_some(normal(n), math.inf, -math.inf, math.nan),
    "not finite and constant": lambda n: with_some(
        torch.full((n,), 1.5, dtype=torch.float64), math.inf, math.nan
    ),
}


@cache
def rows(dtype: torch.dtype, distribution: str) -> Tensor:
    """[powers of two, VALUES]: a distribution from dtype's least number to its largest."""
    info = torch.finfo(dtype)
    first = round(math.log2(info.smallest_normal)) + round(math.log2(info.eps)) - 1
    powers = torch.arange(first, math.floor(math.log2(info.max)) + 2)
    if dtype is torch.float64:  # the powers of which the middle is alike
        powers = powers[(powers % 16 == 0) | (powers < first + 60) | (powers > 1010)]
    x = DISTRIBUTIONS[distribution](VALUES)
    # In two steps, as 2^1024 and more is no number.
    scaled = (
        x * 2.0 ** (powers // 2).double()[:, None] * 2.0 ** (powers - powers // 2)[:, None].double()
    )
    finite = scaled.clamp(-info.max, info.max).where(x.isfinite(), x)
    return finite.to(dtype)


def whole(value: float) -> int:
    """How many of float64's least number 2^-1074 it is."""
    fraction, power = math.frexp(value)
    digits, shift = int(fraction * 2**53), power + 1074 - 53
    return digits << shift if shift > 0 else digits >> -shift


def exact(x: Tensor) -> Tensor:
    """(mean, variance) of each row, correctly rounded: [rows, 2]."""
    found = []
    for row in x.double().tolist():
        values = [whole(v) for v in row if math.isfinite(v)]
        count, total, squares = len(values), sum(values), sum(v * v for v in values)
        variance = Fraction(count * squares - total * total, count * (count - 1) << 2 * 1074)
        try:
            rounded = float(variance)
        except OverflowError:
            rounded = math.inf
        found.append((float(Fraction(total, count << 1074)), rounded))
    return torch.tensor(found, dtype=torch.float64)


@cache
def exact_rows(dtype: torch.dtype, distribution: str) -> Tensor:
    return exact(rows(dtype, distribution))


@contextmanager
def denormals(flushed: bool) -> Iterator[None]:
    """Whether torch, and so this thread's arithmetic, takes denormal numbers for zeros."""
    if not torch.set_flush_denormal(flushed):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


LAYOUTS = {"rows": (0, False), "columns": (1, False), "rows, flushed": (0, True)}


def measured(x: Tensor, layout: str) -> Moments:
    """Of each row of x, whose fields have been read."""
    dim, flushed = LAYOUTS[layout]
    x = x.t().contiguous() if dim else x
    with denormals(flushed):
        m = moments(x, dim=dim)
        assert m.var.shape == (len(m.raw),)
    return m


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_each_power_of_two(distribution: str, dtype: torch.dtype, layout: str) -> None:
    if LAYOUTS[layout][1] and dtype is torch.float64:
        return  # its denormal numbers, the fields' own, are then zeros wherever they are read
    x = rows(dtype, distribution)
    expected = exact_rows(dtype, distribution)
    found = []
    for name in (*ISAS, *(["reference"] if layout == "rows" else [])):  # it takes longest
        with forced(name):
            m = measured(x, layout)
        check(x, m, expected[:, 0], expected[:, 1], TOLERANCE[dtype])
        found.append(m.raw)
    for raw in found[1 : len(ISAS)]:
        assert bits(raw).equal(bits(found[0]))


@pytest.mark.skipif(not TRITON, reason="no triton, or no interpreter")
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        *((dtype, "rows") for dtype in laws.DTYPES),
        *((dtype, "columns") for dtype in (torch.float32, torch.bfloat16)),
        *((dtype, "rows, flushed") for dtype in (torch.float16, torch.float64)),
    ],
)
def test_triton_gives_the_bits_of_gpus(dtype: torch.dtype, layout: str) -> None:
    """Of all distributions, at some powers of two, and fewer values: the interpreter is slow."""
    step = {torch.float16: 8, torch.float64: 24}.get(dtype, 16)
    x = torch.cat([rows(dtype, name)[::step, :34] for name in DISTRIBUTIONS])
    with backend("triton"):
        m = measured(x, layout)
    if layout == "columns":
        expected = gpu_moments.raw_moments(x.t().contiguous(), True)
    else:
        expected = torch.stack([gpu_moments.raw_moments(row, False) for row in x])
    assert bits(m.raw).equal(bits(expected))
    if LAYOUTS[layout][1] and dtype is torch.float64:
        return  # as above
    mean, var = exact(x).unbind(1)
    check(x, m, mean, var, TOLERANCE[dtype])


def check(x: Tensor, m: Moments, mean: Tensor, var: Tensor, tolerance: float) -> None:
    wide = x.double()
    finite = wide.isfinite()
    low = wide.where(finite, math.inf).amin(1)
    high = wide.where(finite, -math.inf).amax(1)
    assert m.count.equal(finite.sum(1).double())
    assert m.nonfinite.equal((~finite).sum(1).double())
    assert m.zeros.equal((wide == 0).sum(1).double())
    assert m.min.equal(low)
    assert m.max.equal(high)
    differ = low < high
    assert m.var[~differ].eq(0).all()
    assert m.mean[~differ].equal(low[~differ])
    # Beyond what float64 holds, or its sum: infinite, or of fewer digits and at last its least
    # normal number. Never 0.
    assert m.var[differ].ge(LEAST).all()
    known = differ & (var > 2.0**-960) & (var < 2.0**1000)
    large = var >= 2.0**1000
    assert (m.std[large] >= var[large].sqrt() * (1 - tolerance)).all()
    torch.testing.assert_close(m.std[known], var[known].sqrt(), rtol=tolerance, atol=0)
    small = differ & (var <= 2.0**-960)
    torch.testing.assert_close(m.var[small], var[small], rtol=tolerance, atol=2 * LEAST)
    # Of the largest value, as what cancels has no digits.
    most = torch.maximum(high, -low)
    error = (m.mean / 2 - mean / 2).abs()
    assert (error <= (tolerance * most / 2).clamp(min=2.0**-1074)).all(), (error / most).max()


def test_threads_take_denormal_numbers_as_they_are() -> None:
    """All of them, whatever the caller or torch has set."""
    x = (normal(700_000) * 2.0**-130).bfloat16()
    expected = moments(x).raw
    assert expected[0] == len(x)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ISAS:
            with forced(name), denormals(True):
                assert bits(moments(x).raw).equal(bits(expected)), name
                # The caller's own arithmetic is as it was.
                assert torch.tensor(2.0**-1022, dtype=torch.float64).mul(0.5).item() == 0.0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", [*TRITON, *ISAS[:1], "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("power", [-100, -60, 0, 60])
def test_products(power: int, dtype: torch.dtype, name: str) -> None:
    """linear_moments, of outputs 2^power in size, which a tile measures around its mean."""
    half = 2.0 ** (power / 2)
    x, weight = (normal(30 * 16, seed).view(30, 16).mul(half).to(dtype) for seed in (1, 2))
    with forced(name), denormals(True):
        m = linear_moments(x, weight)
    expected = x.double() @ weight.double().t()
    assert m.std == pytest.approx(expected.std().item(), rel=4 * torch.finfo(dtype).eps, abs=0)
    assert m.min == pytest.approx(expected.min().item(), rel=4 * torch.finfo(dtype).eps, abs=0)


SCALES = [1e-300, 1e-160, 1.0, 1e160, 1.5e308]


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in (*ISAS, "reference") for scale in SCALES]
    + [(name, SCALES[-1]) for name in TRITON],
)
def test_what_overflows_only_on_the_way_is_merged(name: str, scale: float) -> None:
    """The mean of values of both signs, whose difference and sum are no float64 numbers."""
    # One chunk of the interpreter, which is slow, and four of the others.
    fifth = 7 if name in TRITON else 10_000
    x = torch.tensor([-scale, scale], dtype=torch.float64).repeat_interleave(2 * fifth)
    x = torch.cat((x, x[-fifth:]))
    with forced(name):
        whole, parts = moments(x), moments(x[: 2 * fifth]).merge(moments(x[2 * fifth :]))
    # The mean square is scale^2, of which the mean's is (1/5)^2; over count - 1.
    var = 0.96 * len(x) / (len(x) - 1) * scale * scale if scale < 1e150 else math.inf
    for m in (whole, parts):
        assert m.mean == pytest.approx(scale / 5, rel=1e-12, abs=0)
        assert m.var == pytest.approx(max(var, LEAST), rel=1e-12, abs=0)
        assert (m.min, m.max) == (-scale, scale)
