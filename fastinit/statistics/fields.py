"""The moments of a set of values: the numbers, and how they merge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor

from fastinit.base import number, ranks
from fastinit.statistics import across
from fastinit.statistics.derived import DERIVED, HIGHER, derived
from fastinit.statistics.formats import Counts, Histogram, Shares, Value, all_of, asked_of
from fastinit.statistics.plain import counts_of, plain_counts, raw_of
from fastinit.stream.formats import NOTHING, Counting
from fastinit.stream.reference_moments import ALL_FIELDS, merged

if TYPE_CHECKING:
    from typing_extensions import Self


class Fields(ABC, Generic[Value]):
    """What :class:`Moments` and :class:`ChannelMoments` have in common: each field, a ``Value``."""

    _DIMS: int
    """Of ``raw``."""

    def __init__(
        self,
        raw: Tensor,
        correction: float = 1,
        parts: across.Parts = (None,),
        counts: Counts | None = None,
    ) -> None:
        if raw.dim() != self._DIMS:
            raise ValueError(
                f"raw must have {self._DIMS} dimensions in {type(self).__name__}, but has shape "
                f"{tuple(raw.shape)}"
            )
        self.raw, self.correction = raw, number.finite("correction", correction)
        self.parts, self.counts = parts, counts
        self._known: Tensor | None = None

    @abstractmethod
    def _value(self, field: str) -> Value:
        """What users see of a field that is there."""

    @property
    def higher(self) -> bool:
        """Whether the higher moments are there."""
        return self.raw.shape[-1] == ALL_FIELDS

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of all that there are."""
        return DERIVED + HIGHER if self.higher else DERIVED

    def _get(self, field: str) -> Value:
        if field not in self.fields:
            raise AttributeError(
                f"{field} takes more than these moments have: measure with higher=True"
            )
        return self._value(field)

    def _derived(self) -> Tensor:
        """All fields, [fields, ...]; waits for the device once."""
        if self._known is None:
            self._known = derived(self.raw, self.correction)
        return self._known

    @property
    def count(self) -> Value:
        """How many values are finite."""
        return self._get("count")

    @property
    def mean(self) -> Value:
        """NaN where no value is finite."""
        return self._get("mean")

    @property
    def var(self) -> Value:
        """The sum of squared distances from the mean over count - correction; NaN without any.

        0 exactly where all values are the same: what is smaller than float64's least normal number
        (2.2e-308) is given as that, and what is larger than its largest as infinity.
        """
        return self._get("var")

    @property
    def std(self) -> Value:
        """The square root of ``var``."""
        return self._get("std")

    @property
    def min(self) -> Value:
        """Infinity where no value is finite."""
        return self._get("min")

    @property
    def max(self) -> Value:
        """Minus infinity where no value is finite."""
        return self._get("max")

    @property
    def absmax(self) -> Value:
        """The largest absolute value; minus infinity where no value is finite."""
        return self._get("absmax")

    @property
    def rms(self) -> Value:
        """The root of the mean square; NaN where no value is finite, and of float64 whose variance
        float64 does not hold: of values beyond about 1e150, or below 1e-150."""
        return self._get("rms")

    @property
    def l2(self) -> Value:
        """The root of the sum of squares; NaN of float64 as ``rms``."""
        return self._get("l2")

    @property
    def crest(self) -> Value:
        """The crest factor, ``absmax / rms``; NaN where all values are 0, and as ``rms``."""
        return self._get("crest")

    @property
    def l1(self) -> Value:
        """The sum of absolute values; infinite where float64 does not hold it."""
        return self._get("l1")

    @property
    def absmean(self) -> Value:
        """``l1 / count``; NaN where no value is finite."""
        return self._get("absmean")

    @property
    def smallest(self) -> Value:
        """The least absolute value above 0; infinity where there is none."""
        return self._get("smallest")

    @property
    def dynamic_range(self) -> Value:
        """log2 of ``absmax / smallest``, in binades; NaN where no value is other than 0."""
        return self._get("dynamic_range")

    @property
    def skewness(self) -> Value:
        """The mean cube of distances from the mean, over that of their squares to the power 1.5.

        Of the values, without a correction: 0 if they are symmetric. NaN where all are the same, which
        have no shape; and of float64 where the sum of fourth powers leaves its range (of distances
        beyond about 1e77, or below 1e-77).
        """
        return self._get("skewness")

    @property
    def kurtosis(self) -> Value:
        """The mean fourth power of distances from the mean, over their mean square squared.

        Of the values, without a correction: 3 for a normal law, 1.8 for a uniform one. NaN as
        ``skewness``.
        """
        return self._get("kurtosis")

    @property
    def zeros(self) -> Value:
        """How many values are 0 (or -0)."""
        return self._get("zeros")

    @property
    def nonfinite(self) -> Value:
        """How many values are infinite or NaN."""
        return self._get("nonfinite")

    @property
    def formats(self) -> dict[str, Shares[Value]]:
        """What each format that was asked for would do to the finite values; empty if none was."""
        return {} if self.counts is None else self.counts.shares(self.count)

    @property
    def histogram(self) -> Histogram[Value] | None:
        """How many values there are of each exponent, if that was asked for."""
        bins = None if self.counts is None else self.counts.bins()
        return None if bins is None else Histogram(bins, self.zeros, self.absmax)

    def merge(self, *others: Self) -> Self:
        """The moments of these values and the others' together, as of micro-batches.

        Raises:
            ValueError: the others have another number of channels, other counts, or only some the
                higher moments.
        """
        raw = self.raw
        for other in others:
            if other.raw.shape[:-1] != raw.shape[:-1]:
                raise ValueError(
                    f"others must have moments of shape {tuple(raw.shape)}, "
                    f"but got {tuple(other.raw.shape)}"
                )
            raw = merged(raw, other.raw.to(raw.device))
        counts = all_of([self.counts, *(other.counts for other in others)])
        parts = self.parts + tuple(part for other in others for part in other.parts)
        return self._like(raw, parts if any(parts) else (None,), counts)

    def all_merge(self, group: ranks.Group = None) -> Self:
        """The moments of all ranks' values together, the same bits on every rank; a small collective.

        Each rank's values add up, as those of its batch. Moments that were taken with ``part=``, or of a
        DTensor, know which elements they are of: those that several ranks hold count once, and must be
        the same values, which have the same moments to the bit. Parts without a name are of the same
        parameters on all ranks.

        Args:
            group: a process group or device mesh that this rank is in; by default all ranks. Without
                torch.distributed, this process alone.

        Raises:
            ValueError: on every rank: parts that overlap and are not the same; ranks with other values
                of the same part; parts without a name of other full shapes; parts on some ranks only;
                another number of channels; ``higher`` or counts on some ranks only.
            RuntimeError: a rank has failed, or has ended (:mod:`fastinit.base.ranks`).

        >>> Moments(torch.tensor([3.0, 1, 0, 1, 1, 0, 0])).all_merge().count
        3.0
        """
        share, parts = across.all_merged(self._share(), self.parts, group)
        raw, fields, counts = share.all().to(self.raw.device), self.raw.shape[-1], self.counts
        if counts is not None:
            counts = Counts(counts.asked, raw[:, fields:].long().view(counts.numbers.shape))
        return self._like(raw[:, :fields], parts, counts)

    @property
    def row(self) -> Tensor:
        """All that merges: raw moments, and counts behind them; float64 [..., fields]."""
        if self.counts is None:
            return self.raw
        return torch.cat((self.raw, self.counts.numbers.double()), dim=-1)

    @abstractmethod
    def _share(self) -> across.Share:
        """Which channels' moments these are, of all there are."""

    @abstractmethod
    def _like(self, raw: Tensor, parts: across.Parts, counts: Counts | None) -> Self:
        """Other moments, [channels, fields], as these."""


class Moments(Fields[float]):
    """The moments of a set of values.

    Every field is a float. Infinities and NaN are counted in ``nonfinite`` and enter nothing else.
    Looking at a field waits for the device.

    Args:
        raw: float64 of shape [7]: count, mean, sum of squared distances from the mean, min, max, zeros,
            nonfinite. Or [11]: also the sum of absolute values, the least of them above 0, and the sums
            of third and fourth powers of distances from the mean.
        correction: what is taken from the count in the variance's denominator (1: unbiased).
        parts: of each tensor that was measured which elements of a parameter these are; None where that
            is not known, or they are none.
        counts: what was counted beside them.

    Raises:
        NumberTypeError, NumberRangeError: a correction that is no number, or not finite.
        ValueError: raw moments of channels.
    """

    _DIMS = 1
    _numbers: dict[str, float] | None = None

    @classmethod
    def of_rows(cls, rows: Tensor, counted: Counting = NOTHING) -> list[Moments]:
        """One for each ``row``, [n, fields]; cheaper than one by one."""
        raws, numbers = rows.tensor_split([rows.shape[-1] - counted.width], dim=-1)
        found = [cls(raw) for raw in raws.unbind()]
        names = found[0].fields if found else ()
        for one, known in zip(found, derived(raws, 1).t().tolist()):
            one._numbers = dict(zip(names, known))
        if counted.width:
            for one, some in zip(found, numbers.long()):
                one.counts = Counts(counted, some)
        return found

    def _values(self) -> dict[str, float]:
        if self._numbers is None:
            self._numbers = dict(zip(self.fields, self._derived().tolist()))
        return self._numbers

    def _value(self, field: str) -> float:
        return self._values()[field]

    def plain(self) -> dict[str, Any]:
        """All fields by their names; ``formats`` and ``histogram`` if they were asked for."""
        counts = {} if self.counts is None else plain_counts(self.formats, self.histogram)
        return self._values() | counts

    @classmethod
    def of_plain(cls, plains: Sequence[Mapping[str, Any]]) -> list[Moments]:
        """Of what :meth:`plain` gave, of correction 1: to the last digits of float64, counts exactly.

        Numbers may be as JSON has them (:func:`fastinit.statistics.plain.number_of`).
        """
        if not plains:
            return []
        raws = [raw_of(plain) for plain in plains]
        found = cls.of_rows(torch.tensor(raws, dtype=torch.float64, device="cpu"))
        for one, plain in zip(found, plains):
            one.counts = counts_of(plain)
        return found

    def _share(self) -> across.Share:
        return across.Share.of(self.row, 1, [(0, 1)], asked_of(self.counts))

    def _like(self, raw: Tensor, parts: across.Parts, counts: Counts | None) -> Self:
        return type(self)(raw.view(-1), self.correction, parts, counts)

    def __repr__(self) -> str:
        fields = ("count", "mean", "std", "min", "max", "zeros", "nonfinite")
        return f"Moments({', '.join(f'{name}={getattr(self, name):.6g}' for name in fields)})"


class ChannelMoments(Fields[Tensor]):
    """The moments of each channel's values: as :class:`Moments`, but of shape [channels].

    Every field is a float64 CPU tensor.

    Args:
        raw: float64 of shape [channels, 7], or [channels, 11].
        correction, parts, counts: as of :class:`Moments`.
        dim: along which the channels lie in the parameter that the values are a part of.
    """

    _DIMS = 2

    def __init__(
        self,
        raw: Tensor,
        correction: float = 1,
        parts: across.Parts = (None,),
        dim: int = 0,
        counts: Counts | None = None,
    ) -> None:
        super().__init__(raw, correction, parts, counts)
        self.dim = number.integer("dim", dim)

    def _value(self, field: str) -> Tensor:
        return self._derived()[self.fields.index(field)]

    def _share(self) -> across.Share:
        channels = len(self.raw)
        held = {
            (channels, ((0, channels),)) if p is None else (p.shape[self.dim], p.runs[self.dim])
            for p in self.parts
        }
        if len(held) > 1:
            raise ValueError(
                "moments of the channels of different parts have no channels in common"
            )
        ((channels, runs),) = held
        return across.Share.of(self.row, channels, runs, asked_of(self.counts))

    def _like(self, raw: Tensor, parts: across.Parts, counts: Counts | None) -> Self:
        return type(self)(raw, self.correction, parts, self.dim, counts)

    def __repr__(self) -> str:
        return f"ChannelMoments({self.raw.shape[0]} channels)"
