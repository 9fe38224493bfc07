"""Laws: what a value may be, and the float32 parameters that every backend's kernel takes.

A value is drawn in float32 and rounded to the tensor's dtype. Where that leaves the law's interval,
[a, b) of the uniform law and [a, b] of the truncated normal, it is the dtype's nearest value inside;
where the dtype has none inside, the nearest to a.

A :class:`Law` is what the user asked for, in doubles. :func:`kernel_params` turns it into the
kernel's ``Params`` for one dtype; that happens here only. What is different from law to law is a row of
``fastinit.stream.kinds``. A new one is a row, a code and a constructor, and its arithmetic in the three
forms of the stream (``csrc/stream.h``).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch

from fastinit.base import number
from fastinit.stream.kinds import KINDS, Params, check_normal, check_window
from fastinit.stream.rounding import FLOAT8, float32

UNIFORM, NORMAL, TRUNCATED_NORMAL, CONSTANT = range(len(KINDS))
"""The codes that kernels know a law by: its row in ``KINDS``."""
CODES = {kind.name: code for code, kind in enumerate(KINDS)}

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The real dtypes that kernels write and measure; the index is the code that they know a dtype by."""

WRITTEN = (*DTYPES, *FLOAT8)
"""Those that they write, some of them only, with their codes."""

COMPLEX = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}

EXACT = (torch.float64, torch.complex128)
"""The dtypes that values drawn in float64 may have."""

_traced = torch.compiler.is_dynamo_compiling


class Law(NamedTuple):
    """A distribution with its parameters: ``kind`` (a code above) and up to four numbers.

    uniform: a, b. normal: mean, std. truncated_normal: mean, std, a, b. constant: value. ``scale`` is
    what values are divided by where they are stored (:func:`scaled`); ``exact`` says whether they are
    drawn in float64 (:func:`exactly`).
    """

    kind: int
    p0: float
    p1: float = 0.0
    p2: float = 0.0
    p3: float = 0.0
    scale: float = 1.0
    exact: float = False  # a bool, which torch's operator hands on as a number

    @property
    def name(self) -> str:
        return KINDS[self.kind].name

    @property
    def arguments(self) -> tuple[float, ...]:
        """The parameters, in the order of the constructor's arguments."""
        return self[1 : 1 + len(KINDS[self.kind].parameters)]

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters by name, in the order of the constructor's arguments."""
        return dict(zip(KINDS[self.kind].parameters, self.arguments))

    @property
    def mean(self) -> float:
        """The expectation of a value, in double precision."""
        return KINDS[self.kind].moments(*self.arguments)[0]

    @property
    def std(self) -> float:
        """The standard deviation of a value, in double precision; of a truncated normal as truncated."""
        return KINDS[self.kind].moments(*self.arguments)[1]

    def affine(self, factor: float, shift: float) -> Law:
        """The law of ``factor * value + shift``, of finite numbers; a constant where the factor is 0.

        Raises:
            NumberRangeError: as the constructor, of the new parameters.
        """
        if factor == 0.0 and self.kind != CONSTANT:
            made = constant(shift)
        else:
            made = make(self.name, *KINDS[self.kind].affine(factor, shift, *self.arguments))
        return self._as_this(made)

    def split_complex(self) -> Law:
        """The law of the real and of the imaginary part of a complex value with this law's variance.

        As ``torch.Tensor.normal_`` does for complex tensors: each part has half the variance, and the
        mean. (torch's complex ``uniform_`` forgets to halve it.)
        """
        return self._as_this(Law(self.kind, *KINDS[self.kind].halved(*self.arguments)))

    def _as_this(self, other: Law) -> Law:
        """Another law, stored and drawn as this one."""
        return other._replace(scale=self.scale, exact=self.exact)

    def __str__(self) -> str:
        return KINDS[self.kind].text.format(*self.arguments) + (" in float64" if self.exact else "")


def make(name: str, *parameters: float) -> Law:
    """The law of a name, of as many numbers as it has parameters; raises as its constructor."""
    names = KINDS[CODES[name]].parameters
    return _kept(CODES[name], *map(number.real, names, parameters))


def uniform(a: float = 0.0, b: float = 1.0) -> Law:
    """The uniform law on [a, b).

    Raises:
        NumberRangeError: a or b is NaN or infinite, a > b, or b - a overflows float32.
        NumberTypeError: as every law, for what is no number (``fastinit.base.number``).
    """
    if type(a) is not float or type(b) is not float:
        a, b = number.real("a", a), number.real("b", b)
    return (_checked if _traced() else _kept)(UNIFORM, a, b)


def normal(mean: float = 0.0, std: float = 1.0) -> Law:
    """The normal law.

    Raises:
        NumberRangeError: std is negative, or mean or std is NaN, infinite or beyond float32.
    """
    if type(mean) is not float or type(std) is not float:
        mean, std = number.real("mean", mean), number.real("std", std)
    return (_checked if _traced() else _kept)(NORMAL, mean, std)


def truncated_normal(mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Law:
    """The normal law conditioned on [a, b]; a and b are values, not multiples of std.

    Either bound may be infinite.

    Raises:
        NumberRangeError: as :func:`normal`; or a or b is NaN, a > b, or [a, b] lies wholly more than
            8.9 standard deviations from the mean.
    """
    mean, std = number.real("mean", mean), number.real("std", std)
    checked = _checked if _traced() else _kept
    return checked(TRUNCATED_NORMAL, mean, std, number.real("a", a), number.real("b", b))


def truncated_normal_by_sigma(
    mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Law:
    """:func:`truncated_normal` with a and b in multiples of std, counted from the mean.

    Raises:
        NumberRangeError: as :func:`truncated_normal`.
    """
    mean, std = number.real("mean", mean), number.real("std", std)
    a, b = number.real("a", a), number.real("b", b)
    check_normal(mean, std, "trunc_normal_")
    check_window(a, b)
    # Of a std of 0 an infinite multiple is infinite, too, and not NaN.
    low, high = (x if abs(x) == math.inf else mean + x * std for x in (a, b))
    return truncated_normal(mean, std, low, high)


def constant(value: float) -> Law:
    """The constant law; value may be any float, NaN and infinities included. -0.0 is 0.0."""
    return Law(CONSTANT, number.real("value", value) + 0.0)


def scaled(law: Law, scale: float) -> Law:
    """The law, of whose values value / scale is stored: one float32 division, rounded once.

    Args:
        scale: positive, within float32's normal range and rounded to it.

    Raises:
        NumberTypeError, NumberRangeError: it is no such number.
    """
    return law._replace(scale=number.positive("scale", scale))


def exactly(law: Law, exact: bool) -> Law:
    """The law, whose values are drawn in float64 if so: of 53 random bits, by ``fastinit.stream.exact``.

    Raises:
        TypeError: ``exact`` is no bool.
    """
    return law._replace(exact=True) if number.flag("exact", exact) else law


def _checked(kind: int, *parameters: float) -> Law:
    KINDS[kind].check(*parameters)
    # Zero has no sign here: laws that are equal, as those of 0.0 and -0.0 are, give the same bits.
    return Law(kind, *[parameter + 0.0 for parameter in parameters])


# A net is initialised with few laws, each asked for many times. Dynamo traces the plain function:
# it would warn that it ignores the cache.
_kept = lru_cache(maxsize=4096)(_checked)


@lru_cache(maxsize=4096)
def kernel_params(law: Law, dtype: torch.dtype) -> Params:
    """The parameters with which a kernel draws ``law`` for a tensor of ``dtype``: float32 values.

    Of an exact law they are float64 values, for ``fastinit.stream.exact``.

    ``lo`` and ``hi`` are the dtype's first and last value in the law's interval. Rounding is monotonic:
    clamped to them before, no other values change than those that would be rounded out of the interval.
    Of a scaled law they are quotients, so that what is stored, times the scale, is in the interval.
    Of two zeros a backend's ``max`` may give either. ``lo`` is never -0.0 and ``hi`` never 0.0: then
    all ways of clamping agree.

    Raises:
        NumberRangeError: uniform bounds beyond the dtype, as ``torch.Tensor.uniform_`` does: there is
            nothing between its largest value and them.
        ValueError: as :func:`check_dtype`.
    """
    check_dtype(law, dtype)
    if law.exact:
        return KINDS[law.kind].exact_params(*law.arguments)
    return KINDS[law.kind].kernel_params(dtype, float32(law.scale), *law.arguments)


def check_dtype(law: Law, dtype: torch.dtype | str, argument: str = "tensor") -> None:
    """Raises ValueError for a law that no tensor of the dtype can have.

    Args:
        dtype: or the name of a block format.
        argument: what the error calls the tensor.
    """
    if law.scale != 1.0 and dtype not in FLOAT8:
        raise ValueError(
            f"scale is for float8 dtypes, but got scale={law.scale} and {argument} of {dtype}"
        )
    if law.exact and dtype not in EXACT:
        raise ValueError(
            f"exact=True is for float64 and complex128 dtypes, but {argument} is {dtype}"
        )
