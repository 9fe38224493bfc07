"""What the PTX tests fill: windows into buffers at addresses like a GPU's, and the bytes they expect."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from ptx_memory import Memory
from same_bits import bits, sentinel
from same_bits import reference as by_reference

from fastinit.backends.choose import native
from fastinit.stream import laws, reference
from fastinit.stream.laws import Law
from fastinit.stream.rounding import FLOAT8

LAWS = (
    laws.uniform(-0.3, 0.7),
    laws.normal(0.5, 2.0),
    laws.truncated_normal(0.1, 0.5, -3.0, 3.0),  # about one in 250 values from the tails
    laws.constant(0.1),
)
SEED, STREAM = 0x9ABC_DEF0_1234_5678, 0xFEDC_BA98_7654_3210


class Window(NamedTuple):
    """A window into a buffer of one tensor's elements.

    Rows of dimension 0 lie ``apart``, further than memory reaches: each is a buffer of its own.
    """

    size: tuple[int, ...]
    local: tuple[int, ...]
    start: int  # elements before it in the buffer
    strides: tuple[int, ...]
    offset: int = 0
    apart: int = 0

    @property
    def elements(self) -> int:
        """Of the buffer: three behind the window."""
        return 4 + self.start + sum((n - 1) * step for n, step in zip(self.size, self.local))

    def buffers(self) -> list[tuple[int, int, int]]:
        """For each buffer its place, and where in the compact tensor it begins and ends."""
        if not self.apart:
            return [(0, 0, self.elements)]
        step = self.local[0]
        return [(i * self.apart, i * step, (i + 1) * step) for i in range(self.size[0])]


WINDOWS = {
    "whole tiles": Window((3 * 4096,), (1,), 0, (1,)),
    "head, whole tiles, tail": Window((9001,), (1,), 15, (1,), 3),
    # It does not begin on 16 bytes of a small type.
    "whole tiles before and behind a carry": Window((11_000,), (1,), 0, (1,), 2**34 - 5004),
    "odd start and length": Window((1001,), (1,), 3, (1,), 5),
    "misaligned": Window((203,), (1,), 1, (1,), 8),
    "every third place": Window((205,), (3,), 2, (1,), 1),
    "rows of 30 in 33": Window((11, 30), (33, 1), 1, (30, 1)),
    "transposed": Window((53, 37), (1, 53), 0, (37, 1)),
    "column shard": Window((41, 5), (5, 1), 0, (64, 1), (1 << 40) + 7),
    "aligned column shard": Window((9, 7), (8, 1), 0, (64, 1), 16),
    "3-D": Window((5, 7, 11), (11, 55, 1), 0, (200, 20, 1), 6),
    "4-D, reversed": Window((2, 3, 4, 5), (1, 2, 6, 24), 3, (60, 20, 5, 1)),
    "no neighbours": Window((9, 21), (21, 1), 0, (100, 3), 11),
    "a carry": Window((300,), (1,), 0, (1,), 2**34 - 150),
    "the last elements": Window((300,), (1,), 0, (1,), 2**63 - 300),
    "rows far apart in the stream": Window((7, 30), (30, 1), 0, (1 << 33, 1), (1 << 39) + 12345),
    "rows far apart in memory": Window((3, 30), (34, 1), 2, (30, 1), 0, 2**33 + 4),
    "an element": Window((), (), 2, (), 77),
}
LARGE = Window((2**32 + 4096,), (1,), 0, (1,), 4)


class Fill(NamedTuple):
    window: str
    law: Law
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def shape(self) -> Window:
        return LARGE if self.window == "large" else WINDOWS[self.window]

    def local(self) -> tuple[int, ...]:
        w = self.shape
        return (w.apart, *w.local[1:]) if w.apart else w.local

    def address(self, index: int) -> int:
        """Where the buffer of the ``index``-th fill lies: high words that are not alike."""
        return 0x1000_0000_0000 + (index << 39)

    def request(self, index: int) -> tuple[Any, ...]:
        """As the native backend makes it."""
        w = self.shape
        place = self.address(index) + w.start * self.bytes
        fill = native.prepared(self.law, self.dtype)
        return (fill, place, SEED, STREAM, w.offset, w.size, self.local(), w.strides)


END = ("large", LAWS[0], torch.float32)


@cache
def expected(fill: Fill) -> bytes:
    """The compact buffer as the reference leaves it."""
    window = fill.shape
    base = sentinel(window.elements, fill.dtype)
    view = base.as_strided(window.size, window.local, window.start)
    params = laws.kernel_params(fill.law, fill.dtype)
    with by_reference():
        reference.fill(view, fill.law.kind, params, SEED, STREAM, window.strides, window.offset)
    return bits(base).numpy().tobytes()


def every_fill(windows: Sequence[str] = tuple(WINDOWS)) -> list[Fill]:
    laws_and_dtypes = [*product(LAWS, laws.DTYPES), *product(LAWS[1:2], FLOAT8)]
    laws_and_dtypes += zip((laws.scaled(law, 0.3) for law in LAWS), FLOAT8)
    return [Fill(w, law, dtype) for w in windows for law, dtype in laws_and_dtypes]


def add_buffers(memory: Memory, fills: Sequence[Fill]) -> None:
    for i, fill in enumerate(fills):
        for place, begin, end in fill.shape.buffers():
            memory.add(fill.address(i) + place * fill.bytes, (end - begin) * fill.bytes)


def differing(memory: Memory, fills: Sequence[Fill]) -> list[Fill]:
    """The fills whose buffers are not what the reference makes of them, to the byte."""
    wrong = []
    for i, fill in enumerate(fills):
        for place, begin, end in fill.shape.buffers():
            got = memory[fill.address(i) + place * fill.bytes]
            if got != expected(fill)[begin * fill.bytes : end * fill.bytes]:
                wrong.append(fill)
    return wrong


def end_of_a_large_tensor() -> tuple[Fill, int, Memory]:
    """The fill of 16 GiB, of which the last elements are there; how many; and the memory."""
    fill, behind, memory = Fill(*END), 3 * 4096, Memory()
    place = (fill.shape.size[0] - behind) * fill.bytes
    memory.add(fill.address(0) + place, behind * fill.bytes)
    return fill, behind, memory


def end_is_right(memory: Memory) -> bool:
    fill, behind, _ = end_of_a_large_tensor()
    want, place = torch.empty(behind, dtype=fill.dtype), fill.shape.size[0] - behind
    params = laws.kernel_params(fill.law, fill.dtype)
    with by_reference():
        offset = fill.shape.offset + place
        reference.fill(want, fill.law.kind, params, SEED, STREAM, (1,), offset)
    return memory[fill.address(0) + place * fill.bytes] == bits(want).numpy().tobytes()
