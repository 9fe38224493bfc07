"""Laws: what a value may be, and the float32 parameters that every backend's kernel takes.

A value is drawn in float32 and rounded to the tensor's dtype. Where that leaves the law's interval,
[a, b) of the uniform law and [a, b] of the truncated normal, it is the dtype's nearest value inside;
where the dtype has none inside, the nearest to a.

A :class:`Law` is what the user asked for, in doubles. :func:`kernel_params` turns it into the
kernel's ``Params`` for one dtype. That happens here only, and without libm (``decimal`` is specified
to the last digit), so that every backend and machine starts from the same bits.
"""

from __future__ import annotations

import math
import struct
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import NamedTuple

import torch

from fastinit.base import number
from fastinit.base.number import FLOAT32_MAX, NumberRangeError

UNIFORM, NORMAL, TRUNCATED_NORMAL, CONSTANT = range(4)
NAMES = ("uniform", "normal", "truncated_normal", "constant")

_traced = torch.compiler.is_dynamo_compiling

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The real dtypes that kernels write; the index is the code that they know a dtype by."""

COMPLEX = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}

# A window of the truncated normal whose nearer bound has less than this probability beyond it
# (8.9 standard deviations) is refused: float32 cannot tell such tails apart.
SMALLEST_TAIL = 2.0**-62


class Law(NamedTuple):
    """A distribution with its parameters: ``kind`` (a code above) and up to four numbers.

    uniform: a, b. normal: mean, std. truncated_normal: mean, std, a, b. constant: value.
    """

    kind: int
    p0: float
    p1: float = 0.0
    p2: float = 0.0
    p3: float = 0.0

    @property
    def name(self) -> str:
        return NAMES[self.kind]

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters by name, in the order of the constructor's arguments."""
        names = (("a", "b"), ("mean", "std"), ("mean", "std", "a", "b"), ("value",))[self.kind]
        return dict(zip(names, self[1:]))


def uniform(a: float = 0.0, b: float = 1.0) -> Law:
    """The uniform law on [a, b).

    Raises:
        NumberRangeError: a or b is NaN or infinite, a > b, or b - a overflows float32.
        NumberTypeError: as every law, for what is no number (``fastinit.base.number``).
    """
    return (_uniform if _traced() else _uniform_kept)(_number("a", a), _number("b", b))


def _uniform(a: float, b: float) -> Law:
    if not (-math.inf < a < math.inf and -math.inf < b < math.inf):  # traceable, unlike isfinite
        raise NumberRangeError(f"uniform_ expects finite bounds, but got a={a}, b={b}")
    if a > b:
        raise NumberRangeError(f"uniform_ expects a <= b, but got a={a}, b={b}")
    if max(abs(a), abs(b), b - a) > FLOAT32_MAX:
        raise NumberRangeError(
            f"uniform_ expects b - a and the bounds within float32, but got a={a}, b={b}"
        )
    return Law(UNIFORM, a, b)


def normal(mean: float = 0.0, std: float = 1.0) -> Law:
    """The normal law.

    Raises:
        NumberRangeError: std is negative, or mean or std is NaN, infinite or beyond float32.
    """
    return (_normal if _traced() else _normal_kept)(_number("mean", mean), _number("std", std))


def _normal(mean: float, std: float) -> Law:
    _check_location_and_scale("normal_", mean, std)
    return Law(NORMAL, mean, std)


def truncated_normal(mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Law:
    """The normal law conditioned on [a, b]; a and b are values, not multiples of std.

    Either bound may be infinite.

    Raises:
        NumberRangeError: as :func:`normal`; or a or b is NaN, a > b, or [a, b] lies wholly more than
            8.9 standard deviations from the mean.
    """
    make = _truncated_normal if _traced() else _truncated_normal_kept
    return make(_number("mean", mean), _number("std", std), _number("a", a), _number("b", b))


def truncated_normal_by_sigma(
    mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Law:
    """:func:`truncated_normal` with a and b in multiples of std, counted from the mean.

    Raises:
        NumberRangeError: as :func:`truncated_normal`.
    """
    mean, std = _number("mean", mean), _number("std", std)
    a, b = _number("a", a), _number("b", b)
    _check_location_and_scale("trunc_normal_", mean, std)
    _check_window(a, b)
    # Of a std of 0 an infinite multiple is infinite, too, and not NaN.
    low, high = (x if abs(x) == math.inf else mean + x * std for x in (a, b))
    return truncated_normal(mean, std, low, high)


def _truncated_normal(mean: float, std: float, a: float, b: float) -> Law:
    _check_location_and_scale("trunc_normal_", mean, std)
    _check_window(a, b)
    if std > 0 and a != b and max((a - mean) / std, (mean - b) / std) > 8.5:
        nearer = max((a - mean) / std, (mean - b) / std)
        if normal_tail(nearer) < SMALLEST_TAIL:
            raise NumberRangeError(
                f"trunc_normal_ expects [a, b] within 8.9 standard deviations of the mean, but got "
                f"mean={mean}, std={std}, a={a}, b={b} ({nearer:.1f} away)"
            )
    return Law(TRUNCATED_NORMAL, mean, std, a, b)


# A net is initialised with few laws, each asked for many times. Dynamo traces the plain functions:
# it would warn that it ignores the cache.
_uniform_kept, _normal_kept = lru_cache(maxsize=4096)(_uniform), lru_cache(maxsize=4096)(_normal)
_truncated_normal_kept = lru_cache(maxsize=4096)(_truncated_normal)


def constant(value: float) -> Law:
    """The constant law; value may be any float, NaN and infinities included. -0.0 is 0.0."""
    return Law(CONSTANT, _number("value", value))


def split_complex(law: Law) -> Law:
    """The law of the real and of the imaginary part of a complex value that has this law's variance.

    As ``torch.Tensor.normal_`` does for complex tensors: each part has half the variance, and the
    mean. (torch's complex ``uniform_`` forgets to halve it.)
    """
    half = math.sqrt(0.5)
    if law.kind == UNIFORM:
        middle, reach = (law.p0 + law.p1) / 2, (law.p1 - law.p0) / 2 * half
        return Law(UNIFORM, middle - reach, middle + reach)
    if law.kind == NORMAL:
        return Law(NORMAL, law.p0, law.p1 * half)
    if law.kind == TRUNCATED_NORMAL:
        mean = law.p0
        return Law(
            TRUNCATED_NORMAL,
            mean,
            law.p1 * half,
            mean + (law.p2 - mean) * half,
            mean + (law.p3 - mean) * half,
        )
    return law


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


@lru_cache(maxsize=4096)
def kernel_params(law: Law, dtype: torch.dtype) -> Params:
    """The float32 parameters with which a kernel draws ``law`` for a tensor of ``dtype``.

    ``lo`` and ``hi`` are the dtype's first and last value in the law's interval. Rounding is monotonic:
    clamped to them before, no other values change than those that would be rounded out of the interval.
    Raises NumberRangeError for uniform bounds beyond the dtype, as ``torch.Tensor.uniform_`` does: there
    is nothing between its largest value and them. Of two zeros a backend's ``max`` may give either.
    ``lo`` is never -0.0 and ``hi`` never 0.0: then all ways of clamping agree.
    """
    if law.kind == UNIFORM:
        if max(abs(law.p0), abs(law.p1)) > torch.finfo(dtype).max:
            raise NumberRangeError(
                f"uniform_ expects bounds within {dtype}, but got a={law.p0}, b={law.p1}"
            )
        a, b = float32(law.p0), float32(law.p1)
        lo, hi = round_up(law.p0, dtype), below(law.p1, dtype)
        if lo > hi:  # nothing representable in [a, b): the nearest value
            lo = hi = nearest(law.p0, dtype)
        return Params(float32(float32(b - a) * 2.0**-24), a, lo, hi or -0.0)
    if law.kind == NORMAL:
        return Params(float32(law.p1), float32(law.p0))
    if law.kind == CONSTANT:
        return Params(0.0, float32(law.p0))
    mean, std, a, b = law.p0, law.p1, law.p2, law.p3
    lo, hi = round_up(a, dtype), round_down(b, dtype)
    if lo > hi:
        lo = hi = nearest(a, dtype)
    if std == 0.0 or a == b:  # one value; the quantile still wants a probability, any one in (0, 1)
        value = min(max(float32(min(max(mean, a), b)), lo), hi)
        return Params(0.0, value, t_below=0.5, t_above=0.5)
    alpha, beta = (a - mean) / std, (b - mean) / std
    below_a, above_a = normal_tail(-alpha), normal_tail(alpha)
    below_b, above_b = normal_tail(-beta), normal_tail(beta)
    # The mass of the window, from the tail that holds less: no cancellation.
    mass = below_b - below_a if beta < -alpha else above_a - above_b
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
    )


@lru_cache(maxsize=4096)
def normal_tail(x: float) -> float:
    """P(Z > x) for a standard normal Z, correctly rounded for all practical purposes (60 digits).

    Abramowitz & Stegun 26.2.11 in decimal arithmetic.
    """
    if math.isinf(x) or abs(x) > 38.0:
        return 0.0 if x > 0 else 1.0
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
    last, t, s, n, na, d, da = Decimal(0), Decimal(3), Decimal(3), 1, 0, 0, 24
    while s != last:
        last = s
        n, na = n + na, na + 8
        d, da = d + da, da + 32
        t = (t * n) / d
        s += t
    return s


# --- rounding to a dtype -----------------------------------------------------------------------


def float32(value: float) -> float:
    """The nearest float32, ties to even; infinity beyond its range. Never -0.0."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0]) + 0.0
    except OverflowError:
        return math.copysign(math.inf, value)


def nearest(value: float, dtype: torch.dtype) -> float:
    """The nearest value that ``dtype`` and float32 both hold."""
    value = float32(value)
    if dtype in (torch.float16, torch.bfloat16):
        value = torch.tensor(value, dtype=torch.float32).to(dtype).item() + 0.0
    return value


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest value of ``dtype`` (float32 for float64) that is not below ``value``."""
    near = nearest(value, dtype)
    return near if near >= value else _next(near, dtype, 1)


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` (float32 for float64) that is not above ``value``."""
    near = nearest(value, dtype)
    return near if near <= value else _next(near, dtype, -1)


def below(value: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` (float32 for float64) below ``value``."""
    near = nearest(value, dtype)
    return near if near < value else _next(near, dtype, -1)


def _next(value: float, dtype: torch.dtype, direction: int) -> float:
    held = torch.float32 if dtype == torch.float64 else dtype
    integers = torch.int32 if held == torch.float32 else torch.int16
    bits = int(torch.tensor(value, dtype=held).view(integers).item())
    sign = -1 << (31 if held == torch.float32 else 15)
    ordered = bits if bits >= 0 else sign - bits  # integers in the order of the values
    ordered += direction
    if value == 0.0 and ordered < 0:  # both zeros stand at 0
        ordered = -1
    bits = ordered if ordered >= 0 else sign - ordered
    return float(torch.tensor(bits, dtype=integers).view(held).item())


def _number(name: str, value: float) -> float:
    # Zero has no sign here: laws that are equal, as those of 0.0 and -0.0 are, give the same bits.
    return (value if type(value) is float else number.real(name, value)) + 0.0


def _check_window(a: float, b: float) -> None:
    if not a <= b:  # also catches NaN
        raise NumberRangeError(f"trunc_normal_ expects a <= b, but got a={a}, b={b}")
    if a == math.inf or b == -math.inf:
        raise NumberRangeError(
            f"trunc_normal_ expects a window with values in it, but got a={a}, b={b}"
        )


def _check_location_and_scale(function: str, mean: float, std: float) -> None:
    if not 0.0 <= std <= FLOAT32_MAX:
        raise NumberRangeError(
            f"{function} expects 0 <= std <= {FLOAT32_MAX:.4g}, but got std={std}"
        )
    if not abs(mean) <= FLOAT32_MAX:
        raise NumberRangeError(f"{function} expects a finite float32 mean, but got mean={mean}")
