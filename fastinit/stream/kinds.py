"""Kinds of laws: all that is different from one to the other, as a table with a row for each.

It is made without libm (``decimal`` is specified to the last digit), so that every backend and
machine starts from the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from fastinit.base.number import FLOAT32_MAX, NumberRangeError
from fastinit.stream.rounding import FLOAT8, below, float32, nearest, round_down, round_up

if TYPE_CHECKING:  # imported where few laws need it
    from decimal import Decimal

HALF = math.sqrt(0.5)
"""What half of the variance makes of a standard deviation."""

SMALLEST_TAIL = 2.0**-62
"""A window of the truncated normal whose nearer bound has less than this probability beyond it (8.9
standard deviations) is refused: float32 cannot tell such tails apart."""


class Params(NamedTuple):
    """The kernel's parameters, float32 values in this order; csrc/stream.h says what each is."""

    mul: float = 0.0
    add: float = 0.0
    lo: float = -math.inf
    hi: float = math.inf
    x_mul: float = 0.0
    x_add: float = 0.0
    t_mul: float = 0.0
    t_below: float = 0.0
    t_above: float = 0.0
    scale: float = 1.0


class Kind(NamedTuple):
    """A row of the table. ``*p`` are the parameters of a law: doubles, in their order."""

    name: str
    """Of the constructor in ``fastinit.stream.laws``, and in a plan's JSON."""
    parameters: tuple[str, ...]
    text: str
    """For people: a format of ``*p``."""
    check: Callable[..., None]
    """Of ``*p``. Raises NumberRangeError unless they are a law."""
    kernel_params: Callable[..., Params]
    """Of (dtype, scale, ``*p``): what a kernel takes, for a tensor of the dtype that stores values
    divided by the scale."""
    exact_params: Callable[..., Params]
    """Of ``*p``: what draws them in float64 (``fastinit.stream.exact``)."""
    moments: Callable[..., tuple[float, float]]
    """Of ``*p``: mean and standard deviation."""
    affine: Callable[..., Sequence[float]]
    """Of (factor, shift, ``*p``): parameters of the law of factor * value + shift, factor not 0."""
    halved: Callable[..., Sequence[float]]
    """Of ``*p``: parameters of the law with the same mean and half the variance."""


def _check_uniform(a: float, b: float) -> None:
    if not (-math.inf < a < math.inf and -math.inf < b < math.inf):  # traceable, unlike isfinite
        raise NumberRangeError(f"uniform_ expects finite bounds, but got a={a}, b={b}")
    if a > b:
        raise NumberRangeError(f"uniform_ expects a <= b, but got a={a}, b={b}")
    if max(abs(a), abs(b), b - a) > FLOAT32_MAX:
        raise NumberRangeError(
            f"uniform_ expects b - a and the bounds within float32, but got a={a}, b={b}"
        )


def _over(value: float, scale: float) -> float:
    """The quotient, exactly: a Fraction, unless there is nothing to divide."""
    if scale == 1.0 or not math.isfinite(value):
        return value
    from fractions import Fraction

    return Fraction(value) / Fraction(scale)  # type: ignore[return-value]  # which is compared as one


def _said(scale: float) -> str:
    return f", scale={scale}" if scale != 1.0 else ""


def _uniform_params(dtype: torch.dtype, scale: float, a: float, b: float) -> Params:
    low, high = _over(a, scale), _over(b, scale)
    if max(abs(low), abs(high)) > torch.finfo(dtype).max:
        said = f"a={a}, b={b}{_said(scale)}"
        raise NumberRangeError(f"uniform_ expects bounds within {dtype}, but got {said}")
    lo, hi = round_up(low, dtype), below(high, dtype)
    if lo > hi:  # nothing representable in [a, b): the nearest value
        lo = hi = nearest(low, dtype)
    first, width = float32(a), float32(float32(b) - float32(a))
    return Params(float32(width * 2.0**-24), first, lo, hi or -0.0, scale=scale)


def _exact_uniform_params(a: float, b: float) -> Params:
    return Params((b - a) * 2.0**-53, a, a, max(a, math.nextafter(b, -math.inf)))


def _constant_params(dtype: torch.dtype, scale: float, value: float) -> Params:
    if dtype in FLOAT8 and abs(_over(value, scale)) > torch.finfo(dtype).max:
        said = f"{value}{_said(scale)}"
        raise NumberRangeError(f"constant_ expects a value within {dtype}, but got {said}")
    return Params(0.0, float32(float32(value) / scale))  # once more is not to be seen: 53 > 2 * 24


def check_normal(mean: float, std: float, function: str = "normal_") -> None:
    if not 0.0 <= std <= FLOAT32_MAX:
        raise NumberRangeError(
            f"{function} expects 0 <= std <= {FLOAT32_MAX:.4g}, but got std={std}"
        )
    if not abs(mean) <= FLOAT32_MAX:
        raise NumberRangeError(f"{function} expects a finite float32 mean, but got mean={mean}")


def _check_truncated_normal(mean: float, std: float, a: float, b: float) -> None:
    check_normal(mean, std, "trunc_normal_")
    check_window(a, b)
    if std > 0 and a != b and max((a - mean) / std, (mean - b) / std) > 8.5:
        nearer = max((a - mean) / std, (mean - b) / std)
        if normal_tail(nearer) < SMALLEST_TAIL:
            raise NumberRangeError(
                f"trunc_normal_ expects [a, b] within 8.9 standard deviations of the mean, but got "
                f"mean={mean}, std={std}, a={a}, b={b} ({nearer:.1f} away)"
            )


def check_window(a: float, b: float) -> None:
    if not a <= b:  # also catches NaN
        raise NumberRangeError(f"trunc_normal_ expects a <= b, but got a={a}, b={b}")
    if a == math.inf or b == -math.inf:
        raise NumberRangeError(
            f"trunc_normal_ expects a window with values in it, but got a={a}, b={b}"
        )


def _truncated_normal_params(
    dtype: torch.dtype, scale: float, mean: float, std: float, a: float, b: float
) -> Params:
    low, high = _over(a, scale), _over(b, scale)
    lo, hi = round_up(low, dtype), round_down(high, dtype)
    if lo > hi:
        lo = hi = nearest(low, dtype)
    if std == 0.0 or a == b:  # one value; the quantile still wants a probability, any one in (0, 1)
        value = min(max(float32(float32(min(max(mean, a), b)) / scale), lo), hi)
        return Params(0.0, value, t_below=0.5, t_above=0.5)
    alpha, beta = (a - mean) / std, (b - mean) / std
    below_a, above_b = normal_tail(-alpha), normal_tail(beta)
    mass = _mass(alpha, beta)
    step = float32(mass * 2.0**-32)
    if step < 2.0**-126:  # below float32's normal numbers: the window is one value wide
        step, mass = 0.0, 0.0
    return Params(
        mul=float32(std),
        add=float32(mean),
        lo=lo,
        hi=hi or -0.0,
        x_mul=float32(mass * 2.0**-31),
        x_add=float32(below_a - above_b + mass * 2.0**-32),
        t_mul=step,
        t_below=float32(below_a + mass * 2.0**-33),
        t_above=float32(above_b + mass * 2.0**-33),
        scale=scale,
    )


def _exact_truncated_normal_params(mean: float, std: float, a: float, b: float) -> Params:
    if std == 0.0 or a == b:
        return Params(0.0, min(max(mean, a), b), a, b, t_below=0.5, t_above=0.5)
    alpha, beta = (a - mean) / std, (b - mean) / std
    below_a, above_b = normal_tail(-alpha), normal_tail(beta)
    mass = _mass(alpha, beta)
    return Params(
        mul=std,
        add=mean,
        lo=a,
        hi=b,
        x_mul=mass * 2.0**-52,
        x_add=below_a - above_b + mass * 2.0**-53,
        t_mul=mass * 2.0**-53,
        t_below=below_a + mass * 2.0**-54,
        t_above=above_b + mass * 2.0**-54,
    )


def _mass(alpha: float, beta: float) -> float:
    """P(alpha < Z < beta), from the tail that holds less: no cancellation."""
    if beta < -alpha:
        return normal_tail(-beta) - normal_tail(-alpha)
    return normal_tail(alpha) - normal_tail(beta)


@lru_cache(maxsize=4096)
def normal_tail(x: float) -> float:
    """P(Z > x) for a standard normal Z, correctly rounded for all practical purposes (60 digits).

    Abramowitz & Stegun 26.2.11 in decimal arithmetic.
    """
    if math.isinf(x) or abs(x) > 38.0:
        return 0.0 if x > 0 else 1.0
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 420  # the series cancels e^(-x^2 / 2) / x, at most 316 digits
        z = Decimal(abs(x))
        term = total = z
        k = 1
        while term > total * Decimal(10) ** -400 and term:
            k += 2
            term = term * z * z / k
            total += term
        pi = _pi()
        middle = total * (-z * z / 2).exp() / (2 * pi).sqrt()  # P(0 < Z < |x|)
        return float(Decimal("0.5") - middle if x > 0 else Decimal("0.5") + middle)


def _pi() -> Decimal:
    """Pi to the current precision (the recipe of the decimal module's documentation)."""
    from decimal import Decimal

    last, t, s, n, na, d, da = Decimal(0), Decimal(3), Decimal(3), 1, 0, 0, 24
    while s != last:
        last = s
        n, na = n + na, na + 8
        d, da = d + da, da + 32
        t = (t * n) / d
        s += t
    return s


def _truncated_normal_moments(mean: float, std: float, a: float, b: float) -> tuple[float, float]:
    """Johnson, Kotz & Balakrishnan, Continuous Univariate Distributions 1 (1994), section 13.10.1."""
    if std == 0.0 or a == b:
        return min(max(mean, a), b), 0.0
    alpha, beta = (a - mean) / std, (b - mean) / std
    if beta - alpha < 1e-3:
        # The formula cancels to 1e-16 / (beta - alpha)^2, and the density is flat to 1e-3 of itself
        # times the distance from the mean: the uniform law.
        return (a + b) / 2, (b - a) / math.sqrt(12.0)
    if alpha + beta > 0:  # the mass from the tail that holds less of it
        mass = math.erfc(alpha / math.sqrt(2)) - math.erfc(beta / math.sqrt(2))
    else:
        mass = math.erfc(-beta / math.sqrt(2)) - math.erfc(-alpha / math.sqrt(2))
    mass /= 2
    density_a, density_b = _density(alpha), _density(beta)
    shift = (density_a - density_b) / mass
    pull = (alpha * density_a if density_a else 0.0) - (beta * density_b if density_b else 0.0)
    return mean + std * shift, std * math.sqrt(max(0.0, 1.0 + pull / mass - shift * shift))


def _density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


KINDS = (
    Kind(
        "uniform",
        ("a", "b"),
        "uniform",
        _check_uniform,
        _uniform_params,
        _exact_uniform_params,
        moments=lambda a, b: ((a + b) / 2, (b - a) / math.sqrt(12.0)),
        affine=lambda factor, shift, a, b: sorted((factor * a + shift, factor * b + shift)),
        halved=lambda a, b: ((a + b) / 2 - (b - a) / 2 * HALF, (a + b) / 2 + (b - a) / 2 * HALF),
    ),
    Kind(
        "normal",
        ("mean", "std"),
        "normal",
        check_normal,
        kernel_params=lambda dtype, scale, mean, std: Params(
            float32(std), float32(mean), scale=scale
        ),
        exact_params=lambda mean, std: Params(std, mean),
        moments=lambda mean, std: (mean, std),
        affine=lambda factor, shift, mean, std: (factor * mean + shift, abs(factor) * std),
        halved=lambda mean, std: (mean, std * HALF),
    ),
    Kind(
        "truncated_normal",
        ("mean", "std", "a", "b"),
        "truncated normal",
        _check_truncated_normal,
        _truncated_normal_params,
        _exact_truncated_normal_params,
        _truncated_normal_moments,
        affine=lambda factor, shift, mean, std, a, b: (
            factor * mean + shift,
            abs(factor) * std,
            *sorted((factor * a + shift, factor * b + shift)),
        ),
        halved=lambda mean, std, *ends: (
            mean,
            std * HALF,
            *(mean + (x - mean) * HALF for x in ends),
        ),
    ),
    Kind(
        "constant",
        ("value",),
        "constant {:g}",
        check=lambda value: None,
        kernel_params=_constant_params,
        exact_params=lambda value: Params(0.0, value),
        moments=lambda value: (value, 0.0),
        affine=lambda factor, shift, value: (factor * value + shift,),
        halved=lambda value: (value,),
    ),
)
"""By the code that kernels know a law by."""
