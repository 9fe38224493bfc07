"""Checkpoint bytes: those of a shard computed, a part at a time, and a file compared with them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from fastinit.checkpoint import disk as stream_file
from fastinit.checkpoint.ranges import Range, Ranges
from fastinit.checkpoint.safetensors import Shard
from fastinit.plan.write import Progress


class Done:
    """How much of the work is done, and who is told."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.so_far = total, progress, 0

    def add(self, size: int) -> None:
        self.so_far += size
        if self.progress is not None:
            self.progress(self.so_far, self.total)


def make(shard: Shard, start: int, stop: int, out: Tensor, ranges: Ranges) -> None:
    """Writes bytes ``start`` to ``stop`` of a shard."""
    if start < len(shard.header):
        header = bytearray(shard.header[start:stop])
        out[: len(header)] = torch.frombuffer(header, dtype=torch.uint8)
    ranges.write(
        [
            Range(tensor, first, out[at - start :][: (last - first) * each].view(dtype))
            for tensor, first, last, at in shard.within(start, stop)
            for dtype in (tensor.source.dtype,)
            for each in (dtype.itemsize,)
        ]
    )


def first_wrong(path: Path, shard: Shard, ranges: Ranges, done: Done) -> int | None:
    """The first byte of a file that is not the shard's, or None. The disk is read, not the cache."""
    size = min(stream_file.CHUNK, shard.size)
    read = bytearray(size)
    have, want = torch.frombuffer(read, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    with open(path, "rb", buffering=0) as file, memoryview(read) as view:
        _advise(file.fileno(), 0, 0, "POSIX_FADV_DONTNEED")
        for start in range(0, shard.size, size):
            length = min(size, shard.size - start)
            _advise(file.fileno(), start, length, "POSIX_FADV_WILLNEED")  # while it is computed
            make(shard, start, start + length, want[:length], ranges)
            got = 0
            while got < length and (count := file.readinto(view[got:length])):
                got += count
            different = have[:got] != want[:got]
            if different.any():
                return start + int(different.nonzero()[0])
            if got < length:
                return start + got
            done.add(length)
    return None


def _advise(descriptor: int, start: int, length: int, advice: str) -> None:
    if hasattr(os, advice):
        os.posix_fadvise(descriptor, start, length, getattr(os, advice))
