"""Dead units: channels or features whose values never vary, or whose gradient is 0 throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastinit.stream.reference_moments import ZEROS

PLACES = (1.0, 0.5, 0.3, 0.7)  # of a unit's values, that are looked at first: mostly one is enough
SAMPLE = 16  # values of a unit that are looked at before all of them are


@dataclass(slots=True)
class Units:
    """The extremes of each unit's values, over all calls: enough to tell which units are dead.

    Of outputs, those whose values are all the same; of gradients, those whose values are all 0.

    Attributes:
        of_gradients: which of the two.
        high, low: [units], in the values' dtype, on their device; None before there is a need.
        values: how many there were of each unit.
        alive: whether all units are known to be alive.
    """

    of_gradients: bool
    high: Tensor | None = None
    low: Tensor | None = None
    values: int = 0
    alive: bool = False

    def add(self, x: Tensor, dim: int, raw: Tensor) -> None:
        """Takes up the values of one call.

        A few of them mostly show that all units are alive. All are read only where they do not, and on
        devices that would have to be waited for to know.

        Args:
            x: floating-point, of any shape.
            dim: its dimension of units.
            raw: the moments of x, [fields].
        """
        values = x.numel() // max(x.shape[dim], 1)
        self.values += values
        if self.alive or not x.numel():
            return
        on_cpu = x.device.type == "cpu"
        if on_cpu:
            none_is_still = self.of_gradients and raw[ZEROS].item() < values
            self.alive = none_is_still or _differs_on_the_way(x, dim, self.of_gradients)
            if self.alive:
                return
        high, low = _extremes(_sample(x, dim) if on_cpu else x, dim)
        if on_cpu and self._dead(high, low).any():
            high, low = _extremes(x, dim)
        self.widen(high, low)
        assert self.high is not None
        assert self.low is not None
        self.alive = on_cpu and not self._dead(self.high, self.low).any()

    def widen(self, high: Tensor, low: Tensor) -> None:
        """Takes up each unit's largest and smallest value."""
        if self.high is None or self.low is None:
            self.high, self.low = high, low
        else:
            self.high, self.low = torch.maximum(self.high, high), torch.minimum(self.low, low)

    def still(self) -> Tensor | None:
        """Float64 [units]: the value of a unit whose values are all the same (of gradients, all 0).

        NaN of the others; None if there is no such unit, or that is not known.
        """
        if self.alive or self.high is None or self.low is None:
            return None
        same = self._dead(self.high, self.low)
        return torch.where(same, self.high.to(torch.float64), torch.nan)

    def _dead(self, high: Tensor, low: Tensor) -> Tensor:
        return (high == 0) & (low == 0) if self.of_gradients else high == low


def _sample(x: Tensor, dim: int) -> Tensor:
    """A view with some SAMPLE values of each unit, from all over its dimensions."""
    index = [slice(None)] * x.dim()
    left = SAMPLE
    for d in range(x.dim()):
        if d != dim % x.dim():
            step = -(-x.shape[d] // left)
            index[d] = slice(None, None, step)
            left = max(left // -(-x.shape[d] // step), 1)
    return x[tuple(index)]


def _differs_on_the_way(x: Tensor, dim: int, from_zero: bool) -> bool:
    """Whether each unit has another value than 0, or than its first, at some of a few places."""
    index: list[Any] = [0] * x.dim()
    index[dim] = slice(None)
    first = 0 if from_zero else x[tuple(index)]
    differs: Tensor | None = None
    for share in PLACES:
        for d in range(x.dim()):
            if d != dim % x.dim():
                index[d] = int(share * (x.shape[d] - 1))
        here = x[tuple(index)] != first
        differs = here if differs is None else differs.logical_or_(here)
        if differs.all():
            return True
    return False


def _extremes(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Each unit's largest and smallest value, [units] each."""
    rows = x.movedim(dim, 0)
    if x.numel() <= SAMPLE * rows.shape[0]:  # cheap to copy, and then one reduction does
        low, high = rows.reshape(rows.shape[0], -1).aminmax(dim=1)
        return high, low
    others = list(range(1, x.dim()))
    return (rows.amax(others), rows.amin(others)) if others else (rows, rows)
