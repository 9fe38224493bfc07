"""Coverage: whether parts of a parameter have every element of it, and each once."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence

import torch

from fastinit.elements.part import Part, Runs
from fastinit.elements.strided import Strided


def gap(shape: Sequence[int], parts: Sequence[Part]) -> tuple[tuple[int, ...], int] | None:
    """(the first index, in row-major order, that is not in one part exactly; in how many it is).

    None if each is in one. The dimensions are cut where any part begins or ends; what is counted is then
    cells, of which there are few, and not elements.

    >>> gap((4, 6), [Part((4, 6)).chunk(0, 2, 0), Part((4, 6), flat=(12, 12))])
    >>> gap((4, 6), [Part((4, 6)).chunk(0, 2, 0), Part((4, 6), flat=(13, 11))])
    ((2, 0), 0)
    """
    if 0 in shape:
        return None
    boxes = [box for part in parts for box in _boxes(part)]
    cuts = [
        sorted({0, size, *(place for box in boxes for a, n in box[dim] for place in (a, a + n))})
        for dim, size in enumerate(shape)
    ]
    count = torch.zeros([len(places) - 1 for places in cuts], dtype=torch.int32)
    for box in boxes:
        for runs in itertools.product(*box):
            cells = [
                slice(bisect_left(places, a), bisect_left(places, a + n))
                for places, (a, n) in zip(cuts, runs)
            ]
            count[tuple(cells)] += 1
    wrong = (count != 1).nonzero()
    if not len(wrong):
        return None
    first = tuple(wrong[0].tolist())
    return tuple(places[cell] for places, cell in zip(cuts, first)), int(count[first])


def has(part: Part, index: Sequence[int]) -> bool:
    """Whether a part has an element."""
    return any(
        all(any(a <= i < a + n for a, n in runs) for i, runs in zip(index, box))
        for box in _boxes(part)
    )


def _boxes(part: Part) -> list[tuple[Runs, ...]]:
    """The runs of each dimension, whose combinations it has; of a flat range several."""
    if part.flat is None:
        return [part.runs] if part.numel else []
    start, length = part.flat
    boxes: list[tuple[Runs, ...]] = []
    for run in Strided.contiguous(part.shape).numbered(start, start + length):
        block = run.block(part.shape)
        assert block is not None
        boxes.append(tuple(((place, size),) for place, size in zip(block.start, block.sizes)))
    return boxes
