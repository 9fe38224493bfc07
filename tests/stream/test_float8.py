"""The 8-bit dtypes: how float32 is rounded to them, on every path there is."""

from __future__ import annotations

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from same_bits import ISAS, TRITON, bits, forced
from torch import Tensor

import fastinit
from fastinit import Fill, Plan, init
from fastinit.backends.choose import native
from fastinit.fills.operator import fill_
from fastinit.stream import laws
from fastinit.stream.kinds import Params
from fastinit.stream.rounding import FLOAT8, below, round_down, round_up

NUMPY = {
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}
NORMALS = 10_000_000


def saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What torch and ml_dtypes make of float32 values that are kept within the dtype's range first."""
    limit = torch.finfo(dtype).max
    values = values.clamp(-limit, limit)
    by_torch = values.to(dtype)
    with np.errstate(invalid="ignore"):  # of NaN
        numbers = values.flatten().numpy().astype(NUMPY[dtype])
    known = ~values.flatten().isnan()  # of which each has bits of its own
    assert bits(by_torch)[known].equal(torch.from_numpy(numbers.view(np.uint8))[known])
    return by_torch


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", FLOAT8)
def test_every_half_value(dtype: torch.dtype, half: torch.dtype) -> None:
    """As a constant: each of the 2^16, but those that the dtype does not reach, which are refused."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(half).float()
    limit = torch.finfo(dtype).max
    inside = values[~(values.abs() > limit)]  # NaN too
    got = torch.empty(len(inside), dtype=dtype)
    assert native.module is not None
    for i, value in enumerate(inside.tolist()):  # as fill_ does, in a tenth of the time
        law = native.module.PreparedLaw(laws.CONSTANT, laws.WRITTEN.index(dtype), Params(add=value))
        native.module.fill_contiguous(law, got.data_ptr() + i, 1, 0, 0, 1)
    expected = saturated(inside, dtype)
    nan = inside.isnan()
    assert got[nan].float().isnan().all()
    assert bits(got[~nan]).equal(bits(expected[~nan]))
    for value in (limit * 1.001, -limit * 1.001, float("inf")):
        with pytest.raises(ValueError, match="constant_ expects a value within"):
            fill_(torch.empty(1, dtype=dtype), laws.constant(value), seed=0)


# Deep in the subnormals, around the least normal number, most of the range, and all beyond it.
STDS = (1e-6, 3e-3, 1.0, 300.0, 1e38)


@pytest.mark.parametrize("build", ISAS)
@pytest.mark.parametrize("dtype", FLOAT8)
def test_normals_are_rounded_as_by_torch_and_ml_dtypes(dtype: torch.dtype, build: str) -> None:
    n = NORMALS // (len(STDS) * len(FLOAT8))
    for std in STDS:
        law = laws.normal(0.0, std)
        with forced(build):
            wide, got = torch.empty(n), torch.empty(n, dtype=dtype)
            fill_(wide, law, seed=5)
            fill_(got, law, seed=5)
        assert bits(got).equal(bits(saturated(wide, dtype))), std


def finite_values(dtype: torch.dtype) -> Tensor:
    """All that there are, float32, ascending."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return values[values.isfinite()].unique()


@pytest.mark.parametrize("build", ISAS)
@pytest.mark.parametrize("dtype", FLOAT8)
def test_every_value_and_every_tie_is_rounded_where_values_are_drawn(
    dtype: torch.dtype, build: str
) -> None:
    """As normal numbers without a spread: constants are converted once, by another text."""
    finite = finite_values(dtype)
    middles = (finite[1:] + finite[:-1]) / 2
    wanted = torch.cat((finite, middles, middles.nextafter(finite[1:]), finite * 1.03)) + 0.0
    got = torch.empty(len(wanted), 40, dtype=dtype)
    with forced(build):
        for row, value in zip(got, wanted.tolist()):
            fill_(row, laws.normal(value, 0.0), seed=0)
    assert bits(got).equal(bits(saturated(wanted[:, None].expand(-1, 40).contiguous(), dtype)))


# Any number, powers of two, and such that quotients are denormal, or infinite but for saturation.
SCALES = (0.3, 2.0**-6, 448.0, 3e38, 2.0**-126)


@pytest.mark.parametrize("build", ["reference", *ISAS, *TRITON])
def test_a_scale_divides_exactly(build: str) -> None:
    n = 3000
    for dtype, scale in itertools.product(FLOAT8, SCALES):
        with forced(build):
            wide = init.normal_(torch.empty(n), 0.1, 2.0, seed=1)
            got = init.normal_(torch.empty(n, dtype=dtype), 0.1, 2.0, seed=1, scale=scale)
        quotients = wide / torch.full_like(wide, scale)
        assert bits(got).equal(bits(saturated(quotients, dtype))), (dtype, scale)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_what_is_stored_times_the_scale_is_in_the_law_s_interval(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    for scale in (0.011, 0.37, 0.5, 12.0):
        a, b = -3.0, 4.0
        held = Fraction(float(torch.tensor(scale)))
        for write in (init.uniform_, init.trunc_normal_):
            got = torch.empty(20_000, dtype=dtype)
            if max(-a, b) / scale > most and write is init.uniform_:
                with pytest.raises(ValueError, match=r"bounds within .*scale="):
                    write(got, a=a, b=b, seed=0, scale=scale)
                continue
            values = [
                Fraction(v) * held
                for v in write(got, a=a, b=b, seed=0, scale=scale).float().unique().tolist()
            ]
            assert a <= min(values)
            assert max(values) < b or (write is not init.uniform_ and max(values) == b)
            finite = [Fraction(v) * held for v in finite_values(dtype).tolist()]
            assert min(values) == min(v for v in finite if v >= a)  # and none is left out
    got = fill_(torch.empty(3, dtype=dtype), laws.scaled(laws.constant(1.0), 0.3), seed=0)
    assert bits(got).equal(bits(saturated(torch.ones(3) / torch.full((3,), 0.3), dtype)))
    with pytest.raises(ValueError, match=r"constant_ expects a value within .*scale="):
        fill_(got, laws.scaled(laws.constant(most), 0.3), seed=0)


def test_scales_are_for_8_bits_and_nothing_is_written_otherwise() -> None:
    for dtype in (*laws.DTYPES, torch.complex64, torch.int8):
        tensor = torch.zeros(4, dtype=dtype)
        state = torch.get_rng_state()
        for target in (tensor, tensor.to("meta")):
            with pytest.raises(ValueError, match=f"scale is for float8 .* {dtype}"):
                init.kaiming_normal_(target, fan=(1, 1), scale=2.0)
        with pytest.raises((ValueError, NotImplementedError)):
            fill_(tensor, laws.scaled(laws.normal(), 2.0))
        assert not tensor.any()
        assert torch.get_rng_state().equal(state)


def test_a_constructor_with_a_scale_is_refused() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            held = torch.empty(30, 20, dtype=torch.float8_e4m3fn)
            self.weight = torch.nn.Parameter(init.normal_(held, scale=0.01), requires_grad=False)

    refused = pytest.raises(fastinit.DeferredError, match=r"scale= at .*test_float8.py:\d+")
    with refused, fastinit.deferred(seed=0):
        Scaled()


@pytest.mark.parametrize("dtype", FLOAT8)
def test_neighbours_are_those_of_the_table_of_all_values(dtype: torch.dtype) -> None:
    finite = finite_values(dtype).tolist()
    for low, high in itertools.pairwise(finite):
        middle = (low + high) / 2 + (high - low) / 7
        assert (round_up(middle, dtype), round_down(middle, dtype)) == (high, low)
        assert round_up(high, dtype) == round_down(high, dtype) == high
        assert below(high, dtype) == low
    most = finite[-1]
    assert round_up(most * 1.5, dtype) == float("inf")
    assert round_down(-most * 1.5, dtype) == -float("inf")
    assert (round_down(most * 1.5, dtype), round_up(-most * 1.5, dtype)) == (most, -most)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_plans_and_init_write_them(dtype: torch.dtype) -> None:
    plan = Plan({"weight": Fill.normal(std=0.5), "bias": Fill.uniform(-1.0, 1.0)}, seed=3)
    model = torch.nn.Linear(300, 200, dtype=dtype, device="meta")
    plan.apply_(model, device="cpu")
    weight = init.normal_(torch.empty(200, 300), std=0.5, seed=3, name="weight")
    assert bits(model.weight).equal(bits(saturated(weight, dtype)))
    fans = init.kaiming_normal_(torch.empty(200, 300, dtype=dtype), seed=3, name="w")
    wide = init.kaiming_normal_(torch.empty(200, 300), seed=3, name="w")
    assert bits(fans).equal(bits(saturated(wide, dtype)))


@pytest.mark.parametrize("dtype", FLOAT8)
def test_what_torch_computes_is_saturated_too(dtype: torch.dtype) -> None:
    """Structures, steps behind a law, and what a constructor computed."""

    class Computed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = torch.nn.Parameter(
                torch.randn(20, 30).mul_(1e9).add_(1.0).clamp_(min=-2e9)
            )
            self.computed = torch.nn.Parameter(torch.randn(20, 30).exp() * 1e9)

    most = torch.finfo(dtype).max
    with fastinit.deferred(seed=0):
        model = Computed()
    fastinit.materialize_(model, dtype=dtype)
    assert set(model.steps.float().abs().flatten().tolist()) == {most}
    assert set(model.computed.float().flatten().tolist()) == {most}
    for write in (init.orthogonal_, init.delta_orthogonal_, init.sparse_):
        shape = (20, 16, 3) if write is init.delta_orthogonal_ else (20, 16)
        argument = {"sparsity": 0.3, "std": 1e6} if write is init.sparse_ else {"gain": 1e6}
        held, wide = torch.empty(shape, dtype=dtype), torch.empty(shape)
        for tensor in held, wide:
            write(tensor, **argument, seed=1, name="w")  # type: ignore[operator]
        assert bits(held).equal(bits(saturated(wide, dtype))), write.__name__


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("scale", [2.0**-9, 4.0])
def test_functions_with_a_factor_need_no_scale(dtype: torch.dtype, scale: float) -> None:
    key = {"seed": 3, "name": "w"}
    normal = {"distribution": "normal", **key}
    for write in (
        lambda t, s: init.orthogonal_(t, gain=1.7 / s, **key),
        lambda t, s: init.sparse_(t, 0.3, std=0.02 / s, **key),
        lambda t, s: init.variance_scaling_(t, scale=0.5 / s**2, **normal),
    ):
        full = write(torch.empty(24, 16), 1.0)
        have = write(torch.empty(24, 16, dtype=dtype), scale)
        assert bits(have).equal(bits(saturated(full / scale, dtype)))
