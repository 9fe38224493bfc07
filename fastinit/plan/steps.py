"""Steps: operations on single values that may follow a law, as a table; and what torch calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinit.base import number
from fastinit.base import torch_internals as internals
from fastinit.stream import functions

MOST = 32
"""Steps after one law: a law of more is a program, and belongs in one's own code."""

Interval = tuple[float, float]
"""The least and the largest value. NaN where some values are."""


class Step(NamedTuple):
    """An operation on every value: ``log``, or ``clamp_min`` of 0.001."""

    name: str
    arguments: tuple[float, ...] = ()

    @property
    def flat(self) -> tuple[Any, ...]:
        """The name, and then the arguments."""
        return (self.name, *self.arguments)

    def __str__(self) -> str:
        return (
            f"{self.name}({', '.join(map(repr, self.arguments))})" if self.arguments else self.name
        )


class Operation(NamedTuple):
    """A row of the table. ``*p`` are the operation's arguments."""

    function: Callable[..., Tensor]
    """Of (float64 values, ``*p``): made of what IEEE 754 rounds exactly."""
    parameters: tuple[str, ...] = ()
    check: Callable[..., object] = lambda *p: None
    """Of ``*p``, finite floats. Raises NumberRangeError."""
    image: Callable[..., Interval] | None = None
    """Of (lowest, highest, ``*p``): the interval of the results; None for a monotonic function."""


def _of_abs(low: float, high: float) -> Interval:
    return (0.0 if low <= 0.0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _of_reciprocal(low: float, high: float) -> Interval:
    return (-math.inf, math.inf) if low < 0.0 <= high else _ends(functions.power, low, high, -1.0)


def _of_power(low: float, high: float, exponent: float) -> Interval:
    if low < 0.0 and not exponent.is_integer():
        return math.nan, math.nan
    if low < 0.0 and exponent % 2 == 0:
        low, high = _of_abs(low, high)
    if low < 0.0 <= high and exponent < 0.0:
        return -math.inf, math.inf
    return _ends(functions.power, low, high, exponent)


def _of_remainder(low: float, high: float, divisor: float) -> Interval:
    if math.isinf(low) or math.isinf(high):
        return math.nan, math.nan
    return (0.0, divisor) if divisor > 0.0 else (divisor, 0.0)


def _not_0(divisor: float) -> None:
    if divisor == 0.0:
        number.out_of_range("divisor", "another number than 0", divisor)


_TERM, _FACTOR, _BOUND = ("term",), ("factor",), ("bound",)

STEPS = {
    "abs": Operation(lambda x: x.abs(), image=_of_abs),
    "add": Operation(lambda x, term: x + term, _TERM),
    "clamp_max": Operation(lambda x, bound: x.clamp(max=bound), _BOUND),
    "clamp_min": Operation(lambda x, bound: x.clamp(min=bound), _BOUND),
    "div": Operation(lambda x, divisor: x / divisor, ("divisor",), _not_0),
    "exp": Operation(functions.exp),
    "expm1": Operation(functions.expm1),
    "inverse_softplus": Operation(functions.inverse_softplus),
    "log": Operation(functions.log),
    "log1p": Operation(functions.log1p),
    "mul": Operation(lambda x, factor: x * factor, _FACTOR),
    "neg": Operation(lambda x: -x),
    "pow": Operation(functions.power, ("exponent",), image=_of_power),
    "reciprocal": Operation(lambda x: 1.0 / x, image=_of_reciprocal),
    "remainder": Operation(
        lambda x, divisor: x.remainder(divisor), ("divisor",), _not_0, _of_remainder
    ),
    "sigmoid": Operation(functions.sigmoid),
    "softplus": Operation(functions.softplus),
    "sqrt": Operation(functions.sqrt),
    "tanh": Operation(functions.tanh),
}
"""By name. Each means what torch means by it; ``inverse_softplus`` is x + log(-expm1(-x))."""


def step(name: str, *arguments: float) -> Step:
    """A step of the table.

    Raises:
        ValueError: no such operation, or another number of arguments.
        NumberTypeError, NumberRangeError: an argument that is no finite number, or a divisor of 0.
    """
    if name not in STEPS:
        raise ValueError(f"a step must be one of {', '.join(STEPS)}, but got {name!r}")
    row = STEPS[name]
    if len(arguments) != len(row.parameters):
        takes = ", ".join(row.parameters) or "no argument"
        raise ValueError(f"the step {name} takes {takes}, but got {arguments!r}")
    checked = tuple([number.finite(p, a) + 0.0 for p, a in zip(row.parameters, arguments)])
    row.check(*checked)
    return Step(name, checked)


def checked(steps: Any) -> tuple[Step, ...]:
    """Each as a :func:`step` of the table.

    Raises:
        as :func:`step`; ValueError: more than ``MOST``.
    """
    if not isinstance(steps, Iterable) or len(given := tuple(steps)) > MOST:
        raise ValueError(f"steps must be at most {MOST} of them, but got {steps!r}")
    return tuple([step(name, *arguments) for name, arguments in given])


def run(values: Tensor, steps: Sequence[Step]) -> Tensor:
    """What steps make of float64 values, in their order."""
    for name, arguments in steps:
        values = STEPS[name].function(values, *arguments)
    return values


def of_constant(value: float, step: Step) -> float:
    """What a step makes of one number.

    Raises:
        NumberRangeError: that is NaN, and the number is not.
    """
    if value == value:
        image(value, value, (step,))
    return float(run(torch.tensor([value], dtype=torch.float64, device="cpu"), (step,)))


def text(value: str, steps: Sequence[Step]) -> str:
    """What steps make of a value that is so called, as a formula."""
    for name, arguments in steps:
        value = f"{name}({', '.join((value, *(f'{a:g}' for a in arguments)))})"
    return value


def image(low: float, high: float, steps: Sequence[Step]) -> Interval:
    """The interval of what steps make of the values from low to high.

    Raises:
        NumberRangeError: steps that make NaN of some, such as the logarithm of negative ones.
    """
    for name, arguments in steps:
        row, before = STEPS[name], (low, high)
        if row.image is None:
            low, high = _ends(row.function, low, high, *arguments)
        else:
            low, high = row.image(low, high, *arguments)
        if math.isnan(low) or math.isnan(high):
            raise number.NumberRangeError(
                f"{Step(name, arguments)} makes NaN of some of the values from {before[0]:g} to "
                f"{before[1]:g}"
            )
    return low, high


def _ends(function: Callable[..., Tensor], low: float, high: float, *p: float) -> Interval:
    with internals.without_modes():  # a fake mode's values are none, wherever a Fill is made
        ends = function(torch.tensor([low, high], dtype=torch.float64, device="cpu"), *p)
        return float(ends.min()), float(ends.max())  # NaN if one is


def of_sum(first: tuple[Step, ...], second: tuple[Step, ...]) -> tuple[Step, ...] | None:
    """The steps of the sum of what two rows of steps make of one value; None if it is none.

    It is ``inverse_softplus`` of x for x + log(-expm1(-x)), as constructors write it.
    """
    for x, other in ((first, second), (second, first)):
        if other[: len(x)] == x and other[len(x) :] in _LOGS:
            return (*x, Step("inverse_softplus"))
    return None


_LOGS = {
    tuple(map(Step, names))
    for names in (("neg", "expm1", "neg", "log"), ("neg", "exp", "neg", "log1p"))
}
"""log(1 - exp(-x)), in two ways."""


def steps_of(name: str, *arguments: Any, **named: Any) -> tuple[Step, ...] | None:
    """The steps that a torch function of this name is, for values with numbers; None if there are none.

    Args:
        name: of the function, the method or the operator: ``log``, ``log_``, ``aten.log_.default``.
        arguments: those after the tensor, in torch's order.
        named: those given by name.

    >>> steps_of("clamp_", min=0.5)
    (Step(name='clamp_min', arguments=(0.5,)),)
    >>> steps_of("aten.rsub.Scalar", 1.0)
    (Step(name='neg', arguments=()), Step(name='add', arguments=(1.0,)))
    """
    name = name.removeprefix("aten.").removeprefix("aten::").split(".")[0].rstrip("_")
    if not all(type(a) in (int, float, type(None)) for a in (*arguments, *named.values())):
        return None  # tensors, names of modes
    try:
        if name in _TORCH:
            return tuple([step(*each) for each in _TORCH[name](*arguments, **named)])
        if name in STEPS and name != "inverse_softplus" and not named:
            return (step(name, *arguments),)
    except (TypeError, ValueError):  # what the step does not take: infinity, softplus' beta
        pass
    return None


def _clamp(min: Any = None, max: Any = None) -> list[tuple[Any, ...]]:
    bounds = (("clamp_min", min), ("clamp_max", max))
    return [bound for bound in bounds if bound[1] is not None]


_TORCH: dict[str, Callable[..., list[tuple[Any, ...]]]] = {
    "add": lambda other, *, alpha=1: [("add", other * alpha)],
    "clamp": _clamp,
    "clamp_max": lambda max: [("clamp_max", max)],
    "clamp_min": lambda min: [("clamp_min", min)],
    "clip": _clamp,
    "divide": lambda other: [("div", other)],
    "multiply": lambda other: [("mul", other)],
    "negative": lambda: [("neg",)],
    "relu": lambda: [("clamp_min", 0.0)],
    "rsqrt": lambda: [("sqrt",), ("reciprocal",)],
    "rsub": lambda other, alpha=1: [("neg",) if alpha == 1 else ("mul", -alpha), ("add", other)],
    "square": lambda: [("pow", 2.0)],
    "sub": lambda other, *, alpha=1: [("add", -other * alpha)],
    "subtract": lambda other, *, alpha=1: [("add", -other * alpha)],
    "true_divide": lambda other: [("div", other)],
}
"""Of torch's functions that have other names, or other arguments, than the steps that they are."""
