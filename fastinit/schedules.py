"""Schedules: by what factor each layer changes the variance, by its place in the order."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[int], float]
"""The place of a layer, from 0 on, to the factor between its output's variance and the one before.

It is n Var[W] / 2 in He et al. (2015), equation 10: the signal neither grows nor fades over the whole
net if the product over all layers is 1.
"""


def alternating(factor: float) -> Schedule:
    """``factor`` and its reciprocal in turn: the product over an even number of layers is 1.

    Raises:
        ValueError: a factor that is not positive.

    >>> [alternating(1.25)(place) for place in range(3)]
    [1.25, 0.8, 1.25]
    """
    if not factor > 0:
        raise ValueError(f"factor must be positive, but got {factor}")
    return lambda place: 1.0 / factor if place % 2 else factor
