"""Global and shared memory of ptxrun.py, and what a kernel must not do there."""

from __future__ import annotations

from typing import Any

import numpy as np
from ptx_operations import Fault, Words
from ptx_threads import Threads

NOBODY, SEVERAL = -1, -2
READ, WRITTEN, ADDED, BOTH = range(4)  # what a buffer is for
FOR = {READ: "read", WRITTEN: "written", ADDED: "added to"}


def rounded_up(size: int, to: int) -> int:
    return -(-size // to) * to


class Access:
    """Who was at each byte: the thread, its block, and how many barriers that had passed."""

    def __init__(self, size: int) -> None:
        self.who, self.block, self.barriers = np.full((3, size), NOBODY, np.int32)

    def apart(self, each: Any, threads: Threads, size: int) -> Any:
        """Of each byte, whether it was nobody's, the same thread's, or there was a barrier since."""
        blocks, who = np.repeat(threads.blocks, size), self.who[each]
        passed = self.barriers[each] != np.repeat(threads.barriers, size)
        mine = (who == NOBODY) | (who == np.repeat(threads.ids, size))
        return mine | (self.block[each] == blocks) & passed

    def note(self, each: Any, threads: Threads, size: int) -> None:
        """Keeps one of those who are at a byte now."""
        self.who[each] = np.repeat(threads.ids, size)
        self.block[each] = np.repeat(threads.blocks, size)
        self.barriers[each] = np.repeat(threads.barriers, size)


class Watch:
    """Of memory that threads share, what they must not do without a barrier between them."""

    def __init__(self, size: int) -> None:
        self.filled = np.zeros(size, bool)
        self.forget()

    def forget(self) -> None:
        """Another kernel begins: what was written is there for all."""
        self.writers, self.readers, self.adders = (Access(len(self.filled)) for _ in range(3))

    def load(self, threads: Threads, starts: Any, size: int) -> None:
        self._join(self.readers, [self.writers, self.adders], threads, starts, size)

    def add(self, threads: Threads, starts: Any, size: int) -> None:
        """As one operation, so that several may at once."""
        self._join(self.adders, [self.writers, self.readers], threads, starts, size)

    def _join(
        self, mine: Access, others: list[Access], threads: Threads, starts: Any, size: int
    ) -> None:
        each = (starts[:, None] + np.arange(size)).ravel()
        if not self.filled[each].all():
            raise Fault("memory read before it is written")
        for other in others:
            self._meet(other, each, threads, size)
        alone = mine.apart(each, threads, size)
        # Blocks never wait for each other: once several have read, nobody may write.
        blocks, before = np.repeat(threads.blocks, size), mine.block[each]
        several = (before != NOBODY) & (before != blocks)
        mine.note(each, threads, size)
        mine.block[each[several | (mine.block[each] != blocks)]] = SEVERAL
        mine.who[each[~alone | (mine.who[each] != np.repeat(threads.ids, size))]] = SEVERAL

    def store(self, threads: Threads, starts: Any, size: int) -> None:
        each = (starts[:, None] + np.arange(size)).ravel()
        for others in (self.writers, self.readers, self.adders):
            self._meet(others, each, threads, size)
        self.writers.note(each, threads, size)
        if (self.writers.who[each] != np.repeat(threads.ids, size)).any():
            raise Fault("two threads write the same memory")
        self.filled[each] = True

    def _meet(self, others: Access, each: Any, threads: Threads, size: int) -> None:
        if not others.apart(each, threads, size).all():
            raise Fault("two threads at the same memory, and no barrier between them")


class Memory:
    """Global memory: buffers at addresses of their own, and nothing between them.

    A buffer with contents can only be read. One without can only be written, each byte once;
    ``width`` tells by how wide a store each was. Scratch memory can be both.
    """

    def __init__(self) -> None:
        self.bytes = self.width = np.zeros(0, np.uint8)  # a multiple of 16 of them
        # By address: the size, the place in ``bytes``, what it is for, and the place in ``watch``.
        self.buffers: dict[int, tuple[int, int, int, int]] = {}
        self.table: tuple[Any, Any] | None = None  # the same, for where()
        self.watch = Watch(0)

    def add(self, address: int, contents: bytes | int) -> None:
        if isinstance(contents, int):
            self._add(address, np.full(contents, 0xA5, np.uint8), WRITTEN)
        else:
            self._add(address, np.frombuffer(contents, np.uint8), READ)

    def add_scratch(self, address: int, size: int, contents: bytes = b"") -> None:
        """With contents at its beginning, or nothing that could be read."""
        data = np.full(size, 0xA5, np.uint8)
        data[: len(contents)] = np.frombuffer(contents, np.uint8)
        self._add(address, data, BOTH)
        filled = np.append(self.watch.filled, np.arange(size) < len(contents))
        self.watch = Watch(len(filled))
        self.watch.filled = filled

    def add_sums(self, address: int, size: int) -> None:
        """Zeros, which can only be added to."""
        self._add(address, np.zeros(size, np.uint8), ADDED)

    def _add(self, address: int, data: Any, what: int) -> None:
        # As far from a multiple of 16 as the address: what is aligned there is so here.
        at, size = len(self.bytes) + address % 16, len(data)
        more = rounded_up(address % 16 + size, 16)
        self.bytes, self.width = (np.pad(a, (0, more)) for a in (self.bytes, self.width))
        self.bytes[at : at + size] = data
        self.buffers[address] = size, at, what, len(self.watch.filled)
        self.table = None

    def __getitem__(self, address: int) -> bytes:
        size, at, *_ = self.buffers[address]
        return self.bytes[at : at + size].tobytes()

    def widths(self, address: int) -> Any:
        size, at, *_ = self.buffers[address]
        return self.width[at : at + size]

    def where(self, addresses: Any, size: int, only: int) -> tuple[Any, Any, Any]:
        """Places in ``bytes`` of accesses of ``size`` bytes; which are of scratch memory; and their
        places in ``watch``.
        """
        if self.table is None:
            addresses_, rows_ = zip(*sorted(self.buffers.items()))
            self.table = np.array(addresses_, np.uint64), np.array(rows_, np.int64)
        starts, rows = self.table
        which = np.searchsorted(starts, addresses, side="right") - 1
        past = (addresses - starts[which]).astype(np.int64)  # wraps below the first: too far
        length, at, what, watched = rows[which].T
        within = (which >= 0) & (past >= 0) & (past + size <= length)
        shared = what == BOTH
        for bad, fault in (
            (addresses % np.uint64(size) != 0, "not aligned"),
            (~within, "in no buffer"),
            *((~shared & (what == w) & (w != only), f"to be {FOR[w]} only") for w in FOR),
        ):
            if bad.any():
                raise Fault(f"{size} bytes at {int(addresses[bad][0]):#x}: {fault}")
        return at + past, shared, watched + past

    def load(self, threads: Threads, addresses: Any, item: Any, count: int) -> list[Words]:
        size = item.itemsize * count
        at, shared, watched = self.where(np.atleast_1d(addresses), size, READ)
        if shared.any():
            shared, watched = (np.broadcast_to(a, threads.ids.shape) for a in (shared, watched))
            self.watch.load(threads.some(shared), watched[shared], size)
        at = at // item.itemsize
        return [self.bytes.view(item)[at + i] for i in range(count)]

    def store(self, threads: Threads, addresses: Any, values: list[Words]) -> None:
        item = values[0].dtype.itemsize
        size = item * len(values)
        addresses = np.broadcast_to(addresses, threads.ids.shape)
        at, shared, watched = self.where(addresses, size, WRITTEN)
        if shared.any():
            self.watch.store(threads.some(shared), watched[shared], size)
        once = at[~shared]
        each = (once[:, None] + np.arange(size)).ravel()
        if self.width[each].any() or len(np.unique(once)) != len(once):
            raise Fault("a byte written twice")
        self.width[each] = size
        for i, value in enumerate(values):
            self.bytes.view(f"u{item}")[at // item + i] = value

    def sum(self, threads: Threads, addresses: Any, value: Words) -> None:
        """Adds to integers."""
        addresses, value = (np.broadcast_to(a, threads.ids.shape) for a in (addresses, value))
        at, shared, watched = self.where(addresses, value.dtype.itemsize, ADDED)
        if shared.any():
            self.watch.add(threads.some(shared), watched[shared], value.dtype.itemsize)
        np.add.at(self.bytes.view(value.dtype), at // value.dtype.itemsize, value)


class Shared:
    """Shared memory of all thread blocks."""

    def __init__(self, size: int, blocks: int) -> None:
        self.size, self.each = size, rounded_up(size, 16)
        self.bytes = np.zeros(self.each * blocks, np.uint8)
        self.watch = Watch(len(self.bytes))

    def where(self, threads: Threads, addresses: Any, size: int) -> Any:
        """Places in ``bytes``."""
        addresses = np.broadcast_to(addresses, threads.ids.shape).astype(np.int64)
        if ((addresses % size != 0) | (addresses < 0) | (addresses + size > self.size)).any():
            raise Fault(f"{size} bytes of shared memory: not aligned, or behind its end")
        return threads.blocks * self.each + addresses

    def load(self, threads: Threads, addresses: Any, item: Any, count: int) -> list[Words]:
        at = self.where(threads, addresses, item.itemsize * count)
        self.watch.load(threads, at, item.itemsize * count)
        return [self.bytes.view(item)[at // item.itemsize + i] for i in range(count)]

    def store(self, threads: Threads, addresses: Any, values: list[Words]) -> None:
        item = values[0].dtype.itemsize
        at = self.where(threads, addresses, item * len(values))
        self.watch.store(threads, at, item * len(values))
        for i, value in enumerate(values):
            self.bytes.view(f"u{item}")[at // item + i] = value

    def sum(self, threads: Threads, addresses: Any, value: Words) -> None:
        """Adds to integers."""
        item = value.dtype.itemsize
        at = self.where(threads, addresses, item)
        self.watch.add(threads, at, item)
        value = np.broadcast_to(value, threads.ids.shape)
        np.add.at(self.bytes.view(value.dtype), at // item, value)
