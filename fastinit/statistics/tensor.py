"""One-pass statistics of tensors: count, mean, variance, extremes, zeros and non-finite values.

One read of the data, no temporary of its size, and no wait for the device until a number is looked at.
The order of all sums is fixed, so the same tensor gives the same bits on every run, for every number of
threads, and on the native and triton backends alike. The reference sums in another order: it agrees to
float64's rounding, not in bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, overload

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.backends.contract import Reading
from fastinit.base import number
from fastinit.base import torch_internals as internals
from fastinit.elements import tensors
from fastinit.elements.strided import Strided
from fastinit.stream import laws
from fastinit.stream.reference_moments import (
    COUNT,
    FIELDS,
    M2,
    MAX,
    MEAN,
    MIN,
    NONFINITE,
    ZEROS,
    merged,
)

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_DIMS = 8
"""Dimensions that cannot be merged, of what a backend reads at once: csrc/kernels.h and backends/triton/
have no more."""


Value = TypeVar("Value", float, Tensor)
"""What a field is: a number, or a float64 CPU tensor of shape [channels]."""


class Fields(ABC, Generic[Value]):
    """What :class:`Moments` and :class:`ChannelMoments` have in common: each field, a ``Value``."""

    _DIMS: int
    """Of ``raw``."""

    def __init__(self, raw: Tensor, correction: float = 1) -> None:
        if raw.dim() != self._DIMS:
            raise ValueError(
                f"raw must have {self._DIMS} dimensions in {type(self).__name__}, but has shape "
                f"{tuple(raw.shape)}"
            )
        self.raw, self.correction = raw, number.finite("correction", correction)
        self._read: Tensor | None = None

    @staticmethod
    @abstractmethod
    def _plain(field: Tensor) -> Value:
        """What users see of a column of ``raw``."""

    def _field(self, column: int) -> Tensor:
        if self._read is None:
            self._read = self.raw.cpu()
        return self._read[..., column]

    @property
    def count(self) -> Value:
        """How many values are finite."""
        return self._plain(self._field(COUNT))

    @property
    def mean(self) -> Value:
        """NaN where no value is finite."""
        return self._plain(torch.where(self._field(COUNT) > 0, self._field(MEAN), math.nan))

    @property
    def var(self) -> Value:
        """The sum of squared distances from the mean over count - correction; NaN without any.

        0 exactly where all values are the same: what is smaller than float64's least normal number
        (2.2e-308) is given as that, and what is larger than its largest as infinity.
        """
        return self._plain(self._variance())

    @property
    def std(self) -> Value:
        """The square root of ``var``."""
        return self._plain(self._variance().sqrt())

    @property
    def min(self) -> Value:
        """Infinity where no value is finite."""
        return self._plain(self._field(MIN))

    @property
    def max(self) -> Value:
        """Minus infinity where no value is finite."""
        return self._plain(self._field(MAX))

    @property
    def absmax(self) -> Value:
        """The largest absolute value; minus infinity where no value is finite."""
        return self._plain(torch.maximum(self._field(MAX), -self._field(MIN)))

    @property
    def zeros(self) -> Value:
        """How many values are 0 (or -0)."""
        return self._plain(self._field(ZEROS))

    @property
    def nonfinite(self) -> Value:
        """How many values are infinite or NaN."""
        return self._plain(self._field(NONFINITE))

    def merge(self, *others: Self) -> Self:
        """The moments of these values and the others' together, as of micro-batches.

        Raises:
            ValueError: the others have another number of channels.
        """
        raw = self.raw
        for other in others:
            if other.raw.shape != raw.shape:
                raise ValueError(
                    f"others must have moments of shape {tuple(raw.shape)}, "
                    f"but got {tuple(other.raw.shape)}"
                )
            raw = merged(raw, other.raw.to(raw.device))
        return type(self)(raw, self.correction)

    def _variance(self) -> Tensor:
        left, differ = self._field(COUNT) - self.correction, self._field(MIN) < self._field(MAX)
        least = differ.to(torch.float64) * torch.finfo(torch.float64).smallest_normal
        return torch.where(left > 0, torch.maximum(self._field(M2) / left, least), math.nan)


class Moments(Fields[float]):
    """The moments of a set of values.

    Every field is a float. Infinities and NaN are counted in ``nonfinite`` and enter nothing else.
    Looking at a field waits for the device.

    Args:
        raw: float64 of shape [7]: count, mean, sum of squared distances from the mean, min, max, zeros,
            nonfinite.
        correction: what is taken from the count in the variance's denominator (1: unbiased).

    Raises:
        NumberTypeError, NumberRangeError: a correction that is no number, or not finite.
        ValueError: raw moments of channels.
    """

    _DIMS = 1

    @staticmethod
    def _plain(field: Tensor) -> float:
        return field.item()

    def __repr__(self) -> str:
        fields = ("count", "mean", "std", "min", "max", "zeros", "nonfinite")
        return f"Moments({', '.join(f'{name}={getattr(self, name):.6g}' for name in fields)})"


class ChannelMoments(Fields[Tensor]):
    """The moments of each channel's values: as :class:`Moments`, but of shape [channels].

    Every field is a float64 CPU tensor.

    Args:
        raw: float64 of shape [channels, 7].
        correction: as of :class:`Moments`.
    """

    _DIMS = 2

    @staticmethod
    def _plain(field: Tensor) -> Tensor:
        return field

    def __repr__(self) -> str:
        return f"ChannelMoments({self.raw.shape[0]} channels)"


@overload
def moments(x: Tensor, correction: float = 1, *, dim: None = None) -> Moments: ...
@overload
def moments(x: Tensor, correction: float = 1, *, dim: int) -> ChannelMoments: ...
def moments(
    x: Tensor, correction: float = 1, *, dim: int | None = None
) -> Moments | ChannelMoments:
    """The moments of a tensor.

    Sums are float64 (of 16-bit values, float32 over 32 of them), around a pivot where the mean is
    large: 12 digits and more of what float32 data have, std to 1e-6 of 16-bit data. So over the whole
    range of the dtype, whatever torch.set_flush_denormal says (but float64's own denormal numbers are
    then zeros wherever a field is read); a variance that float64 cannot hold is infinite, or its least
    normal number. A constant has variance exactly 0, and nothing else has.

    Args:
        x: any shape and strides; float16, bfloat16, float32 or float64. Of a DTensor this rank's part
            is measured, without communication; an asynchronous result is waited for.
        correction: 1 gives the unbiased variance (torch.var's default), 0 that of the values.
        dim: the dimension of channels, each of which is measured for itself.

    Raises:
        TypeError: x is not a tensor of these dtypes; dim or correction is no (whole) number.
        ValueError: x is on meta or fake: it has no values; a correction that is not finite.
        NotImplementedError: x is of a kind without plain memory (``fastinit.elements.tensors.memory``).
        RuntimeError: the memory of x was freed.
        IndexError: x has no such dimension.

    >>> moments(torch.tensor([1.0, 2.0, 3.0])).var
    1.0
    """
    if dim is None:
        return moments_many([x], correction)[0]
    return moments_many([x], correction, dim=dim)[0]


@overload
def moments_many(
    xs: Sequence[Tensor], correction: float = 1, *, dim: None = None
) -> list[Moments]: ...
@overload
def moments_many(
    xs: Sequence[Tensor], correction: float = 1, *, dim: int
) -> list[ChannelMoments]: ...
def moments_many(
    xs: Sequence[Tensor], correction: float = 1, *, dim: int | None = None
) -> list[Moments] | list[ChannelMoments]:
    """:func:`moments` of many tensors, in one launch or parallel region for each device.

    The triton backend launches two kernels for each tensor.
    """
    xs = [_checked(x, i) for i, x in enumerate(xs)]
    correction = number.finite("correction", correction)
    dim = None if dim is None else number.integer("dim", dim)
    for x in xs:
        if dim is not None and not -x.dim() <= dim < x.dim():
            raise IndexError(
                f"dim must be in the range of x's {x.dim()} dimensions, but got {number.said(dim)}"
            )
    raws: list[Tensor] = []
    readings: dict[torch.device, list[Reading]] = {}
    split: list[tuple[Tensor, Tensor]] = []
    with internals.without_modes(), torch.no_grad():
        for x in xs:
            shape = (FIELDS,) if dim is None else (x.shape[dim], FIELDS)
            raws.append(torch.empty(shape, dtype=torch.float64, device=x.device))
            tensors.memory(raws[-1], "the moments")
            readings.setdefault(x.device, []).extend(readings_of(x, dim, raws[-1], split))
        for device, some in readings.items():
            if some:  # a tensor without channels has nothing to read
                backends.choose_measuring(device).moments_many(some)
        for whole, parts in reversed(split):
            total = parts[0]
            for part in parts[1:]:
                total = merged(total, part)
            whole.copy_(total)
    if dim is None:
        return [Moments(raw, correction) for raw in raws]
    return [ChannelMoments(raw, correction) for raw in raws]


def _checked(x: Tensor, i: int) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype not in laws.DTYPES:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"x must be a float16, bfloat16, float32 or float64 tensor, but got {got} (number {i})"
        )
    return tensors.values(x, f"x (number {i})")


def readings_of(
    x: Tensor, dim: int | None, raw: Tensor, split: list[tuple[Tensor, Tensor]]
) -> Iterator[Reading]:
    """What is to be read, and where the moments of it go.

    Args:
        split: takes (result, results of its parts in their order) where x has more dimensions than a
            backend reads at once.
    """
    if dim is None:
        flat = Strided(0, (x.numel(),), (1,))
        _, shape, strides = flat if x.is_contiguous() else Strided.of(x).in_memory_order()
        if len(shape) <= MAX_DIMS:
            yield Reading(x, shape, strides, False, raw)
            return
        view = x.as_strided(shape, strides)
        fewest = min(range(len(shape)), key=shape.__getitem__)
        parts = raw.new_empty(shape[fewest], FIELDS)
        split.append((raw, parts))
        for part, result in zip(view.unbind(fewest), parts.unbind()):
            yield from readings_of(part, None, result, split)
        return
    channels = x.shape[dim]
    if channels == 0:
        return
    rest = x.select(dim, 0)
    _, shape, strides = Strided.of(rest).in_memory_order()
    if x.stride(dim) == 1 and channels > 1 and len(shape) < MAX_DIMS:
        yield Reading(x, [*shape, channels], [*strides, 1], True, raw)
        return
    for part, result in zip(x.unbind(dim), raw.unbind()):
        yield from readings_of(part, None, result, split)
