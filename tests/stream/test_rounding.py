"""Another dtype: the same values, rounded; where that leaves their interval, the nearest inside it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastinit.fills.operator import fill_
from fastinit.stream import laws
from fastinit.stream.laws import Law

INF = math.inf
N = 1 << 16

LAWS = [
    *(
        laws.uniform(a, b)
        for a, b in (
            *((0.0, 1.0), (-0.1, 0.1), (0.1, 0.3), (-1.0, 0.0), (-3.0, 0.7), (1.0, 1.0 + 2.0**-20)),
            *((1.0 + 2.0**-11, 1.0 + 2.0**-10), (-1.0 - 2.0**-10, -1.0 - 2.0**-11)),  # no bfloat16
            *((0.99999, 1.0), (-1e-9, 1e-9), (1e-45, 1e-40), (0.0, 60000.0), (3.0, 3.0)),
            *((-(768**-0.5), 768**-0.5), (-(1024**-0.5), 1024**-0.5)),  # of nn.Linear
        )
    ),
    laws.normal(),
    laws.normal(0.3, 0.02),
    laws.normal(0.0, 1e-6),  # float16 has few values there
    laws.normal(0.0, 1e-42),
    laws.constant(0.1),
    laws.constant(-INF),
    *(
        laws.truncated_normal(*parameters)
        for parameters in (
            *((0.0, 1.0, -2.0, 2.0), (0.0, 0.02, -0.04, 0.04), (0.0, 0.02, -2.0, 2.0)),
            *((0.1, 0.5, -0.123, 0.7), (0.0, 1.0, 0.5, INF), (0.0, 1.0, -INF, -1.5)),
            *((0.0, 1.0, 3.0, 9.0), (0.0, 1.0, -0.01, 0.01), (2.0, 3.0, 1.0, 1.5)),
            *((0.0, 1.0, 1.0 + 2.0**-11, 1.0 + 2.0**-10), (0.0, 0.0, 1.0, 2.0)),
        )
    ),
]
HALVES = (torch.float16, torch.bfloat16)
DOUBLES = {torch.float64: torch.float32, torch.complex128: torch.complex64}


def every_value(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit dtype, in order, as float64."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype).double()
    return values[values.isfinite()].sort().values


VALUES = {dtype: every_value(dtype).numpy() for dtype in HALVES}


def held(law: Law, dtype: torch.dtype) -> np.ndarray:
    """The values of the dtype in the law's interval: [a, b), and [a, b] of a truncated normal."""
    values = VALUES[dtype]
    if law.kind == laws.UNIFORM:
        a, b = law.p0, law.p1
        return values[(a <= values) & (values < b)]
    if law.kind == laws.TRUNCATED_NORMAL:
        return values[(law.p2 <= values) & (values <= law.p3)]
    return np.array([-INF, INF])


def expected(full: Tensor, law: Law, dtype: torch.dtype) -> Tensor:
    """What float32 values are in a 16-bit dtype."""
    rounded = full.to(dtype).double()
    inside = held(law, dtype)
    if not inside.size:  # no value at all, also where a == b: the nearest to a
        a = law.p0 if law.kind == laws.UNIFORM else law.p2
        return torch.full_like(rounded, torch.tensor(a, dtype=torch.float32).to(dtype).item())
    return rounded.clamp(inside[0], inside[-1])


def drawn(law: Law, dtype: torch.dtype, n: int = N, seed: int = 1) -> Tensor:
    return fill_(torch.empty(n, dtype=dtype), law, seed=seed)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("law", LAWS)
def test_the_rounded_values_unless_that_leaves_the_interval(law: Law, dtype: torch.dtype) -> None:
    full = drawn(law, torch.float32)
    assert bool((drawn(law, dtype).double() == expected(full, law, dtype)).all())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("law", LAWS)
def test_complex_halves_part_by_part(law: Law) -> None:
    full = torch.view_as_real(drawn(law, torch.complex64, N // 2))
    half = torch.view_as_real(drawn(law, torch.complex32, N // 2)).double()
    parts = law.split_complex()
    assert bool((half[:, 0] == expected(full[:, 0], parts, torch.float16)).all())
    if law.kind != laws.CONSTANT:
        assert bool((half[:, 1] == expected(full[:, 1], parts, torch.float16)).all())


@pytest.mark.parametrize("dtype", DOUBLES)
@pytest.mark.parametrize("law", LAWS)
def test_doubles_are_the_same_numbers(law: Law, dtype: torch.dtype) -> None:
    assert drawn(law, dtype).equal(drawn(law, DOUBLES[dtype]).to(dtype))


@settings(deadline=None, max_examples=60)
@given(
    st.floats(-1000, 1000),
    st.floats(2.0**-20, 1000),
    st.sampled_from(HALVES),
    st.integers(0, 2**64 - 1),
)
def test_any_interval(a: float, width: float, dtype: torch.dtype, seed: int) -> None:
    law = laws.uniform(a, a + width)
    got, full = (drawn(law, d, 1000, seed) for d in (dtype, torch.float32))
    assert bool((got.double() == expected(full, law, dtype)).all())


# --- how many ------------------------------------------------------------------------------------

STATED = {
    "uniform on [0, 1)": laws.uniform(0.0, 1.0),
    "`nn.Linear(768, ...)` by default": laws.uniform(-(768**-0.5), 768**-0.5),
    "`nn.Linear(1024, ...)` by default": laws.uniform(-(1024**-0.5), 1024**-0.5),
    "truncated normal, std 0.02, cut at 2 std": laws.truncated_normal(0.0, 0.02, -0.04, 0.04),
    "truncated normal, std 1, cut at −2 and 2": laws.truncated_normal(0.0, 1.0, -2.0, 2.0),
    "normal": laws.normal(),
}
PAGE = Path(__file__).parents[2] / "docs" / "drop-in.md"


@pytest.mark.parametrize("name", STATED)
def test_the_shares_on_the_page_are_those_measured(name: str) -> None:
    """Of 2^20 values: a binomial count, 5 standard deviations (6e-7); and half a last digit."""
    (row,) = re.findall(
        rf"^\| {re.escape(name)} \| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE
    )
    n = 1 << 20
    full = drawn(STATED[name], torch.float32, n)
    for said, dtype in zip(row, (torch.bfloat16, torch.float16)):
        count = int((drawn(STATED[name], dtype, n) != full.to(dtype)).sum())
        share = float(said.removesuffix(" %")) / 100
        digit = 10.0 ** -len(said.removesuffix(" %").partition(".")[2]) / 100 if share else 0.0
        assert abs(count - n * share) <= 5 * math.sqrt(n * share) + n * digit / 2, (said, count / n)
