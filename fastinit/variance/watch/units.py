"""Dead units: channels or features whose values never vary, or whose gradient is 0 throughout."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.elements import tensors
from fastinit.stream import laws


@dataclass(slots=True)
class Units:
    """The extremes of each unit's values, over all calls: enough to tell which units are dead.

    Of outputs, those whose values are all the same; of gradients, those whose values are all 0.

    Attributes:
        of_gradients: which of the two.
        high, low: [units], on the values' device; infinite of units that are known to vary. None before
            there is a need.
        values: how many there were of each unit.
        alive: whether all units are known to be alive.
    """

    of_gradients: bool
    high: Tensor | None = None
    low: Tensor | None = None
    values: int = 0
    alive: bool = False

    def add(self, x: Tensor, dim: int) -> None:
        """Takes up the values of one call.

        On the CPU no more of them are read than show that all units are alive. A device would have to be
        waited for to know: there all are read.

        Args:
            x: floating-point, of any shape.
            dim: its dimension of units.
        """
        self.values += x.numel() // max(x.shape[dim], 1)
        if self.alive or not x.numel():
            return
        still = _still(x, dim, self.of_gradients)
        if still == []:
            self.alive = True
            return
        self.widen(*(_extremes(x, dim) if still is None else _known(still, x, dim)))
        assert self.high is not None
        assert self.low is not None
        self.alive = x.device.type == "cpu" and not self._dead(self.high, self.low).any()

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


def _still(x: Tensor, dim: int, of_gradients: bool) -> list[int] | None:
    """The units that :class:`Units` is after, of dense memory on the CPU; None says nothing."""
    if not x.is_contiguous():
        x, dim = x.movedim(dim, -1), -1
    address = tensors.plain_cpu_address(x)
    if not address or x.dtype not in laws.DTYPES or not backends.native_is_chosen():
        return None
    assert backends.native.module is not None  # it is chosen
    shape, dim = x.shape, dim % x.dim()
    found: list[int] = backends.native.module.still_units(
        laws.DTYPES.index(x.dtype),
        address,
        *(prod(shape[:dim]), shape[dim], prod(shape[dim + 1 :])),
        of_gradients,
    )
    return found


def _known(still: list[int], x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Each unit's largest and smallest value, as far as known if some are still: float64 [units]."""
    high = torch.full((x.shape[dim],), torch.inf, dtype=torch.float64, device="cpu")
    low, at = -high, torch.tensor(still, device="cpu")
    first = x.movedim(dim, -1)
    while first.dim() > 1:
        first = first[0]
    high[at] = low[at] = first[at].to(torch.float64)
    return high, low


def _extremes(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Each unit's largest and smallest value, [units] each."""
    rows = x.movedim(dim, 0)
    others = list(range(1, x.dim()))
    return (rows.amax(others), rows.amin(others)) if others else (rows, rows)
