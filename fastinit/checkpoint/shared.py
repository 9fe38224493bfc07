"""Shared files: each written by several ranks, its own bytes by each, and put in place when all have.

The first rank makes the file, at its full size under a name of its own; each rank writes its runs there,
and has them on disk before it says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from fastinit.base.files import lock, named, partial_path, sync_directory
from fastinit.checkpoint.disk import CHUNK
from fastinit.checkpoint.many import Ranks, divided
from fastinit.checkpoint.ranges import Ranges
from fastinit.checkpoint.safetensors import Shard
from fastinit.checkpoint.shard_bytes import Done, make
from fastinit.checkpoint.sources import Held
from fastinit.elements.pieces import Piece
from fastinit.elements.strided import Strided, row_major


class Division:
    """Files to be written, or read, and which of several ranks does that, larger ones first.

    Of files that take several ranks it is the owner who writes what any could.
    """

    def __init__(self, shards: Sequence[Shard], those: Ranks) -> None:
        self.shards, self.here = shards, those.here
        whose = divided([shard.size for shard in shards], those.size)
        self.owners = {shard.file: rank for shard, rank in zip(shards, whose)}

    @property
    def own(self) -> list[Shard]:
        """The files that are this rank's alone."""
        mine = [shard for shard in self.shards if self.owners[shard.file] == self.here]
        return [shard for shard in mine if not shard.is_apart]

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(shard.size for shard in self.shards)

    @property
    def mine(self) -> int:
        """Bytes that are this rank's to write."""
        apart = (shard for shard in self.shards if shard.is_apart)
        share = sum(share_bytes(shard, self.here, self.owners[shard.file]) for shard in apart)
        return share + sum(shard.size for shard in self.own)


class Shares:
    """Files that ranks write together. Leaving its block, their maker removes what is not in place."""

    def __init__(self) -> None:
        self._made: dict[Path, int] = {}

    def make(self, partial: Path, path: Path, size: int) -> None:
        """Makes a file of a size, which will be at ``path``, as the one rank that does."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with named(path, partial):
            self._made[partial] = descriptor = os.open(partial, flags, 0o666)
            lock(descriptor)
            os.ftruncate(descriptor, size)

    def publish(self, partial: Path, path: Path) -> None:
        """Puts a file in its place, which all ranks have written."""
        descriptor = self._made[partial]
        with named(path, partial):
            os.fsync(descriptor)
            os.replace(partial, path)
        del self._made[partial]
        os.close(descriptor)
        sync_directory(path.parent)

    def __enter__(self) -> Shares:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for path, descriptor in self._made.items():
            os.close(descriptor)
            path.unlink(missing_ok=True)


def write_share(
    partial: Path, path: Path, shard: Shard, rank: int, owner: int, ranges: Ranges, done: Done
) -> float:
    """Writes a rank's bytes of a file, and returns the seconds in which the disk was at work.

    Args:
        path: where it will be.
        owner: the rank that writes the header, and what every rank could.
    """
    with named(path, partial), _Open(partial) as file:
        if rank == owner:
            file.put(shard.header, 0)
            done.add(len(shard.header))
        begin = len(shard.header)
        for stored in shard.tensors:
            source = stored.source
            if isinstance(source.content, Held):
                for piece in pieces(stored.block, source.content.pieces(source.name)):
                    _put_piece(file, begin, piece, source.dtype, done)
            elif rank == (owner if source.by is None else source.by):
                stop = begin + stored.nbytes
                data = bytearray(min(CHUNK, stored.nbytes))
                for at in range(begin, stop, CHUNK):
                    size = min(CHUNK, stop - at)
                    out = torch.frombuffer(data, dtype=torch.uint8, count=size)
                    make(shard, at, at + size, out, ranges)
                    file.put(memoryview(data)[:size], at)
                    done.add(size)
            begin += stored.nbytes
    return file.busy


def share_bytes(shard: Shard, rank: int, owner: int) -> int:
    """How many bytes :func:`write_share` writes."""
    size = len(shard.header) if rank == owner else 0
    for stored in shard.tensors:
        source = stored.source
        if isinstance(source.content, Held):
            held = pieces(stored.block, source.content.pieces(source.name))
            size += sum(piece.which.numel for piece in held) * source.dtype.itemsize
        elif rank == (owner if source.by is None else source.by):
            size += stored.nbytes
    return size


def pieces(block: Strided | None, held: Iterator[Piece]) -> Iterator[Piece]:
    """What of some pieces of a source is in a block of it, counted in the block's own order."""
    assert block is not None
    strides = row_major(block.sizes)
    for piece in held:
        if (common := piece.common(block)) is not None:
            steps = zip(common.which.start, block.start, strides)
            offset = sum((place - start) * stride for place, start, stride in steps)
            yield Piece(common.tensor, Strided(offset, common.which.sizes, strides))


class _Open:
    """A file that is there, to be written at any place; on disk when its block is left."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY)
        self.busy = 0.0

    def put(self, data: bytes | memoryview, at: int) -> None:
        begun = time.perf_counter()
        view = memoryview(data)
        while len(view):
            count = os.pwrite(self._descriptor, view, at)
            view, at = view[count:], at + count
        self.busy += time.perf_counter() - begun

    def __enter__(self) -> _Open:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        begun = time.perf_counter()
        try:
            if error is None:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
        self.busy += time.perf_counter() - begun


def _put_piece(file: _Open, begin: int, piece: Piece, dtype: torch.dtype, done: Done) -> None:
    """Writes elements where they belong in the bytes of a tensor, in runs that are consecutive there."""
    each = dtype.itemsize
    for tensor, (offset, sizes, strides) in piece.cut(CHUNK // each):
        data = memoryview(bytearray(tensor.numel() * each))
        torch.frombuffer(data, dtype=dtype).view(tensor.shape).copy_(tensor)
        run, dims = 1, len(sizes)
        while dims and (sizes[dims - 1] == 1 or strides[dims - 1] == run):
            dims -= 1
            run *= sizes[dims]
        places = Strided(offset, tuple(sizes[:dims]), tuple(strides[:dims]))
        for i, place in enumerate(places.numbers().flatten().tolist()):
            file.put(data[i * run * each : (i + 1) * run * each], begin + place * each)
        done.add(len(data))


@contextmanager
def mark(folder: Path, those: Ranks) -> Iterator[str]:
    """The name of a file that other ranks find in the directory, if it is the same one."""
    if those.size == 1:
        yield "."
        return
    path = partial_path(folder / "ranks")
    with open(path, "xb") as file:
        lock(file.fileno())
        try:
            yield path.name
        finally:
            path.unlink(missing_ok=True)


def check_shared(folder: Path, name: str, those: Ranks) -> None:
    """Raises OSError unless a directory has the first rank's :func:`mark` in it, for all of them."""
    if not (folder / name).exists():
        raise OSError(f"{folder} must be on a file system that all ranks share")
    those.told(None, "a checkpoint: all see its directory")  # until then the mark has to stay
