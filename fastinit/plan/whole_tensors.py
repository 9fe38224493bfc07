"""Distributions of whole tensors: functions of ``fastinit.init`` that a Fill may name, as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from fastinit.base import number
from fastinit.fills.identity_and_sparse import dirac_, eye_, sparse_
from fastinit.fills.orthogonal import delta_orthogonal_, orthogonal_
from fastinit.stream import laws


class Structure(NamedTuple):
    """A row of the table. ``*p`` are the function's parameters, in its order."""

    parameters: tuple[str, ...]
    check: Callable[..., tuple[float, ...]]
    """Of ``*p`` as a user gives them: as floats. Raises as ``fastinit.base.number``."""
    write: Callable[..., Tensor]
    """Of (tensor, ``*p``); and of ``seed=`` and ``name=`` where it is random."""
    is_random: bool
    rms: Callable[[Sequence[int]], float]
    """Of a shape: the root mean square of the values, up to a factor that all shapes have in common."""


def _rms_of_norm_1(shape: Sequence[int]) -> float:
    """Of a matrix of norm 1 or a convolution's centre: values get smaller with the larger size."""
    return 1 / math.sqrt(max(shape[:2]))


def _gain(gain: float) -> tuple[float]:
    return (number.multiplier("gain", gain, negative=True),)


def _groups(groups: float) -> tuple[float]:
    count = number.positive("groups", groups)
    if not count.is_integer():
        number.out_of_range("groups", "a positive whole number", groups)
    return (count,)


STRUCTURES = {
    "orthogonal": Structure(
        ("gain",),
        _gain,
        orthogonal_,
        is_random=True,
        rms=lambda shape: _rms_of_norm_1((shape[0], math.prod(shape[1:]))),
    ),
    "delta_orthogonal": Structure(
        ("gain",), _gain, delta_orthogonal_, is_random=True, rms=_rms_of_norm_1
    ),
    "sparse": Structure(
        ("sparsity", "std"),
        lambda share, std: (number.share("sparsity", share), laws.normal(0.0, std).p1),
        sparse_,
        is_random=True,
        rms=lambda shape: 1.0,
    ),
    "eye": Structure((), lambda: (), eye_, is_random=False, rms=_rms_of_norm_1),
    "dirac": Structure(
        ("groups",),
        _groups,
        lambda tensor, groups: dirac_(tensor, int(groups)),
        is_random=False,
        rms=_rms_of_norm_1,
    ),
}
"""By the name of the function, without its underscore."""
