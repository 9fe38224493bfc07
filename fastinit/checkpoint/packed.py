"""Packed: what a file holds of a weight in a block format, made in ranges without the rest of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Packed:
    """The packed values of a run of a parameter's elements, or the scales of its blocks.

    Args:
        fill: of one law. stream: the name of its numbers.
        shape: of the parameter. start: its first element that is in the run.
        format: as of :class:`fastinit.Blocks`.
        scales: these, and not the values.
    """

    fill: Fill
    stream: str
    shape: tuple[int, ...]
    start: int
    format: str
    scales: bool

    def write_(self, out: Tensor, start: int, seed: int) -> None:
        """Writes bytes ``start``, ``start + 1``, ... to uint8 [bytes]: whole blocks are made."""
        block = FORMATS[self.format].block
        per, stop = 1 if self.scales else bytes_of(block, self.format), start + len(out)
        last, step = -(-stop // per), AT_ONCE // block
        for first in range(start // per, last, step):
            count = min(step, last - first)
            blocks = Blocks.empty((count * block,), self.format)
            run = self.start + first * block, count * block
            part = Part((math.prod(self.shape),), ((run,),))
            fill_many_([Request(blocks, self.fill.law, seed, stream_id(self.stream), part)])
            made = (blocks.scale if self.scales else blocks.data).view(torch.uint8)
            low, high = max(start, first * per), min(stop, (first + count) * per)
            out[low - start : high - start] = made[low - first * per : high - first * per]


def bytes_of(values: int, format: str) -> int:
    """How many bytes packed values take."""
    return values if ELEMENTS[format] else values // 2
