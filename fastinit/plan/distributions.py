"""Distributions: all that a Fill may name, with their parameters, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from fastinit.base import number
from fastinit.plan.whole_tensors import STRUCTURES
from fastinit.stream import laws
from fastinit.stream.kinds import KINDS
from fastinit.stream.laws import Law

RAMP = "arange"
"""Each value follows from its index along a dimension."""

FUSED = "fused"
"""The parts, and nothing else."""

PARAMETERS: dict[str, tuple[str, ...]] = {
    **{kind.name: kind.parameters for kind in KINDS},
    **{name: structure.parameters for name, structure in STRUCTURES.items()},
    RAMP: ("start", "step", "dim"),
    FUSED: (),
}
"""Of each distribution, in the order of a Fill's."""


def check(distribution: str, given: Any) -> tuple[float, ...]:
    """The parameters of a distribution as floats.

    Raises:
        ValueError: an unknown distribution, or another number of parameters.
        NumberTypeError, NumberRangeError: as the law, or the function of whole tensors, has it.
    """
    if distribution not in PARAMETERS:
        known = ", ".join(PARAMETERS)
        raise ValueError(f"distribution must be one of {known}, but got {distribution!r}")
    names = PARAMETERS[distribution]
    if not isinstance(given, Iterable) or len(parameters := tuple(given)) != len(names):
        raise ValueError(
            f"{distribution} takes {len(names)} parameters ({', '.join(names)}), but got {given!r}"
        )
    if distribution in laws.CODES:
        checked = laws.make(distribution, *parameters).arguments
        # One NaN for all: then Fills of it are equal, as they give the same bits.
        return tuple([math.nan if value != value else value for value in checked])
    if distribution in STRUCTURES:
        return STRUCTURES[distribution].check(*parameters)
    return _ramp(*parameters) if distribution == RAMP else ()


@lru_cache(maxsize=4096)
def law(distribution: str, parameters: tuple[float, ...], scale: float, exact: bool) -> Law:
    """The law of a distribution of values, with a scale multiplied in."""
    # Asked for at each write of a model, whose parameters are of few laws.
    return laws.exactly(laws.make(distribution, *(scale * p for p in parameters)), exact)


def is_random(distribution: str) -> bool:
    """Whether any value is drawn; of a fused one its parts say it."""
    if distribution in STRUCTURES:
        return STRUCTURES[distribution].is_random
    return distribution not in ("constant", RAMP)


def _ramp(start: float, step: float, dim: float) -> tuple[float, float, float]:
    place = number.finite("dim", dim)
    if not place.is_integer():
        number.out_of_range("dim", "a whole number", dim)
    return number.finite("start", start) + 0.0, number.finite("step", step) + 0.0, place
