"""The contract: what a backend is given, checked and real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from fastinit.stream.laws import Law


class Write(NamedTuple):
    """One window to fill, checked and real: what a backend sees."""

    tensor: Tensor
    law: Law
    seed: int
    stream: int
    strides: tuple[int, ...]
    offset: int


class Reading(NamedTuple):
    """One tensor to measure: what a backend sees.

    Its dimensions in the order of memory, or the channels' (of stride 1) last and each channel for
    itself; and the float64 tensor, on the same device, where the raw moments go (csrc/moments.h).
    """

    tensor: Tensor
    shape: Sequence[int]
    strides: Sequence[int]
    by_column: bool
    raw: Tensor
