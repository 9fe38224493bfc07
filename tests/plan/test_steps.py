"""Steps after a law and ramps: torch's functions on every value, their moments, and refusals."""

import math
from dataclasses import replace

import pytest
import torch
from test_fills import DT, one, written

from fastinit import Fill, Plan
from fastinit.plan import values
from fastinit.plan.steps import STEPS, image, step, steps_of

# Numbers for the steps, and the law that they come after.
ARGUMENTS = {
    "add": (-1.5,),
    "clamp_max": (0.7,),
    "clamp_min": (0.7,),
    "div": (3.0,),
    "mul": (-2.0,),
    "pow": (1.5,),
    "remainder": (0.3,),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_torchs_function_on_every_value(name: str) -> None:
    """In float64, rounded once: torch's own value rounded, or its neighbour if that is a tie."""
    law, arguments = Fill.uniform(0.25, 2.0), ARGUMENTS.get(name, ())
    drawn = written(law, (500,)).double()
    if name == "inverse_softplus":
        expected = drawn + torch.log(-torch.expm1(-drawn))
    else:
        expected = getattr(torch, name, getattr(torch.nn.functional, name, None))(drawn, *arguments)
    made = written(law.then(name, *arguments), (500,))
    torch.testing.assert_close(made, expected.float(), rtol=2.0**-23, atol=1e-7)
    low, high = image(0.25, 2.0, (step(name, *arguments),))
    assert low - 1e-6 <= made.min()
    assert made.max() <= high + 1e-6


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("aten.log_.default", (), {}),
        ("aten.add.Tensor", (2.0,), {"alpha": 3}),
        ("aten.sub_.Tensor", (2,), {}),
        ("aten.rsub.Scalar", (1.0,), {}),
        ("aten.rsub.Scalar", (1.0, 2.0), {}),
        ("clamp", (), {"min": 0.5}),
        ("clamp", (0.5, 0.75), {}),
        ("clip", (), {"max": 0.75}),
        ("true_divide", (3.0,), {}),
        ("multiply", (3.0,), {}),
        ("negative", (), {}),
        ("relu", (), {}),
        ("rsqrt", (), {}),
        ("square", (), {}),
        ("pow", (3,), {}),
        ("softplus", (), {}),
        ("subtract", (0.5,), {}),
    ],
)
def test_steps_of_a_torch_function(name: str, arguments: tuple, named: dict) -> None:
    steps = steps_of(name, *arguments, **named)
    assert steps is not None
    fill = Fill.uniform(0.5, 2.0)
    for name_of_step, its in steps:
        fill = fill.then(name_of_step, *its)
    plain = name.removeprefix("aten.").split(".")[0].rstrip("_")
    function = getattr(torch, plain, None) or getattr(torch.nn.functional, plain)
    expected = function(written(Fill.uniform(0.5, 2.0), (99,)).double(), *arguments, **named)
    torch.testing.assert_close(written(fill, (99,)).double(), expected, rtol=2.0**-23, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("sin", (), {}),
        ("add", (torch.ones(3),), {}),
        ("div", (2.0,), {"rounding_mode": "floor"}),
        ("add", (True,), {}),
        ("clamp", (), {"min": math.inf}),
        ("softplus", (2.0,), {}),
        ("inverse_softplus", (), {}),
        ("log", (), {"out": torch.ones(1)}),
    ],
)
def test_what_is_no_step(name: str, arguments: tuple, named: dict) -> None:
    assert steps_of(name, *arguments, **named) is None


@pytest.mark.parametrize(
    ("fill", "steps"),
    [
        (Fill.uniform(-1.0, 1.0), [("log",)]),
        (Fill.uniform(-1.0, 1.0), [("sqrt",)]),
        (Fill.normal(), [("pow", 0.5)]),
        (Fill.uniform(), [("sub", 1.0)]),  # torch has it, as add
        (Fill.uniform(), [("add", -2.0), ("inverse_softplus",)]),
        (Fill.uniform(), [("log",), ("remainder", 1.0)]),  # of -inf, 0's logarithm
        (Fill.uniform(), [("reciprocal",), ("mul", 0.0)]),
        (Fill.arange(-1.0), [("log",)]),
        (Fill.constant(-1.0), [("log",)]),
        (Fill.orthogonal(), [("exp",)]),
        (Fill.uniform(), [*[("neg",)] * 32, ("neg",)]),
        (Fill.uniform(), [("add", math.inf)]),
    ],
)
def test_steps_that_make_no_numbers_are_refused(fill: Fill, steps: list) -> None:
    *before, last = steps
    for each in before:
        fill = fill.then(*each)
    with pytest.raises(ValueError, match=r"NaN|must be|steps follow a law"):
        fill.then(*last)


@pytest.mark.parametrize(
    ("fill", "shape", "message"),
    [
        (Fill.arange(5.0, -1.0).then("log"), (2, 9), "w: log makes NaN of some of the values"),
        (Fill.arange(dim=1), (9,), "w: no dimension 1 for arange"),
        (Fill.arange(dim=-3), (9, 2), "w: no dimension -3 for arange"),
    ],
)
def test_a_shape_that_a_ramp_cannot_have(fill: Fill, shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        written(fill, shape)


def test_complex_parameters_take_no_steps() -> None:
    model = one(torch.zeros(4, dtype=torch.complex64))
    with pytest.raises(NotImplementedError, match="w is complex, but steps and arange are of real"):
        Plan({"w": DT}).apply_(model)


@pytest.mark.parametrize("dim", [0, 1, -1, -3])
def test_a_ramp_along_a_dimension(dim: int) -> None:
    shape = (4, 5, 6)
    sizes = [1, 1, 1]
    sizes[dim] = shape[dim]
    ramp = (3.0 - 0.5 * torch.arange(shape[dim])).view(sizes).expand(shape)
    assert torch.equal(written(Fill.arange(3.0, -0.5, dim), shape), ramp)
    assert torch.equal(written(Fill.arange(3.0, -0.5, dim).scaled(3.0), shape), 3.0 * ramp)


@pytest.mark.parametrize("fill", [DT, Fill.arange(0.1, 0.3, 0).then("sqrt")], ids=str)
def test_chunks_change_no_bit_and_dtypes_round(fill: Fill, monkeypatch) -> None:
    whole = written(fill, (37, 11))
    assert torch.equal(written(fill, (37, 11), dtype=torch.bfloat16), whole.bfloat16())
    assert torch.equal(written(fill, (37, 11), dtype=torch.float64), whole.double())
    monkeypatch.setattr(values, "CHUNK", 7)
    assert torch.equal(written(fill, (37, 11)), whole)
    turned = one(torch.zeros(11, 37).T)
    assert torch.equal(Plan({"w": fill}, seed=5).apply_(turned).w, whole)


@pytest.mark.parametrize(
    "fill",
    [
        DT,
        Fill.uniform(0.0, 16.0).then("log"),
        Fill.normal().then("exp"),
        Fill.normal(1.0, 2.0).scaled(0.5).then("abs").scaled(3.0),
        Fill.truncated_normal(0.0, 1.0, 0.5, 9.0).then("log"),
        Fill.uniform().then("remainder", 0.25),
        Fill.normal().then("sigmoid").then("pow", 2.0),
    ],
    ids=str,
)
def test_moments_after_steps(fill: Fill) -> None:
    """Of 400,000 values the mean is within 5 of its standard errors; the std within 2%, as the largest
    fourth moment, of exp(normal), gives a standard error of 0.8%."""
    drawn = written(fill, (400_000,)).double()
    assert (
        abs(float(drawn.mean()) - fill.mean) < 5 * fill.std / math.sqrt(400_000) + 1e-3 * fill.std
    )
    assert float(drawn.std()) == pytest.approx(fill.std, rel=0.04)


def test_moments_that_are_not_there_are_nan() -> None:
    assert math.isnan(Fill.uniform().then("reciprocal").mean)
    assert math.isnan(Fill.arange().std)
    assert math.isnan(Fill.orthogonal().mean)


def test_steps_after_a_constant_are_a_constant_and_scales_stay_in_their_place() -> None:
    assert Fill.constant(2.0).then("log").then("add", 1.0) == Fill.constant(math.log(2.0) + 1.0)
    assert math.isnan(Fill.constant(math.nan).then("exp").mean)
    scaled = Fill.uniform(1.0, 2.0).scaled(3.0).then("log")  # of the scaled values
    drawn = written(Fill.uniform(3.0, 6.0), (50,))
    torch.testing.assert_close(written(scaled, (50,)), drawn.log())
    both = scaled.scaled(2.0).then("exp")
    torch.testing.assert_close(written(both, (50,)), (2.0 * drawn.log()).exp())
    assert not Fill.constant(1.0).then("exp").is_random
    assert Fill.normal().then("exp").is_random


def test_sums_that_are_inverse_softplus() -> None:
    dt = Fill.uniform(0.1, 0.2).then("exp")
    one_way = dt.then("neg").then("expm1").then("neg").then("log")
    another = dt.then("neg").then("exp").then("neg").then("log1p")
    for logarithm in (one_way, another):
        for total in (dt.plus(logarithm), logarithm.plus(dt)):
            assert total == dt.then("inverse_softplus")
        summed = written(dt, (50,)) + written(logarithm, (50,))
        torch.testing.assert_close(written(total, (50,)), summed)
    drawn = Fill.uniform(0.1, 0.2)
    of_law = drawn.then("neg").then("expm1").then("neg").then("log")
    assert drawn.plus(of_law) == drawn.then("inverse_softplus")
    others = (dt, replace(one_way, stream="other"), one_way.scaled(2.0), of_law)
    assert all(dt.plus(other) is None for other in others)
    assert dt.scaled(2.0).plus(one_way) is None
