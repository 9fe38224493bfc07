"""Moments of products in Triton, in its interpreter: measured where they are computed."""

from __future__ import annotations

import math

import pytest
import torch
from same_bits import bits
from test_triton_moments import needs_triton, normal
from torch import Tensor

from fastinit import linear_moments
from fastinit.backends.choose import backend
from fastinit.statistics.tensor import moments

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")  # numpy's


# --- products ------------------------------------------------------------------------------------


def assert_of_the_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Of the float64 product, rounded to the dtype.

    Each sum of float32 is off by a few roundings of its largest part, which is less than the product
    of magnitudes, and so are the extremes. Of many outputs the mean and the variance are off by less.
    """
    with backend("triton"):
        got = linear_moments(x, weight, bias)
    parts = [None if t is None else t.double() for t in (x, weight, bias)]
    expected = moments(torch.nn.functional.linear(*parts).to(x.dtype))
    eps = torch.finfo(x.dtype).eps
    size = torch.nn.functional.linear(*[None if t is None else t.abs() for t in parts]).max().item()
    assert got.count == expected.count
    assert got.mean == pytest.approx(expected.mean, abs=eps * expected.absmax)
    assert got.std == pytest.approx(expected.std, abs=eps * expected.absmax)
    for field in ("min", "max"):
        assert getattr(got, field) == pytest.approx(getattr(expected, field), abs=eps * size)


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "with_bias"),
    [
        (torch.float32, True),
        (torch.float32, False),
        (torch.bfloat16, True),
        (torch.float16, False),
    ],
)
def test_as_of_the_output(dtype: torch.dtype, with_bias: bool) -> None:
    x, weight = normal(3, 47, 72).to(dtype), normal(150, 72, seed=1).to(dtype)
    if with_bias:
        assert_of_the_product(x, weight, normal(150, 2, seed=2)[:, 1].to(dtype))
    else:  # nothing behind the 64th of the inner dimension; strides
        assert_of_the_product(x[..., :64].transpose(0, 1), weight[:, 8:], None)
        assert_of_the_product(x[0, 0], weight[:2].t().contiguous().t(), None)


@needs_triton
def test_float64_is_measured_in_blocks() -> None:
    x, weight = normal(8, 20), normal(7, 20, seed=1)
    with backend("triton"):
        got, expected = linear_moments(x, weight).raw, moments(x @ weight.t()).raw
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@needs_triton
def test_tiles_of_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastinit.backends.triton import product as triton_product

    x, weight = normal(70, 9).float(), normal(66, 9, seed=1).float()
    expected = triton_product.linear_moments(x, weight, None)
    monkeypatch.setattr(triton_product, "TILES", 3)  # two wide, so one tall
    torch.testing.assert_close(
        triton_product.linear_moments(x, weight, None), expected, rtol=1e-14, atol=1e-14
    )


@needs_triton
@pytest.mark.parametrize("shape", [(0, 3, 4), (4, 3, 0), (5, 0, 6)])
def test_empty_products(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    with backend("triton"):
        got = linear_moments(torch.ones(rows, inner), torch.ones(columns, inner)).raw
    assert bits(got).equal(bits(moments(torch.zeros(rows, columns)).raw))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_that_are_zero_constant_or_not_finite(dtype: torch.dtype) -> None:
    large = torch.finfo(dtype).max
    x = torch.tensor([[math.nan, 1], [large, 1], [1, 2], [0, 0], [-1, -1]], dtype=dtype)
    weight = torch.tensor([[2.0, 0], [1, 1]], dtype=dtype)
    with backend("triton"):
        got = linear_moments(x, weight)
        constant = linear_moments(torch.full((150, 3), 0.1, dtype=dtype), x[2:3, :1].expand(9, 3))
    assert (got.count, got.nonfinite, got.zeros) == (7, 3, 2)
    assert (got.min, got.max) == (-2, large)
    assert constant.var == 0.0
