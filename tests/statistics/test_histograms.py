"""Histograms of exponents, and the quantiles that are read from them."""

from __future__ import annotations

import math

import pytest
import torch
from same_bits import forced
from test_counts import EVERYWHERE, VALUES

from fastinit.statistics.tensor import moments


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize("values", VALUES)
def test_a_histogram_has_each_exponent(values: str, backend: str) -> None:
    x = VALUES[values]()
    with forced(backend):
        histogram = moments(x, histogram=True).histogram
    assert histogram is not None
    size = x.double().abs().flatten()
    size = size[size.isfinite() & (size > 0)]
    bins = (torch.frexp(size).exponent - 1).clamp(min=-127) + 127
    assert histogram.counts.equal(torch.bincount(bins.long(), minlength=255))
    assert histogram.zeros == (x == 0).sum()


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_float64_beyond_float32(backend: str) -> None:
    tiny, huge = [1e-300, 1e-46], [3.5e38, 1e300, 2.0**127 * 1.99999999999]
    x = torch.tensor([*tiny, *huge, 0.0, 1.9999999999999], dtype=torch.float64)
    with forced(backend):
        m = moments(x, formats=["float16", "bfloat16", "mxfp8"], histogram=True)
    # What float32 holds may be infinite in bfloat16, and 1.99... is 2 there, but its bin is that of 1.
    assert m.formats["bfloat16"].plain() == {"flushed": 2 / 7, "saturated": 3 / 7, "subnormal": 0}
    assert m.formats["float16"].saturated == 3 / 7
    assert m.histogram is not None
    assert m.histogram.plain() == {"-127": 2, "0": 1, "127": 3}


QUANTILES = (0.0, 1e-3, 0.25, 0.5, 0.9, 0.999, 1.0)


@pytest.mark.parametrize("values", VALUES)
def test_a_quantile_is_within_its_bounds(values: str) -> None:
    x = VALUES[values]()
    size = x.double().abs().flatten()
    size = size[size.isfinite()].sort().values
    histogram = moments(x, histogram=True).histogram
    assert histogram is not None
    for q in QUANTILES:
        exact = size[max(math.ceil(q * len(size)), 1) - 1].item()
        low, high = histogram.bounds(q)
        assert low <= exact <= high
        got = histogram.quantile(q)
        assert low <= got <= high
        assert got == 0 if exact == 0 else exact < 2.0**-126 or 0.5 <= got / exact <= 2


def test_a_quantile_of_an_even_spread_is_exact_to_a_percent() -> None:
    x = torch.exp2(torch.linspace(-3, 5, 100_001))  # what the interpolation takes for granted
    histogram = moments(x, histogram=True).histogram
    assert histogram is not None
    for q in (0.1, 0.5, 0.77):
        assert histogram.quantile(q) == pytest.approx(2.0 ** (-3 + 8 * q), rel=0.01)


def test_nothing_has_no_quantile_and_no_shares() -> None:
    m = moments(torch.empty(0), formats=["mxfp8"], histogram=True)
    assert m.histogram is not None
    assert math.isnan(m.histogram.quantile(0.5))
    assert math.isnan(m.formats["mxfp8"].flushed)


@pytest.mark.parametrize("q", [-0.1, 1.5, math.nan, "0.5", True])
def test_a_quantile_is_of_a_share(q: object) -> None:
    histogram = moments(torch.ones(3), histogram=True).histogram
    assert histogram is not None
    with pytest.raises(ValueError, match="q must be"):
        histogram.quantile(q)  # type: ignore[arg-type]
