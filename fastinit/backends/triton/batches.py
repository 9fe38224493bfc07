"""Batches: readings that one launch can measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastinit.backends.contract import Reading


class Batch(NamedTuple):
    """Equal readings at equal distances, such as the channels of a tensor: measured in one launch."""

    reading: Reading
    readings: int
    pitch: int  # from one's values to the next's
    raw_pitch: int


def batches(readings: Sequence[Reading]) -> list[Batch]:
    """The readings in their order, neighbours together where they are of one tensor."""
    found: list[Batch] = []
    last: Reading | None = None
    for r in readings:
        if last is not None and _alike(last, r):
            pitches = (_apart(last.tensor, r.tensor), _apart(last.raw, r.raw))
            batch = found[-1]
            if batch.readings == 1 or pitches == (batch.pitch, batch.raw_pitch):
                found[-1] = Batch(batch.reading, batch.readings + 1, *pitches)
                last = r
                continue
        found.append(Batch(r, 1, 0, 0))
        last = r
    return found


def _alike(a: Reading, b: Reading) -> bool:
    """Whether they differ in nothing but their place in the same memory."""
    return (
        not (a.by_column or b.by_column)
        and a.tensor.dtype == b.tensor.dtype
        and (a.shape, a.strides) == (b.shape, b.strides)
        and _memory(a.tensor) == _memory(b.tensor)
        and _memory(a.raw) == _memory(b.raw)
    )


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _apart(a: Tensor, b: Tensor) -> int:
    return int(b.storage_offset() - a.storage_offset())
