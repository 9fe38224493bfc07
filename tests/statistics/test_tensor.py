"""Moments: accuracy against exact arithmetic, every dtype and layout, bits that do not change."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch
import warm
from hypothesis import given
from hypothesis import strategies as st
from same_bits import ISAS, forced
from torch import Tensor

from fastinit.statistics.tensor import Moments, moments, moments_many
from fastinit.stream import laws

NIST = sorted((Path(__file__).parents[1] / "vectors" / "nist").glob("*.txt"))
EVERYWHERE = (*ISAS, "reference")


def exact(x: Tensor) -> tuple[Fraction, Fraction, Fraction]:
    """(count, mean, sum of squared distances) of the finite values, in rational arithmetic."""
    values = [Fraction(v) for v in x.double().flatten().tolist() if math.isfinite(v)]
    mean = sum(values, Fraction(0)) / max(len(values), 1)
    return Fraction(len(values)), mean, sum(((v - mean) ** 2 for v in values), Fraction(0))


def digits(got: float | Tensor, expected: Fraction) -> float:
    """Decimal digits on which they agree: minus the logarithm of the relative error."""
    if expected == 0:
        return math.inf if got == 0 else 0.0
    error = abs(Fraction(float(got)) / expected - 1)
    return math.inf if error == 0 else -math.log10(error)


@cache
def nist(path: Path) -> tuple[Tensor, tuple[Fraction, Fraction, Fraction]]:
    text = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    x = torch.tensor([float(line) for line in text], dtype=torch.float32)
    return x, exact(x)


@pytest.mark.parametrize("repeated", [1, 40])  # 40 times is past what is summed one by one
@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("path", NIST, ids=lambda path: path.stem)
def test_nist_data_to_twelve_digits(path: Path, name: str, repeated: int) -> None:
    x, (count, mean, m2) = nist(path)
    with forced(name):
        m = moments(x.repeat(repeated))
    assert m.count == repeated * count
    assert digits(m.mean, mean) >= 12
    assert digits(m.var, repeated * m2 / (repeated * count - 1)) >= 12


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("value", [0.0, 1e7, 0.1, -3e38, 1e-40])
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_a_constant_has_no_variance(value: float, dtype: torch.dtype, name: str) -> None:
    if dtype is torch.float16 and abs(value) > 65504:
        value = -65504.0
    x = torch.full((100_001,), value, dtype=dtype)
    with forced(name):
        m = moments(x)
    assert m.var == 0.0
    assert m.mean == m.min == m.max == x[0].item()
    assert m.absmax == abs(x[0].item())
    assert m.zeros == (x == 0).sum()


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same memory in several shapes; x is 4-D."""
    return {
        "contiguous": x,
        "transposed": x.transpose(0, 3),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "sliced": x[:, 1:, ::2, 1:],
        "expanded": x[:, :1].expand(-1, 3, -1, -1),
        "scalar": x[0, 0, 0, 0],
        "a row": x[1, 2, 3],
    }


@pytest.mark.parametrize("layout", layouts(torch.empty(2, 3, 4, 5)))
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_every_dtype_and_layout(dtype: torch.dtype, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 33, 40, 11, generator=generator).mul_(2).add_(0.5).to(dtype)
    x[::3, 0, 0] = 0
    x[0, 1, 2, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    view = layouts(x)[layout]
    values = view.double()
    finite = values[values.isfinite()]
    # float32 sums of up to 32 values of 16-bit types, each addition rounded to 2^-24.
    tolerance = 1e-12 if dtype.itemsize > 2 else 32 * 2.0**-24
    for name in EVERYWHERE:
        with forced(name):
            m = moments(view, correction=0)
        assert (m.count, m.nonfinite) == (len(finite), values.numel() - len(finite))
        assert m.zeros == (finite == 0).sum()
        assert (m.min, m.max) == (finite.min().item(), finite.max().item())
        assert m.absmax == finite.abs().max().item()
        spread = finite.std(correction=0).item()
        assert m.mean == pytest.approx(finite.mean().item(), abs=tolerance * (1 + spread))
        assert m.std == pytest.approx(spread, rel=tolerance, abs=0)


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
@pytest.mark.parametrize(
    "layout", [k for k in layouts(torch.empty(2, 3, 4, 5)) if k[0] not in "as"]
)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_channels_are_measured_as_if_alone(dtype: torch.dtype, layout: str, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 70, 6, 5, generator=generator).mul_(2).to(dtype)
    x[0, :, 1, 2], x[1, 1, 1, 1] = 0, math.nan
    view = layouts(x)[layout]
    expected = [moments(part) for part in view.unbind(dim)]
    tolerance = 1e-12 if dtype.itemsize > 2 else 32 * 2.0**-24
    for name in EVERYWHERE:
        with forced(name):
            m = moments(view, dim=dim)
        for field in ("count", "zeros", "nonfinite", "min", "max", "absmax"):
            alone = torch.tensor([getattr(e, field) for e in expected], dtype=torch.float64)
            assert getattr(m, field).equal(alone), field
        for field in ("mean", "var"):
            alone = torch.tensor([getattr(e, field) for e in expected], dtype=torch.float64)
            torch.testing.assert_close(getattr(m, field), alone, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_fork_has_threads_although_torch_has_lost_its() -> None:
    x = torch.randn(1_000_000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x.mul(2)  # which starts torch's
        expected = moments(x).raw.tolist()
        if (child := os.fork()) == 0:
            os._exit(moments(x).raw.tolist() != expected)
    finally:
        torch.set_num_threads(before)
    ended, waited = (0, 0), 0.0
    while not ended[0] and waited < 30:
        time.sleep(0.01)
        ended, waited = os.waitpid(child, os.WNOHANG), waited + 0.01
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_the_bits_are_those_of_one_thread_on_any_build(dtype: torch.dtype) -> None:
    x = torch.randn(1_500_007).to(dtype)
    columns = x[: 1_500_000 // 60 * 60].view(-1, 60)
    results = set()
    for name in ISAS:
        for threads in (1, 2, 5):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                with forced(name):
                    raws = [moments(x).raw, moments(columns, dim=1).raw]
            finally:
                torch.set_num_threads(before)
            results.add(tuple(tuple(raw.view(torch.int64).flatten().tolist()) for raw in raws))
    assert len(results) == 1


@given(st.lists(st.floats(width=32), max_size=200), st.integers(0, 200))
def test_any_values_against_exact_arithmetic_and_merged(values: list[float], cut: int) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    count, mean, m2 = exact(x)
    size = max((abs(v) for v in x.double().tolist() if math.isfinite(v)), default=0.0)
    whole, parts = moments(x), moments(x[:cut]).merge(moments(x[cut:]))
    for m in (whole, parts):
        assert (m.count, m.nonfinite) == (count, len(values) - count)
        if count:
            assert m.mean == pytest.approx(float(mean), rel=1e-13, abs=1e-13 * size)
        else:
            assert math.isnan(m.mean)
            assert (m.min, m.max) == (math.inf, -math.inf)
        if count > 1:
            # Rounding of the mean shifts each distance by 1e-16 of the largest value.
            tolerance = 1e-12 * float(m2) / (float(count) - 1) + 1e-14 * size * size
            assert m.var == pytest.approx(float(m2 / (count - 1)), abs=tolerance)
        else:
            assert math.isnan(m.var)


def test_many_at_once_are_each_alone() -> None:
    xs = [torch.randn(n, 3) for n in (0, 1, 100, 40_000)] + [torch.randn(5).bfloat16()]
    for alone, together in zip(map(moments, xs), moments_many(xs)):
        assert alone.raw.equal(together.raw)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_no_channels_and_no_tensors(name: str) -> None:
    with forced(name):
        assert moments(torch.zeros(3, 0), dim=1).raw.shape == (0, 7)
        assert moments_many([]) == []


def test_correction_is_torch_s() -> None:
    x = torch.randn(1000, dtype=torch.float64)
    for correction in (0, 1, 1.5):
        expected = x.var(correction=correction).item()
        assert moments(x, correction).var == pytest.approx(expected, rel=1e-12)


def test_dead_and_broken_values_are_counted() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, math.nan, math.inf])
    m = moments(x)
    assert (m.count, m.zeros, m.nonfinite, m.min, m.max) == (3, 2, 2, 0.0, 1.0)
    assert "count=3" in repr(m)
    assert repr(moments(torch.zeros(4, 2), dim=1)) == "ChannelMoments(2 channels)"


def test_a_large_tensor_costs_no_memory() -> None:
    code = """
import resource, torch, fastinit
x = torch.zeros(1 << 25)  # 128 MiB
fastinit.moments(x[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fastinit.moments(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = warm.run(code)
    assert int(done.stdout) < 1024, done.stderr  # KiB


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: moments([1.0]), TypeError, "x must be .* but got list"),
        (lambda: moments(torch.zeros(3, dtype=torch.int64)), TypeError, r"but got torch\.int64"),
        (lambda: moments(torch.zeros(3, dtype=torch.complex64)), TypeError, "complex64"),
        (lambda: moments(torch.zeros(3, device="meta")), ValueError, "number 0. is on meta"),
        (lambda: moments(torch.zeros(3).to_sparse()), NotImplementedError, "layout"),
        (lambda: moments(torch.zeros(3, 2), dim=2), IndexError, "range"),
        (
            lambda: moments(torch.zeros(3)).merge(moments(torch.zeros(3, 2), dim=1)),
            ValueError,
            r"others must have moments of shape \(7,\), but got \(2, 7\)",
        ),
    ],
)
def test_bad_input(call: Callable[[], Moments], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
