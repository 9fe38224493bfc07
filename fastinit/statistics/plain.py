"""Moments as plain numbers, which JSON has, and back: the one place that knows both forms."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import torch

from fastinit.statistics.formats import Counts, Histogram, Shares
from fastinit.stream.formats import BINS, FIRST_EXPONENT, SHARES, Counting
from fastinit.stream.reference_moments import (
    ALL_FIELDS,
    COUNT,
    FIELDS,
    LEAST,
    M2,
    M3,
    M4,
    MAX,
    MEAN,
    MIN,
    NONFINITE,
    SIZES,
    ZEROS,
)

_BIN = {
    str(exponent): bin for bin, exponent in enumerate(range(FIRST_EXPONENT, FIRST_EXPONENT + BINS))
}
"""Of each exponent of a histogram, which bin it is."""


def json_number(value: float) -> float | str | None:
    """As JSON has it: NaN (what is not there) as None, infinities as strings."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def number_of(plain: Any) -> float:
    """As JSON had it."""
    return math.nan if plain is None else float(plain)


def plain_counts(
    shares: Mapping[str, Shares[float]], histogram: Histogram[float] | None
) -> dict[str, Any]:
    """What there is of both."""
    found: dict[str, Any] = {}
    if shares:
        found["formats"] = {name: share.plain() for name, share in shares.items()}
    if histogram is not None:
        found["histogram"] = histogram.plain()
    return found


def counts_of(plain: Mapping[str, Any]) -> Counts | None:
    """The counts of what is plain, if it has any: the same integers.

    Raises:
        ValueError, KeyError: there is no such format or exponent.
    """
    shares, bins = plain.get("formats", {}), plain.get("histogram")
    counting = Counting.of(list(shares), bins is not None)
    if not counting.width:
        return None
    count = number_of(plain["count"])
    numbers = [
        round(number_of(three[name]) * count) if count else 0
        for three in shares.values()
        for name in SHARES
    ]
    if bins is not None:
        some = [0] * BINS
        for exponent, number in bins.items():
            some[_BIN[exponent]] = number
        numbers += some
    return Counts(counting, torch.frombuffer(array("q", numbers), dtype=torch.int64))


def raw_of(plain: Mapping[str, Any]) -> list[float]:
    """Raw moments of what is plain."""
    count, mean, var, low, high, zeros, nonfinite = (
        number_of(plain[field])
        for field in ("count", "mean", "var", "min", "max", "zeros", "nonfinite")
    )
    higher = "kurtosis" in plain
    raw = [0.0] * (ALL_FIELDS if higher else FIELDS)
    raw[COUNT], raw[MIN], raw[MAX], raw[ZEROS], raw[NONFINITE] = count, low, high, zeros, nonfinite
    raw[MEAN] = mean if count else 0.0
    raw[M2] = m2 = var * (count - 1) if count > 1 else 0.0
    if higher:
        raw[SIZES], raw[LEAST] = number_of(plain["l1"]), number_of(plain["smallest"])
        if plain["kurtosis"] is not None:  # else it has no shape, as when both are 0
            raw[M3] = number_of(plain["skewness"]) * m2 * math.sqrt(m2 / count)
            raw[M4] = number_of(plain["kurtosis"]) * m2 * (m2 / count)
    return raw
