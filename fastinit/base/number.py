"""Numbers: what is taken for one wherever an argument is a number, and what is refused, and how.

A real number is what is one by Python's own classes: int, float, Fraction, Decimal, those of NumPy
and of other packages that register theirs (``numbers.Real``), and what an array or tensor without
dimensions holds. A bool is none, nor is text, a complex number, or a tensor with dimensions, be it of
one element.

One kind of fault is one kind of error, caught under each name that torch has for it: it raises
RuntimeError for a bad std, ValueError for a bad sparsity, and for a slope that is no number.
"""

from __future__ import annotations

import math
from numbers import Complex, Integral, Number, Real
from typing import Any, NoReturn

import torch

FLOAT32_MAX = float.fromhex("0x1.fffffep+127")
FLOAT32_MIN = 2.0**-126  # of normal numbers: what is less loses digits, and then all

_SHOWN = 60  # letters of a value in a message


class NumberTypeError(TypeError, ValueError):
    """An argument that has to be a number, or a whole number, is none."""


class NumberRangeError(ValueError, RuntimeError):
    """A number that an argument cannot be: NaN, infinite, or out of its interval."""


def real(name: str, value: Any) -> float:
    """The number as a float, to which it is rounded; NaN and infinities are numbers.

    Args:
        name: of the argument, for the message.

    Raises:
        NumberTypeError: it is no real number.
        NumberRangeError: an int or Fraction beyond float64.

    >>> from fractions import Fraction
    >>> real("std", 2), real("std", Fraction(1, 2)), real("std", torch.tensor(0.25))
    (2.0, 0.5, 0.25)
    """
    if (
        type(value) is float
    ):  # nearly always, and nothing else may cost a call that writes 4 elements
        return value
    held = value
    if type(value) is not int:
        held = _held(value)
        if isinstance(held, bool) or not _is_real(held):
            raise NumberTypeError(f"{name} must be a number, but got {said(value)}")
    try:
        number = float(held)
    except (OverflowError, ValueError):  # ValueError: Decimal's signalling NaN
        number = None
    if number is None or (number in (math.inf, -math.inf) and held != number):
        out_of_range(name, "a number that float64 can hold", value)
    return number


def finite(name: str, value: Any) -> float:
    """The number, if it is finite; exceptions are those of :func:`real`."""
    number = real(name, value)
    return number if -math.inf < number < math.inf else out_of_range(name, "finite", value)


def positive(name: str, value: Any) -> float:
    """The number, if it is positive and a normal one of float32, as what float32 values are scaled by.

    Raises:
        as :func:`real`.
    """
    number = real(name, value)
    if not 0.0 < number < math.inf:
        out_of_range(name, "positive and finite", value)
    if not FLOAT32_MIN <= number <= FLOAT32_MAX:
        wanted = f"within float32's normal range, {FLOAT32_MIN:.2e} to {FLOAT32_MAX:.2e}"
        out_of_range(name, wanted, value)
    return number


def multiplier(name: str, value: Any, *, negative: bool = False) -> float:
    """The number, if it is one that float32 values can be multiplied with: finite, and within float32.

    Args:
        negative: whether it may be; 0 always may.

    Raises:
        as :func:`real`.
    """
    number = real(name, value)
    if 0.0 <= number <= FLOAT32_MAX:  # as nearly always
        return number
    if not (number >= 0.0 or (negative and number < 0.0)) or abs(number) == math.inf:
        out_of_range(name, "finite" if negative else "finite and not negative", value)
    if abs(number) > FLOAT32_MAX:
        out_of_range(name, "within float32's range", value)
    return number


def share(name: str, value: Any) -> float:
    """The number, if it is in [0, 1]; exceptions are those of :func:`real`."""
    number = real(name, value)
    return number if 0.0 <= number <= 1.0 else out_of_range(name, "in [0, 1]", value)


def integer(name: str, value: Any, *, least: int | None = None) -> int:
    """The whole number as an int. A float is none, whatever its value.

    Args:
        least: of a count, which is then below 2^63 as all counts of torch are.

    Raises:
        NumberTypeError: it is no whole number.
        NumberRangeError: a count that is less than ``least``, or as large as that.
    """
    held = value if type(value) is int else _held(value)
    if isinstance(held, bool) or not isinstance(held, _WHOLE):
        raise NumberTypeError(f"{name} must be an int, but got {said(value)}")
    number = int(held)
    if least is not None and not least <= number < 1 << 63:
        wanted = f"at least {least}" if number < least else "below 2**63"
        out_of_range(name, wanted, value)
    return number


def flag(name: str, value: Any) -> bool:
    """A bool, or raises TypeError: what is only true in an if may have been meant otherwise.

    >>> flag("higher", True)
    True
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, but got {said(value)}")
    return value


def out_of_range(name: str, wanted: str, value: Any) -> NoReturn:
    """Raises the error of a number that the argument cannot be."""
    raise NumberRangeError(f"{name} must be {wanted}, but got {said(value)}")


def said(value: Any) -> str:
    """A value in a message: on one line, and not at any length."""
    try:
        line = " ".join(repr(value).split())
    except ValueError:  # Python writes no int of more than 4,300 digits
        return f"an int of {int(value).bit_length()} bits"
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


# torch's symbolic numbers are sizes and floats while something is traced.
_REAL = (Real, torch.SymInt, torch.SymFloat)
_WHOLE = (Integral, torch.SymInt)


def _is_real(value: Any) -> bool:
    """Whether it says so; a Decimal says that it is a number, and not that it is a complex one."""
    return isinstance(value, _REAL) or (
        isinstance(value, Number) and not isinstance(value, Complex)
    )


def _held(value: Any) -> Any:
    """What an array or tensor without dimensions holds; of another value, the value."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (
        RuntimeError,
        NotImplementedError,
    ):  # on meta, traced, in vmap: there is no value to have
        return value
