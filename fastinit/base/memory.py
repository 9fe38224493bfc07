"""Memory: how much there is, and on disk; huge pages for what is about to be written.

What is for Linux alone does nothing elsewhere.
"""

from __future__ import annotations

import ctypes
import gc
import math
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastinit.base import text
from fastinit.base.torch_internals import is_traceable_wrapper_subclass

OVERRIDE = "FASTINIT_FREE_MEMORY"
"""The environment variable that says how much memory is free."""

HUGE_PAGE = 2 << 20
"""Bytes of a huge page on x86-64, and on arm64 with 4 KiB base pages."""


def like(
    tensor: Tensor, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """What ``torch.empty_like`` gives, detached: memory of a tensor's shape and strides, unwritten.

    Of meta that is Python's, for which torch first imports SymPy: half a second.
    """
    if not tensor.is_contiguous() or is_traceable_wrapper_subclass(tensor):
        return torch.empty_like(tensor, device=device, dtype=dtype).detach()
    return torch.empty_strided(
        tensor.size(),
        tensor.stride(),
        dtype=tensor.dtype if dtype is None else dtype,
        device=tensor.device if device is None else device,
    )


def advise_huge_pages(tensor: Tensor) -> bool:
    """Asks the kernel to back a CPU tensor's memory with huge pages (``MADV_HUGEPAGE``).

    Worth it before the first write: fresh memory then faults in once per 2 MiB, not once per 4 KiB.
    Only the whole pages inside the tensor are advised. The kernel may decline.

    Returns:
        Whether the advice was taken: False elsewhere than on Linux, for other devices, and for tensors
        of less than two huge pages, which may hold no aligned one.
    """
    large = tensor.untyped_storage().nbytes() >= 2 * HUGE_PAGE
    return large and _advise(tensor, "MADV_HUGEPAGE")


def drop_pages(tensor: Tensor) -> bool:
    """Makes a CPU tensor's memory fresh again: its values are lost (``MADV_DONTNEED``).

    Of the whole pages inside it, the next write has to fault each in, as the first one had to; huge
    pages stay asked for.

    Returns:
        Whether that could be done: False elsewhere than on Linux and for other devices.
    """
    return _advise(tensor, "MADV_DONTNEED")


@contextmanager
def no_collection() -> Iterator[None]:
    """Within the block Python looks for no cycles among its objects; what is not used is freed the same.

    For work that makes some objects for each of many parameters, all of them in use: they would have
    the collector walk through the whole model again and again.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def available_bytes() -> int | None:
    """Memory that can still be used without swapping, or None where the system does not say.

    The least of the system's ``MemAvailable`` and what is left of the limits of the control groups that
    this process is in, whose page cache counts as free, since it is given up when memory is asked for.
    ``FASTINIT_FREE_MEMORY``, such as 64GB, is taken instead.

    Raises:
        ValueError: that variable is no size.
    """
    if value := os.environ.get(OVERRIDE):
        return text.parse_size(value, OVERRIDE)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([int(kilobytes) * 1024, *_left_in_groups()])


def check_room(needed: int, what: str) -> None:
    """Raises ValueError if memory for so many bytes of ``what`` isn't free, which says how to go on."""
    free = available_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"{what} take {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB of memory are free; "
            f"with {OVERRIDE}={math.ceil(needed / 1e8) / 10}GB in the environment it is tried"
        )


def _left_in_groups(system: Path = Path("/")) -> Iterator[int]:
    """What is left of each limit that control groups set (version 1 or 2): one's own and those above."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    top = system / "sys/fs/cgroup"
    for _, kinds, place in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if kinds == "":
            mounts, names = {top, top / "unified"}, ("memory.max", "memory.current", "")
        elif "memory" in kinds.split(","):
            mounts = {top / "memory", top / kinds}
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        for mount in mounts:
            own = mount / place.lstrip("/")  # within a container there may be only the mount
            for group in (own, *own.parents):
                if group.is_relative_to(mount):
                    yield from _left_in_group(group, *names)


def _left_in_group(group: Path, limit: str, used: str, prefix: str) -> Iterator[int]:
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no such file, or a limit of "max"
        return
    stat = dict(line.split()[:2] for line in lines)
    free = ("inactive_file", "active_file", "slab_reclaimable")
    yield most - now + sum(int(stat.get(prefix + name, 0)) for name in free)


def free_disk_bytes(directory: str | PathLike[str]) -> int:
    """Bytes that can still be written where a directory is, or would be if it were made."""
    return shutil.disk_usage(nearest_directory(directory)).free


def nearest_directory(path: str | PathLike[str]) -> Path:
    """A directory itself, or the innermost that there is of those it would be made in."""
    place = Path(path).absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def _advise(tensor: Tensor, advice: str) -> bool:
    """Whether the kernel took an advice about the whole pages inside a tensor's storage."""
    madvise = _madvise()
    if madvise is None or tensor.device.type != "cpu":
        return False
    start = tensor.untyped_storage().data_ptr()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + tensor.untyped_storage().nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    return end <= first or madvise(first, end - first, getattr(mmap, advice)) == 0


@lru_cache(maxsize=1)
def _madvise() -> Any:
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function
