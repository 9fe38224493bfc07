"""Packed: what a file holds of a weight in a block format, made in ranges without the rest of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastinit.elements.part import Part
from fastinit.fills.blocks import Blocks
from fastinit.fills.many import Request, fill_many_
from fastinit.plan.fill import Fill
from fastinit.stream.blocks import ELEMENTS
from fastinit.stream.formats import FORMATS
from fastinit.stream.keys import stream_id

AT_ONCE = 1 << 22
"""Values that are made at once, of which data or scales are then copied."""

KEPT = 1 << 26
"""Blocks of the largest weight whose scales are kept, as its values are made, until they are asked."""


class Kept:
    """Scales of a weight's blocks that were made with its values: files have them behind these."""

    def __init__(self) -> None:
        self._of: Packed | None = None
        self._scales = torch.empty(0, dtype=torch.uint8)
        self._run = (0, 0)

    def add(self, scales: Packed, first: int, made: Tensor) -> None:
        """Keeps those of blocks ``first``, ``first + 1``, ..., with those before if they go on there."""
        if scales.blocks > KEPT:
            return
        if scales != self._of:
            self._of, self._run = scales, (first, first)
            self._scales = torch.empty(scales.blocks, dtype=torch.uint8)
        stop = first + len(made)
        self._scales[first:stop] = made
        low, high = self._run
        self._run = (low, max(high, stop)) if low <= first <= high else (first, stop)

    def taken(self, scales: Packed, first: int, count: int) -> Tensor | None:
        """Those of so many blocks, if they are known."""
        is_known = scales == self._of and self._run[0] <= first and first + count <= self._run[1]
        return self._scales[first : first + count] if is_known else None


@dataclass(frozen=True)
class Packed:
    """The packed values of a run of a parameter's elements, or the scales of its blocks.

    Args:
        fill: of one law. stream: the name of its numbers.
        shape: of the parameter. start: its first element that is in the run.
        format: as of :class:`fastinit.Blocks`.
        scales: these, and not the values. blocks: how many there are in the run.
    """

    fill: Fill
    stream: str
    shape: tuple[int, ...]
    start: int
    format: str
    scales: bool
    blocks: int

    def write_(self, out: Tensor, start: int, seed: int, kept: Kept) -> None:
        """Writes bytes ``start``, ``start + 1``, ... to uint8 [bytes]: whole blocks are made.

        Args:
            kept: what is known of scales with this seed.
        """
        block = FORMATS[self.format].block
        per, stop = 1 if self.scales else bytes_of(block, self.format), start + len(out)
        last, step = -(-stop // per), AT_ONCE // block
        for first in range(start // per, last, step):
            count = min(step, last - first)
            made = kept.taken(self, first, count) if self.scales else None
            if made is None:
                blocks = Blocks.empty((count * block,), self.format)
                run = self.start + first * block, count * block
                part = Part((math.prod(self.shape),), ((run,),))
                fill_many_([Request(blocks, self.fill.law, seed, stream_id(self.stream), part)])
                made = (blocks.scale if self.scales else blocks.data).view(torch.uint8)
                if not self.scales:
                    kept.add(replace(self, scales=True), first, blocks.scale.view(torch.uint8))
            low, high = max(start, first * per), min(stop, (first + count) * per)
            out[low - start : high - start] = made[low - first * per : high - first * per]


def bytes_of(values: int, format: str) -> int:
    """How many bytes packed values take."""
    return values if ELEMENTS[format] else values // 2
