"""What programs around the kernels that count are given, and what is right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from same_bits import drawn
from torch import Tensor

from fastinit.backends.contract import Reading
from fastinit.statistics.counting import rows_of
from fastinit.statistics.reading import readings_of
from fastinit.stream import reference_counts, reference_moments
from fastinit.stream.formats import BY_E4M3, BY_TENSOR, FORMATS, Counting

AT_ONCE = Counting(("e4m3", "mxfp8"), True)
"""Of what is counted as it is measured, one of each kind."""
BEHIND = Counting(("e4m3_tensor", "nvfp4", "mxfp4"), True)
BY_CHANNEL = Counting(("float16", "e5m2"), True)
ALL = {
    "at once": tuple(n for n, row in FORMATS.items() if row.scaling not in (BY_TENSOR, BY_E4M3)),
    "behind": tuple(FORMATS),
    "by channel": tuple(name for name, row in FORMATS.items() if not row.scaling),
}

ROUND = {2: 8192, 4: 4096, 8: 1024}
"""Values of a warp's whole rounds (csrc/cuda/rows.cuh) by their bytes; there are none of float64."""

FORMAT = np.dtype(
    [
        *((name, "f8") for name in ("kept", "normal", "over")),
        ("over_itself", "?"),
        *((name, "i4") for name in ("scaling", "block")),
        ("largest", "f4"),
        ("exponent", "i4"),
    ],
    align=True,
)
COUNTING = np.dtype([("formats", "i4"), ("histogram", "?"), ("format", FORMAT, 16)], align=True)


class Case(NamedTuple):
    """What is read of one tensor, and what is right: int64 [width] or [channels, width]."""

    reading: Reading
    behind: bool
    """Whether it is counted when it has been measured."""
    raw: Tensor
    counts: Tensor


def as_bytes(counting: Counting) -> bytes:
    """Counting in csrc/counts.h as C++ lays it out."""
    how = np.zeros((), COUNTING)
    how["formats"], how["histogram"] = len(counting.formats), counting.histogram
    for i, row in enumerate(counting.rows):
        how["format"][i] = row.numbers()
    return how.tobytes()


def tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors by what is special about them: with zeros and what is not finite in all."""
    x = drawn(ROUND[dtype.itemsize] + 70, seed=0, reach=12).to(dtype)
    x[::97] = 0
    x[5::509] = math.nan
    x[6::509] = -math.inf
    least = torch.tensor([0.0, 1e-40, -1e-38, 3e-8, 6e-5]).to(dtype)
    return {
        "neighbours": x,
        "not aligned": x[1:],
        "small": least.repeat(20),
        "nothing finite": x[5:6],
        "every third": x[:400][::3],
        "short rows": x[:360].view(6, 60),
        "rows apart": x[:960].view(10, 96)[:, 8:72],
        "turned": x[:480].view(5, 96).t(),
        "three dimensions": x[:900].view(3, 20, 15)[::2, 3:17, 1:9],
    }


def cases(counting: Counting, behind: bool, dtypes: Sequence[torch.dtype]) -> Iterator[Case]:
    """Each tensor whole, and by channel where nothing is scaled."""
    for dtype in dtypes:
        for x in tensors(dtype).values():
            raw = torch.empty(reference_moments.FIELDS, dtype=torch.float64)
            in_a_row = x.dim() == 1 or (x.is_contiguous() and x.shape[-1] % 32 == 0)
            if counting.in_blocks and (behind or not in_a_row):
                if not behind:
                    continue  # in another read
                yield from (case(one, True, counting) for one in rows_of(x, raw, []))
            else:
                yield from (case(one, behind, counting) for one in readings_of(x, None, raw, []))
        if behind and not counting.is_scaled:
            x = drawn(40, 35, seed=1, reach=9).to(dtype)
            x[3, 4], x[:, 5], x[7] = math.inf, 1e4, 0
            for columns in (x, x[:7, 1:4]):
                raw = torch.empty(columns.shape[1], reference_moments.FIELDS, dtype=torch.float64)
                yield from (case(one, True, counting) for one in readings_of(columns, 1, raw, []))


def case(reading: Reading, behind: bool, counting: Counting) -> Case:
    view = reading.tensor.as_strided(reading.shape, reading.strides)
    raw = reference_moments.moments(view, reading.by_column, reference_moments.FIELDS)
    counts = reference_counts.counts(view, reading.by_column, counting, raw)
    return Case(reading, behind, raw, counts)
