"""Laws: bounds in every dtype, kernel parameters, and the arithmetic that they come from."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fastinit.fills.operator import fill_
from fastinit.stream import kinds, laws, rounding
from fastinit.stream.laws import Law

NAN, INF = math.nan, math.inf
MILLION = 1 << 20


def drawn(law: Law, dtype: torch.dtype, n: int = MILLION, seed: int = 1) -> Tensor:
    """n values of the law in the dtype, as float64."""
    return fill_(torch.empty(n, dtype=dtype), law, seed=seed).double()


# --- bounds ----------------------------------------------------------------------------------------

UNIFORMS = [
    (0.0, 1.0),
    (-0.1, 0.1),
    (0.1, 0.3),
    (-1.0, 0.0),
    (1.0, 1.0 + 2.0**-20),
    (0.99999, 1.0),
    (-1e-9, 1e-9),
    (1e-45, 1e-40),
    (0.0, 60000.0),
    (-1e30, 1e30),
]


@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize(("a", "b"), UNIFORMS)
def test_a_uniform_value_is_in_its_interval(a: float, b: float, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and abs(b) > 65504:
        pytest.skip("beyond float16")
    values = drawn(laws.uniform(a, b), dtype)
    held = rounding.round_up(a, dtype)
    if held >= b:  # the dtype has no value in [a, b): the nearest one to a
        assert bool((values == rounding.nearest(a, dtype)).all())
        return
    assert values.min() >= a
    assert values.max() < b


@settings(max_examples=100)
@given(
    st.floats(-1000, 1000),
    st.floats(-1000, 1000),
    st.sampled_from(laws.DTYPES),
    st.integers(0, 2**64 - 1),
)
def test_any_uniform_value_is_in_its_interval(
    a: float, b: float, dtype: torch.dtype, seed: int
) -> None:
    a, b = min(a, b), max(a, b)
    if rounding.round_up(a, dtype) < b:
        values = drawn(laws.uniform(a, b), dtype, 2000, seed)
        assert a <= values.min()
        assert values.max() < b


@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize("a", [0.0, -0.1, 3.0, 1e-30])
def test_an_interval_of_one_value(a: float, dtype: torch.dtype) -> None:
    value = torch.tensor(a, dtype=torch.float32).to(dtype).item()
    for law in (laws.uniform(a, a), laws.truncated_normal(0, 1, a, a), laws.constant(a)):
        assert bool((drawn(law, dtype, 1000) == value).all())
    assert bool((drawn(laws.normal(a, 0.0), dtype, 1000) == value).all())


TRUNCATED = [
    (0.0, 1.0, -2.0, 2.0),
    (0.0, 1.0, -1.0, 1.3),
    (0.0, 0.02, -0.04, 0.04),
    (0.1, 0.5, -0.123, 0.7),
    (0.0, 1.0, 0.5, INF),
    (0.0, 1.0, -INF, -1.5),
    (0.0, 1.0, 3.0, 9.0),
    (0.0, 1.0, -5.1, -4.9),
    (0.0, 1.0, -0.01, 0.01),
    (2.0, 3.0, 1.0, 1.5),
]


@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize("parameters", TRUNCATED)
def test_a_truncated_normal_value_is_in_its_window(
    parameters: tuple[float, float, float, float], dtype: torch.dtype
) -> None:
    """And neither bound has more than the mass that rounds to it.

    That mass is of all reals between the middle of the last two values of the dtype and the bound. The
    count is binomial; 6 standard deviations (and one value) is a level of 2e-9.
    """
    mean, std, a, b = parameters
    values = drawn(laws.truncated_normal(*parameters), dtype)
    assert a <= values.min()
    assert values.max() <= b
    law = stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)
    for bound, inner in ((a, 1), (b, -1)):
        if math.isinf(bound):
            continue
        last = rounding.round_up(bound, dtype) if inner == 1 else rounding.round_down(bound, dtype)
        middle = (last + rounding.neighbour(last, dtype, inner)) / 2
        mass = abs(law.cdf(middle) - law.cdf(bound))
        # Float32 arithmetic puts a value up to 1e-6 max(1, |z|) off: in float32 several ulps.
        mass += law.pdf(bound) * 1e-6 * max(std, abs(bound - mean))
        count = int((values == last).sum())
        expected = MILLION * mass
        assert count <= expected + 6 * math.sqrt(expected) + 1


@pytest.mark.parametrize("bound", [8.0, 100.0, 1e6, 1e30, INF])
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_far_bounds_give_the_plain_normal(bound: float, dtype: torch.dtype) -> None:
    """Largest |z| about 6.4, never a value at a far bound; Kolmogorov-Smirnov, level 1e-6."""
    values = drawn(laws.truncated_normal(0.0, 1.0, -bound, bound), dtype)
    assert values.abs().max() < 6.5
    if dtype == torch.float32:
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("parameters", TRUNCATED)
def test_truncated_normals_follow_their_law(
    parameters: tuple[float, float, float, float],
) -> None:
    """Kolmogorov-Smirnov on 2^17 values, level 1e-6, seed 1 (more of them: test_distribution.py)."""
    mean, std, a, b = parameters
    values = drawn(laws.truncated_normal(*parameters), torch.float32, 1 << 17).numpy()
    law = stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)
    assert stats.kstest(values, law.cdf).pvalue > 1e-6


def test_uniforms_and_normals_follow_their_law() -> None:
    """Kolmogorov-Smirnov on 2^20 values, level 1e-6, seed 1."""
    uniform = drawn(laws.uniform(-0.1, 0.3), torch.float32).numpy()
    assert stats.kstest(uniform, stats.uniform(-0.1, 0.4).cdf).pvalue > 1e-6
    normal = drawn(laws.normal(1.0, 0.5), torch.float32).numpy()
    assert stats.kstest(normal, stats.norm(1.0, 0.5).cdf).pvalue > 1e-6


@pytest.mark.parametrize(
    ("law", "location"),
    [
        (laws.uniform(-1.0, 2.0), None),
        (laws.normal(0.5, 2.0), None),
        (laws.truncated_normal(*TRUNCATED[3]), 0.1),
    ],
)
def test_a_complex_value_has_the_laws_variance(law: Law, location: float | None) -> None:
    """Each part has half the variance and the real mean; a truncated normal shrinks about its location.

    6 standard errors, a level of 2e-9 each.
    """
    real = drawn(law, torch.float32)
    mean, std = real.mean().item(), real.std().item()
    if location is not None:
        mean = location + math.sqrt(0.5) * (mean - location)
    tensor = fill_(torch.empty(MILLION, dtype=torch.complex64), law, seed=2)
    z = torch.view_as_real(tensor).double()
    assert z.mean((0, 1)).item() == pytest.approx(mean, abs=6 * std / math.sqrt(MILLION))
    # A variance's relative standard error is at most sqrt(2 / n), the normal's; there are two here.
    assert z.var(0).sum().item() == pytest.approx(std**2, rel=12 * math.sqrt(2 / MILLION))
    assert abs(torch.corrcoef(z.t())[0, 1].item()) < 6 / math.sqrt(MILLION)


# --- what is refused -----------------------------------------------------------------------------

REFUSED = [
    (laws.uniform, (1.0, 0.0), RuntimeError, "a=1.0, b=0.0"),
    (laws.uniform, (0.5, -0.5), RuntimeError, "a=0.5, b=-0.5"),
    (laws.uniform, (NAN, 1.0), RuntimeError, "a=nan"),
    (laws.uniform, (0.0, NAN), RuntimeError, "b=nan"),
    (laws.uniform, (-INF, 0.0), RuntimeError, "a=-inf"),
    (laws.uniform, (0.0, INF), RuntimeError, "b=inf"),
    (laws.uniform, (-3e38, 3e38), RuntimeError, r"b=3e\+38"),
    (laws.uniform, (0.0, 1e39), RuntimeError, r"b=1e\+39"),
    (laws.uniform, ("x", 1.0), TypeError, "a must be a number, but got 'x'"),
    (laws.uniform, (0.0, None), TypeError, "b must be a number, but got None"),
    (laws.normal, (0.0, -1.0), RuntimeError, "std=-1.0"),
    (laws.normal, (0.0, NAN), RuntimeError, "std=nan"),
    (laws.normal, (0.0, INF), RuntimeError, "std=inf"),
    (laws.normal, (0.0, 1e39), RuntimeError, r"std=1e\+39"),
    (laws.normal, (NAN, 1.0), RuntimeError, "mean=nan"),
    (laws.normal, (INF, 1.0), RuntimeError, "mean=inf"),
    (laws.normal, (-1e39, 1.0), RuntimeError, r"mean=-1e\+39"),
    (laws.normal, (1j, 1.0), TypeError, "mean must be a number"),
    (laws.truncated_normal, (0.0, -1.0), RuntimeError, "std=-1.0"),
    (laws.truncated_normal, (0.0, NAN), RuntimeError, "std=nan"),
    (laws.truncated_normal, (NAN, 1.0), RuntimeError, "mean=nan"),
    (laws.truncated_normal, (0.0, 1.0, 2.0, -2.0), RuntimeError, "a=2.0, b=-2.0"),
    (laws.truncated_normal, (0.0, 1.0, NAN, 2.0), RuntimeError, "a=nan"),
    (laws.truncated_normal, (0.0, 1.0, -2.0, NAN), RuntimeError, "b=nan"),
    (laws.truncated_normal, (0.0, 1.0, INF, INF), RuntimeError, "a=inf"),
    (laws.truncated_normal, (0.0, 1.0, -INF, -INF), RuntimeError, "b=-inf"),
    (laws.truncated_normal, (0.0, 1.0, 9.0, 10.0), RuntimeError, r"a=9.0, b=10.0 \(9.0 away\)"),
    (laws.truncated_normal, (0.0, 0.1, -5.0, -1.0), RuntimeError, r"std=0.1.*\(10.0 away\)"),
    (laws.truncated_normal, (0.0, 1.0, "x", 1.0), TypeError, "a must be a number"),
    (laws.constant, ("x",), TypeError, "value must be a number, but got 'x'"),
]


@pytest.mark.parametrize(("law", "arguments", "error", "message"), REFUSED)
def test_refused(
    law: type[Law], arguments: tuple[float, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        law(*arguments)


def test_numbers_of_other_types() -> None:
    assert laws.uniform(np.float32(0), torch.tensor(2)) == laws.uniform(0.0, 2.0)
    assert all(type(p) is float for p in laws.normal(0, np.int64(3))[1:3])


def test_names_and_parameters() -> None:
    assert laws.uniform(1, 2).name == "uniform"
    assert laws.uniform(1, 2).parameters == {"a": 1, "b": 2}
    assert laws.normal(1, 2).parameters == {"mean": 1, "std": 2}
    truncated = laws.truncated_normal(1, 2, 0, 3)
    assert truncated.parameters == {"mean": 1, "std": 2, "a": 0, "b": 3}
    assert laws.constant(4).parameters == {"value": 4}


# --- kernel parameters -----------------------------------------------------------------------------

ALL_LAWS = [
    *(laws.uniform(a, b) for a, b in UNIFORMS),
    laws.normal(0.1, 0.3),
    laws.normal(0.0, 1e-50),
    laws.constant(0.1),
    *(laws.truncated_normal(*p) for p in TRUNCATED),
    laws.truncated_normal(0.0, 1.0, 8.9, 1e30),
    laws.truncated_normal(0.0, 1e-300, -2.0, 2.0),
    laws.truncated_normal(3e38, 3e38, -3e38, 3e38),
    laws.truncated_normal(0.0, 0.0, 1.0, 2.0),
]


@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize("law", ALL_LAWS)
def test_kernel_parameters_are_float32_and_the_interval_is_not_empty(
    law: Law, dtype: torch.dtype
) -> None:
    if dtype == torch.float16 and law.kind == laws.UNIFORM and abs(law.p1) > 65504:
        pytest.skip("beyond float16")
    params = laws.kernel_params(law, dtype)
    for name, value in params._asdict().items():
        assert not math.isnan(value), name
        assert rounding.float32(value) == value, name
    assert params.lo <= params.hi
    if law.kind == laws.TRUNCATED_NORMAL:  # probabilities within (0, 1) at both ends of the words
        assert min(params.t_below, params.t_above) > 0
        assert params.t_mul >= 0


@pytest.mark.parametrize("x", [0.0, 1e-9, 0.5, 1.0, 2.0, 3.7, 5.0, 8.9, 12.5, 20.0, 30.0, 37.9])
def test_normal_tail(x: float) -> None:
    """Correctly rounded: half an ulp against 60 digits of mpmath; and scipy's to its own 1e-14."""
    with mpmath.workdps(60):
        for y in (x, -x):
            exact = mpmath.erfc(mpmath.mpf(y) / mpmath.sqrt(2)) / 2
            got = kinds.normal_tail(y)
            assert abs(mpmath.mpf(got) - exact) <= mpmath.mpf(math.ulp(got)) / 2
            assert got == pytest.approx(stats.norm.sf(y), rel=1e-14)


def test_normal_tail_at_the_ends() -> None:
    assert (kinds.normal_tail(INF), kinds.normal_tail(-INF)) == (0.0, 1.0)
    assert (kinds.normal_tail(39.0), kinds.normal_tail(-39.0)) == (0.0, 1.0)


# --- rounding to a dtype -----------------------------------------------------------------------------

HELD = (torch.float32, torch.float16, torch.bfloat16)
SOME = st.one_of(
    st.floats(-60000, 60000),
    st.floats(-1e-3, 1e-3),
    st.sampled_from(
        [0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-133, 1e-46, -1e-46, 1.0, -1.0, 65504.0]
    ),
)


def values_of(dtype: torch.dtype) -> list[float]:
    """Every finite value of a 16-bit dtype in order, zero once."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).double()
    return sorted({v + 0.0 for v in every[every.isfinite()].tolist()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_neighbours_are_the_neighbours(dtype: torch.dtype) -> None:
    values = values_of(dtype)
    places = [
        *range(1, 40),
        *range(1, len(values) - 1, 97),
        *range(len(values) - 40, len(values) - 1),
    ]
    zero = values.index(0.0)
    for i in (*places, *range(zero - 3, zero + 4)):
        assert rounding.neighbour(values[i], dtype, 1) == values[i + 1]
        assert rounding.neighbour(values[i], dtype, -1) == values[i - 1]
        assert rounding.below(values[i], dtype) == values[i - 1]
        assert (
            rounding.round_up(values[i], dtype)
            == rounding.round_down(values[i], dtype)
            == values[i]
        )
        between = (values[i] + values[i + 1]) / 2
        assert rounding.round_up(between, dtype) == values[i + 1]
        assert rounding.round_down(between, dtype) == rounding.below(between, dtype) == values[i]


@settings(max_examples=300)
@given(SOME, st.sampled_from(laws.DTYPES))
def test_rounding_up_and_down(value: float, dtype: torch.dtype) -> None:
    held = torch.float32 if dtype == torch.float64 else dtype
    up, down = rounding.round_up(value, dtype), rounding.round_down(value, dtype)
    under, near = rounding.below(value, dtype), rounding.nearest(value, dtype)
    assert under < value <= up
    assert down <= value
    assert near in (up, down)
    for number in (up, down, under, near):
        assert torch.tensor(number, dtype=torch.float64).to(held).item() == number
    if up != down:
        assert rounding.neighbour(down, dtype, 1) == up
        middle = (Fraction(up) + Fraction(down)) / 2
        # To float32 first, as every value is: that may make a tie of what is not one.
        single = Fraction(rounding.float32(value))
        assert near == (up if single > middle else down) or single == middle
    elif value != 0:
        assert rounding.neighbour(under, dtype, 1) == value
