"""Laws, dtypes and places that the number stream is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from same_bits import ISAS, TRITON

from fastinit.stream import laws

DTYPES = (*laws.WRITTEN, *laws.COMPLEX)

LAWS = (
    laws.uniform(),
    laws.uniform(-0.1, 0.3),
    laws.normal(),
    laws.normal(-1.5, 0.02),
    laws.truncated_normal(),
    laws.truncated_normal(0.1, 0.02, -2.0, 2.0),
    laws.truncated_normal(a=3.0, b=9.0),
    laws.constant(0.1),
    laws.constant(math.nan),
)


EVERYWHERE = (*ISAS, *TRITON)


def pairs(names: Iterable[Any], dtypes: Sequence[torch.dtype]) -> list[Any]:
    """Each name with each dtype, on each build.

    In Triton's interpreter always each name with one dtype, in turn: where a value goes, what it is
    and how it is stored are apart in its program. The other pairs are slow.
    """
    found = []
    for i, name in enumerate(names):
        for j, dtype in enumerate(dtypes):
            where, id_ = EVERYWHERE if i % len(dtypes) == j else ISAS, f"{name}-{dtype}"
            found.append(pytest.param(name, dtype, where, id=id_))
            if where != EVERYWHERE:
                slow = pytest.param(name, dtype, TRITON, id=f"{id_}-triton", marks=pytest.mark.slow)
                found.append(slow)
    return found
