"""What was counted of a tensor: shares of values that a number format would lose, and a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastinit.base import number
from fastinit.stream.formats import BINS, FIRST_EXPONENT, NOTHING, SHARES, Counting
from fastinit.stream.reference_counts import power
from fastinit.stream.reference_moments import merged

Value = TypeVar("Value", float, Tensor)
"""A number, or a float64 CPU tensor of shape [channels]."""


class Counts(NamedTuple):
    """Numbers of values, which add up.

    Attributes:
        asked: what was counted.
        numbers: int64 [width], or [channels, width].
    """

    asked: Counting
    numbers: Tensor

    def shares(self, count: Value) -> dict[str, Shares[Value]]:
        """Of each format, of ``count`` values."""
        formats = self.asked.formats
        numbers = self.numbers[..., : len(SHARES) * len(formats)].double().cpu()
        shares = numbers / torch.as_tensor(count, dtype=torch.float64, device="cpu").unsqueeze(-1)
        each: Any = shares.tolist() if isinstance(count, float) else shares.unbind(-1)
        starts = range(0, len(each), len(SHARES))
        return {name: Shares(*each[i : i + len(SHARES)]) for name, i in zip(formats, starts)}

    def bins(self) -> Tensor | None:
        """int64 [bins] or [channels, bins] on the CPU; None where they were not asked for."""
        return self.numbers[..., -BINS:].cpu() if self.asked.histogram else None


def asked_of(counts: Counts | None) -> Counting:
    """What was counted."""
    return NOTHING if counts is None else counts.asked


def all_of(some: Sequence[Counts | None]) -> Counts | None:
    """Those of all together, if there are any.

    Raises:
        ValueError: other things were counted of some.
    """
    first, *others = map(asked_of, some)
    for asked in others:
        if asked != first:
            one, other = (
                f"{list(a.formats)}{' and a histogram' * a.histogram}" for a in (first, asked)
            )
            raise ValueError(f"moments merge if the same was counted, but it was {one} and {other}")
    numbers = [counts.numbers for counts in some if counts is not None]
    if not numbers:
        return None
    return Counts(first, torch.stack([n.to(numbers[0].device) for n in numbers]).sum(0))


def merged_rows(a: Tensor, b: Tensor, counted: int) -> Tensor:
    """Rows of raw moments and, behind these, ``counted`` counts: of both sets together, [..., n]."""
    if not counted:
        return merged(a, b)
    fields = a.shape[-1] - counted
    first = [merged(a[..., :fields], b[..., :fields])] if fields else []
    return torch.cat((*first, a[..., fields:] + b[..., fields:]), dim=-1)


@dataclass(frozen=True)
class Shares(Generic[Value]):
    """What a number format would do to values, as shares of those that are finite.

    Attributes:
        flushed: values other than 0 that would become 0.
        saturated: those that would round to more than the format's largest number. They get that, or
            become infinite or NaN, as whoever converts has it.
        subnormal: those that would become subnormal numbers, of fewer digits.
    """

    flushed: Value
    saturated: Value
    subnormal: Value

    def plain(self) -> dict[str, Value]:
        """By their names."""
        return {name: getattr(self, name) for name in SHARES}


@dataclass(frozen=True)
class Histogram(Generic[Value]):
    """How many values there are of each exponent: of magnitudes, without zeros.

    Attributes:
        counts: int64 [255], or [channels, 255]. Bin i holds those in [2^(i - 127), 2^(i - 126)), but the
            first one all below 2^-126, and the last one all finite from 2^127 on.
        zeros: how many values are 0.
        absmax: the largest magnitude.
    """

    counts: Tensor
    zeros: Value
    absmax: Value

    def quantile(self, q: float) -> Value:
        """The magnitude that a share ``q`` of the finite values does not exceed.

        It is the one of rank ceil(q n) of the n in their order, within its bin put where it would be if
        the logarithms there were spread evenly: off by a factor of less than 2 in all bins but the first
        and the last, exactly 0 where it is 0, and never more than ``absmax``. NaN of nothing.

        Args:
            q: from 0 to 1.

        Raises:
            NumberTypeError, NumberRangeError: q is no number from 0 to 1.
        """
        rank, before, inside, low, high = self._place(q)
        place = (rank - before - 0.5) / inside
        start = low.clamp(min=2.0**-149).log2()
        value = torch.exp2(start + place * (high.log2() - start))
        value = torch.minimum(torch.maximum(value, low), high)
        found: Value = self._value(torch.where(high > 0, value, high))
        return found

    def bounds(self, q: float) -> tuple[Value, Value]:
        """Between which magnitudes the quantile lies for certain: of its bin, up to ``absmax``."""
        *_, low, high = self._place(q)
        return self._value(low), self._value(high)

    def _place(self, q: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rank, how many values are below its bin and in it, and the bin's edges; 0 where it is 0."""
        q = number.share("q", q)
        zeros, absmax = (
            torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in (self.zeros, self.absmax)
        )
        counts = self.counts.double()
        up_to = zeros.unsqueeze(-1) + counts.cumsum(-1)
        rank = (q * up_to[..., -1]).ceil().clamp(min=1)
        bin = (up_to < rank.unsqueeze(-1)).sum(-1).clamp(max=BINS - 1)
        inside = counts.gather(-1, bin.unsqueeze(-1)).squeeze(-1)
        before = up_to.gather(-1, bin.unsqueeze(-1)).squeeze(-1) - inside
        low = power(bin + FIRST_EXPONENT)
        high = torch.minimum(2 * low, absmax)
        high = torch.where(bin == BINS - 1, absmax, high)
        low = torch.where(bin == 0, 0.0, low)
        is_zero, is_nothing = rank <= zeros, up_to[..., -1] == 0
        low, high = (torch.where(is_zero, 0.0, edge) for edge in (low, high))
        low, high = (torch.where(is_nothing, math.nan, edge) for edge in (low, high))
        return rank, before, inside, low, high

    def _value(self, value: Tensor) -> Any:
        return value.item() if self.counts.dim() == 1 else value

    def plain(self) -> dict[str, int]:
        """How many values have each exponent, as text: of bins that are not empty. Of one tensor."""
        bins = enumerate(self.counts.tolist(), FIRST_EXPONENT)
        return {str(exponent): count for exponent, count in bins if count}
