"""Checkpoint: a model written to disk as it is initialised, without ever being in memory.

The files are those of ``save_pretrained``: safetensors shards, their index, and where the model has
them ``config.json`` and ``generation_config.json``. Each has another name until it is whole, and the
index is the last, so what a killed run leaves cannot be taken for a model; run again, it goes on after
the shards that are whole, and removes what the killed one left. What is there can be verified: each of
its bytes is computed again.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import partial
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastinit.base import text
from fastinit.base.files import remove_left, sync_directory, write_text
from fastinit.base.memory import free_disk_bytes, nearest_directory
from fastinit.checkpoint.disk import CHUNK, StreamWriter
from fastinit.checkpoint.entries import Stored, stored_tensors
from fastinit.checkpoint.ranges import Range, Ranges
from fastinit.checkpoint.safetensors import INDEX, IS_SHARD, Shard, index, shards
from fastinit.checkpoint.shard_bytes import Done, first_wrong, make
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan
from fastinit.plan.write import Progress
from fastinit.stream.keys import STREAM_VERSION

SHARD_SIZE = "5GB"

# What a shard says of how it was made.
_SEED, _DTYPES, _STREAM = "fastinit.seed", "fastinit.dtypes", "fastinit.stream_version"
_PLAN = "fastinit.plan"


@dataclass(frozen=True)
class Layout:
    """What a checkpoint will be: its files, to the byte.

    Args:
        shards: in order.
        seed: of the numbers.
    """

    shards: tuple[Shard, ...]
    seed: int

    def __repr__(self) -> str:
        return (
            f"Layout({text.counted('shard', len(self.shards))}, {self.elements:,} elements, "
            f"{self.size:,} bytes, seed={self.seed})"
        )

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.numel for shard in self.shards for tensor in shard.tensors)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def index(self) -> str | None:
        """The index, if there are several shards."""
        return index(self.shards) if len(self.shards) > 1 else None


class Written(NamedTuple):
    """What a call of :func:`write` did."""

    layout: Layout
    bytes: int
    """Written by this call."""
    seconds: float
    kept: int
    """Shards that were whole before."""
    verified: int
    """Bytes of these that were computed again, and are the same."""
    disk_share: float
    """The share of the seconds in which the disk was at work; near 1, nothing else held it up."""


class Rates(NamedTuple):
    """Bytes per second, measured on a sample: of making values, and of the disk."""

    made: float
    disk: float

    def seconds(self, size: int) -> float:
        """Seconds for a number of bytes, which are made and written at once."""
        return size / min(self.made, self.disk)


def layout(
    model: nn.Module,
    plan: Plan | None = None,
    *,
    shard_size: int | str = SHARD_SIZE,
    dtype: torch.dtype | None = None,
) -> Layout:
    """The files that :func:`write` would write, which see for arguments and exceptions."""
    tensors, seed = stored_tensors(model, plan, dtype)
    metadata = {
        "format": "pt",
        _STREAM: str(STREAM_VERSION),
        _SEED: str(seed),
        _DTYPES: " ".join(sorted({str(t.source.dtype).removeprefix("torch.") for t in tensors})),
        _PLAN: _fingerprint(tensors, seed),
    }
    return Layout(tuple(shards(tensors, shard_size, metadata)), seed)


def write(
    model: nn.Module,
    directory: str | PathLike[str],
    plan: Plan | None = None,
    *,
    shard_size: int | str = SHARD_SIZE,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    verify: bool = False,
) -> Written:
    """Writes a model's checkpoint with the values that :func:`fastinit.materialize_` would give it.

    The model stays as it is, on meta if it was built within :func:`fastinit.deferred`; what has values
    already is stored with them. Memory is taken for a few chunks of 32 MiB, and for a parameter that
    can only be made whole (orthogonal, computed by the constructor) of up to 256 MiB in float32.

    Args:
        directory: made if there is none. Shards in it that are whole and of this model are kept.
        plan: what the parameters shall be, and the seed; by default what was recorded.
        shard_size: the most bytes of tensors in a file, as a number or as in ``"5GB"``, ``"500MB"``.
        dtype: of floating-point parameters; by default the model's.
        progress: called with (bytes done, bytes in all), of what is written and verified.
        overwrite: removes another model's shards first, and those that are damaged, instead of refusing.
        verify: computes every byte of the shards that are there again; by default their size and header
            say whether they are whole.

    Raises:
        ValueError: a plan that does not fit the model, a tensor that cannot be stored, or another
            model's (seed's, dtype's, plan's) shards in the directory, or damaged ones; with ``verify``
            it names the tensor in which the first wrong byte is.
        OSError: too little room on the disk, seen before anything is written; or what the system says.
        NotImplementedError, RuntimeError: a parameter that cannot be written.
    """
    begun = time.perf_counter()
    planned = layout(model, plan, shard_size=shard_size, dtype=dtype)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _check_names(folder, planned)
        kept, others = _existing(folder, planned)
        there = sum(shard.size for shard in planned.shards if shard.file in kept)
        done = Done(planned.size if verify else planned.size - there, progress)
        if verify and not (others and not overwrite):
            damaged = _damaged(folder, planned, kept, done)
            others += damaged
            kept -= {path.name for path, _ in damaged}
        if others and not overwrite:
            raise ValueError(f"{others[0][1]}; --overwrite (overwrite=True) replaces it")
        todo = [shard for shard in planned.shards if shard.file not in kept]
        needed = sum(shard.size for shard in todo)
        freed = sum(path.stat().st_size for path, _ in others)
        if left := remove_left(folder):
            names = ", ".join(path.name for path in left)
            warnings.warn(
                f"{folder} has files of a run on another machine, or from before this one was last "
                f"started, which are left: {names}",
                stacklevel=2,
            )
        _check_room(folder, needed, freed)
        if others or todo:  # nothing looks whole from here on
            (folder / INDEX).unlink(missing_ok=True)
            for path, _ in others:
                path.unlink(missing_ok=True)
            sync_directory(folder)
        _save_config(model, folder, dtype)
        done.total = done.so_far + needed
        busy = _write_shards(folder, planned, todo, done)
        if planned.index is not None:
            write_text(folder / INDEX, planned.index)
    seconds = time.perf_counter() - begun
    verified = planned.size - needed if verify else 0
    return Written(planned, needed, seconds, len(kept), verified, busy / seconds)


def _check_names(folder: Path, planned: Layout) -> None:
    """Raises ValueError where a file to be written is something else: a directory, a dead link."""
    for name in (*(shard.file for shard in planned.shards), INDEX, "config.json"):
        path = folder / name
        if (path.exists() or path.is_symlink()) and not path.is_file():
            raise ValueError(f"directory has {name} in it, which is no file: {path}")


def measure_rates(planned: Layout, directory: str | PathLike[str], size: int = 1 << 28) -> Rates:
    """Makes some of a checkpoint's bytes, and writes as many to the directory's disk, for their rates.

    Args:
        directory: it need not exist, and is not made.
        size: bytes, of which nothing is left.
    """
    ranges = Ranges(planned.seed)
    shard = max(planned.shards, key=lambda shard: shard.size)
    size = min(size, -(-shard.size // CHUNK) * CHUNK)
    buffer = torch.empty(min(CHUNK, shard.size), dtype=torch.uint8)
    chunks = [(at, min(at + CHUNK, shard.size)) for at in range(0, size, CHUNK)]
    make(shard, *chunks[0], buffer[: chunks[0][1]], ranges)  # in memory that is new
    begun = time.perf_counter()
    for start, stop in chunks:
        make(shard, start, stop, buffer[: stop - start], ranges)
    rate = chunks[-1][1] / (time.perf_counter() - begun)

    near = nearest_directory(directory)
    with tempfile.TemporaryDirectory(prefix=".fastinit-", dir=near) as place:
        begun = time.perf_counter()
        with StreamWriter() as writer:
            writer.write(Path(place) / "sample", size, lambda start, stop, out: None)
        disk = size / (time.perf_counter() - begun)
    return Rates(rate, disk)


def _write_shards(folder: Path, planned: Layout, todo: Sequence[Shard], done: Done) -> float:
    """Returns the seconds in which the disk was at work."""
    ranges = Ranges(planned.seed)

    def made(shard: Shard, start: int, stop: int, out: Tensor) -> None:
        make(shard, start, stop, out, ranges)
        done.add(stop - start)

    with StreamWriter() as writer:
        for shard in todo:
            writer.write(
                folder / shard.file,
                shard.size,
                partial(made, shard),
            )
    return writer.busy


def _fingerprint(tensors: Sequence[Stored], seed: int) -> str:
    """A hash of all that the values follow from; of those that were computed or given, the values."""
    ranges = Ranges(seed)
    digest = blake2b(f"{STREAM_VERSION} {seed}".encode(), digest_size=16)
    buffer = bytearray()
    for tensor in tensors:
        name, source, which = tensor
        what = (name, source.name, source.shape, str(source.dtype), *which)
        digest.update(repr(what).encode())
        if isinstance(source.content, Fill):
            digest.update(repr(astuple(source.content)).encode())
            continue
        each = source.dtype.itemsize
        buffer = buffer or bytearray(CHUNK)
        for start in range(0, tensor.numel, CHUNK // each):
            stop = min(start + CHUNK // each, tensor.numel)
            out = torch.frombuffer(buffer, dtype=source.dtype, count=stop - start)
            ranges.write([Range(tensor, start, out)])
            digest.update(memoryview(buffer)[: (stop - start) * each])
    return digest.hexdigest()


def _existing(folder: Path, planned: Layout) -> tuple[set[str], list[tuple[Path, str]]]:
    """(names of shards that are whole, other shards and what is wrong with them)."""
    expected = {shard.file: shard for shard in planned.shards}
    kept: set[str] = set()
    others: list[tuple[Path, str]] = []
    for path in sorted(folder.iterdir()):
        if not IS_SHARD.fullmatch(path.name):
            continue
        shard = expected.get(path.name)
        if shard is not None and _is_whole(path, shard):
            kept.add(path.name)
        else:
            others.append((path, f"{path} {_difference(path, planned)}"))
    return kept, others


def _damaged(folder: Path, planned: Layout, kept: set[str], done: Done) -> list[tuple[Path, str]]:
    """Shards that are not what would be written, with the tensor of the first byte that is wrong."""
    ranges = Ranges(planned.seed)
    found = []
    for shard in planned.shards:
        if shard.file in kept:
            path = folder / shard.file
            wrong = first_wrong(path, shard, ranges, done)
            if wrong is not None:
                within = next((t.name for t, *_ in shard.within(wrong, wrong + 1)), "its header")
                found.append((path, f"{path} is damaged in {within}, at byte {wrong:,}"))
    return found


def _is_whole(path: Path, shard: Shard) -> bool:
    with open(path, "rb") as file:
        return path.stat().st_size == shard.size and file.read(len(shard.header)) == shard.header


def _difference(path: Path, planned: Layout) -> str:
    """What another shard was written with."""
    found = _metadata(path)
    wanted = json.loads(planned.shards[0].header[8:])["__metadata__"]
    if _SEED not in found:
        return "was not written by fastinit"
    for key in (_SEED, _DTYPES, _STREAM):
        if found.get(key) != wanted[key]:
            what = key.removeprefix("fastinit.").replace("_", " ")
            return f"was written with {what} {found.get(key)}, not {wanted[key]}"
    if found.get(_PLAN) != wanted[_PLAN]:
        return "was written with another plan or of another model"
    return "was written with another shard size, or is damaged"


def _metadata(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, KeyError, TypeError), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length < 100_000_000:  # the format's own limit
            return dict(json.loads(file.read(length))["__metadata__"])
    return {}


def _check_room(folder: Path, needed: int, freed: int) -> None:
    free = free_disk_bytes(folder) + freed
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, but the checkpoint takes {needed / 1e9:.2f} GB"
        )


def _save_config(model: nn.Module, folder: Path, dtype: torch.dtype | None) -> None:
    """The files beside the weights, as save_pretrained writes them; they come before the weights."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "save_pretrained"):
        return
    config = copy.deepcopy(config)
    name = str(dtype or next(p.dtype for p in model.parameters() if p.is_floating_point()))
    # transformers 5 calls it dtype; before, it was torch_dtype.
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", name.split(".")[1])
    config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(place)
        for path in sorted(Path(place).iterdir()):
            write_text(folder / path.name, path.read_text(encoding="utf-8"))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While in force, no other run of this machine writes to the directory.

    Another machine may not see it, or a file system have no such lock: then two runs write the same
    files under names of their own, and each puts whole ones in place.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{folder} is being written to by another run") from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
