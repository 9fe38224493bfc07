"""Values that may be given for a number, and what an argument takes of them (test_number.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fastinit import NumberRangeError
from fastinit.base import number

NAN, INF = math.nan, math.inf
HUGE = 10**400  # beyond float64
FLOAT32 = number.FLOAT32_MAX

# --- values ----------------------------------------------------------------------------------------


class Value(NamedTuple):
    """A value, and which number it is; None if it is none."""

    given: Any
    is_: Any = None

    @property
    def whole(self) -> bool:
        """Whether its type is that of whole numbers."""
        return isinstance(self.is_, int) and not isinstance(self.given, (Fraction, Decimal))


class Two(IntEnum):
    TWO = 2


class Half:
    """A number of another package."""

    def __float__(self) -> float:
        return 0.5


NUMBERS = [
    *(Value(x, x) for x in (0.5, 1.0, 2.0, 0.0, -0.0, -1.0, 1e300, -1e300, 1e-300, NAN, INF, -INF)),
    *(Value(n, n) for n in (0, 1, 2, -1, 7, 2**64 - 1, 2**64, HUGE, -HUGE, 10**5000)),
    *(Value(t(0.5), 0.5) for t in (np.float16, np.float32, np.float64, np.longdouble, np.array)),
    *(Value(t(2), 2) for t in (np.int8, np.int64, np.uint64, np.array, torch.tensor, Two)),
    *(Value(t(NAN), NAN) for t in (np.float32, np.array, torch.tensor, Decimal)),
    *(Value(t(-1), -1) for t in (np.int32, torch.tensor)),
    *(Value(t("0.5"), 0.5) for t in (Fraction, Decimal)),
    Value(Fraction(HUGE, 3), HUGE // 3),
    Value(Decimal("1e400"), HUGE),
    Value(Decimal("sNaN"), HUGE),
    *(
        Value(torch.tensor(0.5, dtype=dtype), 0.5)
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
    ),
    Value(torch.tensor(0.5, requires_grad=True), 0.5),
    Value(nn.Parameter(torch.tensor(0.5)), 0.5),
    Value(torch.tensor(2, dtype=torch.uint8), 2),
]
NOT_NUMBERS = [
    Value(given)
    for given in (
        *(True, False, np.bool_(True), np.array(True), torch.tensor(True)),
        *("0.5", "1", "nan", b"1", np.str_("1"), bytearray(b"1")),
        *(1j, 1 + 0j, np.complex64(1), np.array(1 + 0j), torch.tensor(1 + 0j)),
        *([0.5], (0.5,), {0.5}, {"a": 0.5}, (0, 1), slice(1), range(2), object, object()),
        *(torch.tensor([0.5]), torch.ones(1, 1), torch.ones(3), torch.empty(0), np.array([0.5])),
        *(torch.tensor(0.5, device="meta"), torch.float32, Half(), Ellipsis, NotImplemented),
    )
]


# --- arguments -------------------------------------------------------------------------------------


class Argument(NamedTuple):
    """An argument of a public function."""

    call: Callable[[Any], Any]
    """Calls it with a value, and returns what came of it."""
    takes: Callable[[Any], bool]
    """Whether it takes a number."""
    whole: bool = False
    """Whether its type has to be that of whole numbers."""
    optional: bool | None = False
    """Whether it may be None, which then is as if it were not given."""
    also: tuple[Any, ...] = ()
    """What is no number and may be given all the same."""
    named: str = ""
    """What a message calls it, if not by its name."""
    error: type[Exception] = NumberRangeError
    """Of what is out of range."""


def finite(x: Any) -> bool:
    return bool(-INF < x < INF)


def positive(x: Any) -> bool:
    return 2.0**-126 <= x <= FLOAT32


def in_float32(x: Any) -> bool:
    return abs(x) <= FLOAT32


def gain(x: Any) -> bool:
    return 0 <= x <= FLOAT32


def seed(x: Any) -> bool:
    return 0 <= x < 2**64


def at_least(least: int) -> Callable[[Any], bool]:
    return lambda n: least <= n < 2**63


def anything(x: Any) -> bool:
    return True


def between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda x: low <= x <= high
