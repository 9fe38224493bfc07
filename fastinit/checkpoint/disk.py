"""Stream file: bytes made in memory in turn with being written to disk, past the page cache.

A file has another name until all its bytes are on disk. The next chunk is made while the last are
written; what is in memory is a few chunks, whatever the file's size. For POSIX systems.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from fastinit.base.files import lock, named, partial_path, sync_directory
from fastinit.base.memory import advise_huge_pages

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

CHUNK = 32 << 20
"""Bytes that are made, and written, at once."""

_BUFFERS = 3  # one that is made, one that is written, and one between them
_BLOCK = 4096  # what a write past the page cache has to be a multiple of


def check_system() -> None:
    """Raises NotImplementedError where files cannot be written so."""
    if not hasattr(os, "pwrite"):
        raise NotImplementedError("a checkpoint is written on POSIX systems only")


class StreamWriter:
    """Writes files one after the other, in a thread of its own.

    On leaving its block by an exception, what is not whole is removed.
    """

    def __init__(self) -> None:
        check_system()
        self._memory = [mmap.mmap(-1, CHUNK) for _ in range(_BUFFERS)]
        self._tensors = [torch.frombuffer(memory, dtype=torch.uint8) for memory in self._memory]
        for tensor in self._tensors:
            advise_huge_pages(tensor)
        self._free = deque(range(_BUFFERS))
        self._pending: deque[tuple[int, Future[None]]] = deque()
        self._finished: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._open: dict[Path, int] = {}
        self._failed = False
        self.busy = 0.0
        """Seconds in which the disk was at work."""

    def write(
        self,
        path: Path,
        size: int,
        make: Callable[[int, int, Tensor], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Has a file written: it is whole when the block is left, or the second next is begun.

        Args:
            make: called with (start, stop, memory for these bytes of the file).
            check: called before the file is put in its place; what it raises keeps it from that.
        """
        partial = partial_path(path)
        with named(path, partial):
            descriptor = self._begin(partial)
        for start in range(0, size, CHUNK):
            stop = min(start + CHUNK, size)
            which = self._buffer()
            make(start, stop, self._tensors[which][: stop - start])
            put = named(path, partial)(self._put)
            put_all = self._thread.submit(put, descriptor, which, start, stop - start)
            self._pending.append((which, put_all))
        finish = named(path, partial)(self._finish)
        self._finished.append(self._thread.submit(finish, partial, path, size, check))

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        try:
            if error is None:
                for future in (*(future for _, future in self._pending), *self._finished):
                    future.result()
        finally:
            for path, descriptor in self._open.items():
                os.close(descriptor)
                path.unlink(missing_ok=True)

    def _begin(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
        except OSError:  # a file system that has no way past the cache; another reason shows again
            descriptor = os.open(path, flags, 0o666)
        self._open[path] = descriptor
        lock(descriptor)
        return descriptor

    def _buffer(self) -> int:
        """A buffer that is not in use; raises what went wrong with an earlier one."""
        while not self._free:
            which, future = self._pending.popleft()
            future.result()
            self._free.append(which)
        for done in [f for f in self._finished if f.done()]:
            self._finished.remove(done)
            done.result()
        return self._free.popleft()

    def _put(self, descriptor: int, which: int, start: int, length: int) -> None:
        begun = time.perf_counter()
        try:
            self._put_all(descriptor, which, start, length)
        except BaseException:
            self._failed = True
            raise
        finally:
            self.busy += time.perf_counter() - begun

    def _put_all(self, descriptor: int, which: int, start: int, length: int) -> None:
        # The last block is written whole, and the file cut afterwards.
        rounded = -(-length // _BLOCK) * _BLOCK
        with memoryview(self._memory[which]) as view:
            done = 0
            while done < length:
                try:
                    done += os.pwrite(descriptor, view[done:rounded], start + done)
                except OSError as error:
                    if not _is_direct(descriptor) or error.errno != errno.EINVAL:
                        raise
                    _through_the_cache(descriptor)

    def _finish(self, partial: Path, path: Path, size: int, check: Callable[[], None]) -> None:
        if self._failed:  # which the write that failed says
            return
        begun, descriptor = time.perf_counter(), self._open[partial]
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
        self.busy += time.perf_counter() - begun
        check()
        os.replace(partial, path)
        os.close(self._open.pop(partial))
        sync_directory(path.parent)


def _is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))


def _through_the_cache(descriptor: int) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
