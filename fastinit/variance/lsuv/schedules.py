"""Schedules: by what factor each layer changes the variance, by its place in the order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastinit.base import number

Schedule = Callable[[int], float]
"""The place of a layer, from 0 on, to the factor between its output's variance and the one before.

It is n Var[W] / 2 in He et al. (2015), equation 10: the signal neither grows nor fades over the whole
net if the product over all layers is 1.
"""


def alternating(factor: float) -> Schedule:
    """``factor`` and its reciprocal in turn: the product over an even number of layers is 1.

    Raises:
        NumberTypeError, NumberRangeError: a factor that is no number; not positive and finite.

    >>> [alternating(1.25)(place) for place in range(3)]
    [1.25, 0.8, 1.25]
    """
    return partial(_alternating, number.positive("factor", factor))


def _alternating(factor: float, place: int) -> float:
    return 1.0 / factor if place % 2 else factor
