"""Difference: a parameter that two plans initialise otherwise."""

from __future__ import annotations

from typing import NamedTuple

from fastinit.plan.fill import Fill
from fastinit.plan.replay import Computed


class Difference(NamedTuple):
    """A parameter that two plans initialise differently; None where one lacks it."""

    name: str
    ours: Fill | Computed | None
    other: Fill | Computed | None

    def __str__(self) -> str:
        def said(fill: Fill | Computed | None) -> str:
            if fill is None:
                return "none"
            return str(fill) if not fill.std > 0 else f"{fill}, std {fill.std:.4g}"

        ours, other = said(self.ours), said(self.other)
        if ours == other:  # what was said does not tell them apart
            ours, other = repr(self.ours), repr(self.other)
            if ours == other:
                other += ", with other parts or values"
        return f"{self.name}: {ours}; other: {other}"
