"""Functions of float64 tensors, made of what IEEE 754 rounds exactly: the same bits on every device.

torch's own ``exp`` and ``log`` are libm's, SLEEF's or CUDA's, which differ in the last digit. These are
sums, products and quotients of float64 in one order, with exponents as integers. Each operation is a
kernel of its own, so that none are contracted. To about 1e-15 of the value; what is drawn is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# ln 2 in two: the first has 21 zero bits behind it, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_MANTISSA, _BIAS = (1 << 52) - 1, 1023
_TAYLOR = [1.0 / math.factorial(n) for n in range(18)]  # of exp; below 1/2 the rest is under 1e-20
_COS = [(-1.0) ** n / math.factorial(2 * n) for n in range(10)]  # the rest is under 1e-20, and
_SIN = [(-1.0) ** n / math.factorial(2 * n + 1) for n in range(9)]  # under 1e-19
_ATANH = [1.0 / (2 * n + 1) for n in range(13)]  # below 0.172 the rest is under 1e-20


def exp(x: Tensor) -> Tensor:
    """e to the x."""
    x = x.clamp(-800.0, 800.0)  # beyond, it is 0 and infinite
    k = (x * (1.0 / math.log(2.0))).round()
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    exponent = k.to(torch.int64)
    half = exponent >> 1  # in two, as 2^k may be beyond float64 where the product is not
    return series(r, _TAYLOR) * _power_of_2(half) * _power_of_2(exponent - half)


def expm1(x: Tensor) -> Tensor:
    """e to the x, minus 1, also where x is small."""
    near = x.clamp(-0.5, 0.5)
    return torch.where(x == near, near * series(near, _TAYLOR[1:]), exp(x) - 1.0)


def log(x: Tensor) -> Tensor:
    """The natural logarithm: -inf of 0, NaN of what is less."""
    tiny = x < 2.0**-1022
    bits = torch.where(tiny, x * 2.0**54, x).view(torch.int64)
    exponent = (bits >> 52) - _BIAS - 54 * tiny.to(torch.int64)
    m = ((bits & _MANTISSA) | (_BIAS << 52)).view(torch.float64)
    upper = m > math.sqrt(2.0)
    m = torch.where(upper, m * 0.5, m)
    k = (exponent + upper.to(torch.int64)).to(torch.float64)
    value = k * _LN2_HIGH + (_twice_atanh((m - 1.0) / (m + 1.0)) + k * _LN2_LOW)
    value = torch.where((x > 0.0) & (x < math.inf), value, x)  # inf and NaN stay
    return torch.where(x == 0.0, -math.inf, torch.where(x < 0.0, math.nan, value))


def log1p(x: Tensor) -> Tensor:
    """The natural logarithm of 1 + x, also where x is small."""
    near = x.clamp(-0.25, 0.25)
    return torch.where(x == near, _twice_atanh(near / (near + 2.0)), log(x + 1.0))


def power(x: Tensor, exponent: float) -> Tensor:
    """x to the exponent: products where that is a small whole number, else exp of a logarithm."""
    if not (exponent.is_integer() and abs(exponent) <= 64):
        if exponent.is_integer() and exponent % 2 == 0:
            x = x.abs()
        if exponent.is_integer():
            return exp(log(x.abs()) * exponent) * torch.where(x < 0.0, -1.0, 1.0)
        return exp(log(x) * exponent)
    result, n = torch.ones_like(x), int(abs(exponent))
    while n:
        if n & 1:
            result = result * x
        x, n = x * x, n >> 1
    return 1.0 / result if exponent < 0 else result


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1.0 / (exp(-x) + 1.0)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    e = expm1(x.abs() * -2.0)
    return torch.copysign(e / (e + 2.0), x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return x.clamp(min=0.0) + log1p(exp(-x.abs()))


def inverse_softplus(x: Tensor) -> Tensor:
    """What softplus makes x of: x + log(1 - exp(-x)), of x >= 0."""
    return x + log(-expm1(-x))


def series(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """c0 + c1 x + c2 x^2 + ..., by Horner."""
    *rest, last = coefficients
    total = torch.full_like(x, last)
    for c in reversed(rest):
        total.mul_(x).add_(c)
    return total


def sqrt(x: Tensor) -> Tensor:
    """The square root, rounded once (beyond 2^-900 to 2^900, as torch has it).

    torch's own goes to a vector library that is an ulp off in one of a hundred: what is left of x tells.
    """
    y = torch.sqrt(x)
    high = y * (2.0**27 + 1.0)
    high = high - (high - y)  # Veltkamp's upper half, so that the products below are exact
    low, square = y - high, y * y
    left = (x - square) - (((high * high - square) + high * low * 2.0) + low * low)
    above = (y.view(torch.int64) & ~_MANTISSA).view(
        torch.float64
    ) * 2.0**-52  # y's distance to the next
    below = torch.where(y.view(torch.int64) & _MANTISSA == 0, above * 0.5, above)
    near = torch.where(left > y * above, y + above, torch.where(left <= -y * below, y - below, y))
    return torch.where((x > 2.0**-900) & (x < 2.0**900), near, y)


def cos_sin(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of at most an eighth of a turn, in radians."""
    square = x * x
    return series(square, _COS), x * series(square, _SIN)


def _twice_atanh(s: Tensor) -> Tensor:
    return s * 2.0 * series(s * s, _ATANH)


def _power_of_2(k: Tensor) -> Tensor:
    """2^k for whole numbers of float64's normal exponents."""
    return ((k + _BIAS) << 52).view(torch.float64)
