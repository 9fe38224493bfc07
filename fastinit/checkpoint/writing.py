"""Checkpoint: a model written to disk as it is initialised, without ever being in memory.

The files are those of ``save_pretrained``: safetensors shards, their index, and where the model has
them ``config.json`` and ``generation_config.json``. Each has another name until it is whole, and the
index is the last, so what a killed run leaves cannot be taken for a model; run again, it goes on after
the shards that are whole, and removes what the killed one left. What is there can be verified: each of
its bytes is computed again.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
import warnings
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastinit.base.files import (
    alone_in,
    partial_path,
    remove_left,
    sync_directory,
    write_text,
)
from fastinit.base.memory import free_disk_bytes, nearest_directory
from fastinit.base.ranks import Group
from fastinit.base.text import listing
from fastinit.checkpoint.disk import CHUNK, StreamWriter, check_system
from fastinit.checkpoint.many import Ranks
from fastinit.checkpoint.planning import (
    SHARD_SIZE,
    Layout,
    damaged,
    existing,
    is_whole,
    layout,
    planned_by,
)
from fastinit.checkpoint.quantised import Asked, Dtype
from fastinit.checkpoint.ranges import Ranges
from fastinit.checkpoint.safetensors import INDEX, Shard
from fastinit.checkpoint.shard_bytes import Done, make
from fastinit.checkpoint.shared import Division, Shares, check_shared, mark, write_share
from fastinit.plan.fit import Parts
from fastinit.plan.names import unwrapped
from fastinit.plan.plan import Plan
from fastinit.plan.write import Progress

__all__ = ["Layout", "Rates", "Written", "layout", "measure_rates", "write"]


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


def write(
    model: nn.Module,
    directory: str | PathLike[str],
    plan: Plan | None = None,
    *,
    shard_size: int | str = SHARD_SIZE,
    dtype: Dtype | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    verify: bool = False,
    parts: Parts | None = None,
    group: Group = None,
    no_dist: bool = False,
) -> Written:
    """Writes a model's checkpoint with the values that :func:`fastinit.materialize_` would give it.

    The model stays as it is, on meta if it was built within :func:`fastinit.deferred`; what has values
    already is stored with them. Memory is taken for a few chunks of 32 MiB, and for a parameter that
    can only be made whole (orthogonal, computed by the constructor) of up to 256 MiB in float32.

    In 8 bits and fewer the files are those of compressed-tensors, with its ``quantization_config`` in
    ``config.json``: packed values and scales, made of float32 values in one pass. Without patterns these
    are the weights of every ``torch.nn.Linear``, but for the one that gives logits
    (``get_output_embeddings``), and experts that are stored as matrices; of patterns the first that
    matches counts. A tensor's scale follows from its law: of float8 the least power of two with which
    nothing saturates, of nvfp4 as of :class:`fastinit.Blocks`. So weights are of one law of a plan, and
    have whole blocks in each row.

    Where a process group is up, all its ranks have to call it, and share the work. What a plan says, or
    each rank has, is divided among them by files; of parameters that are on several ranks (DTensors)
    each writes its own elements where they belong in the files, and nothing is gathered. Of buffers
    that are not the same on all ranks those of the first are stored.

    Args:
        directory: made if there is none. Shards in it that are whole and of this model are kept. All
            ranks have to see it.
        plan: what the parameters shall be, and the seed; by default what was recorded.
        shard_size: the most bytes of tensors in a file, as a number or as in ``"5GB"``, ``"500MB"``.
        dtype: of floating-point parameters; by default the model's. Or the format of linear layers'
            weights, with bfloat16 for the rest: "float8_e4m3fn" (also as a dtype), "mxfp8", "mxfp4" or
            "nvfp4"; or such formats of linear weights, and dtypes of 16 bits and more of any parameters,
            by patterns of their names.
        progress: called with (bytes done, bytes in all), of what this rank writes and verifies.
        overwrite: removes another model's shards first, and those that are damaged, instead of refusing.
        verify: computes every byte of the shards that are there again; by default their size and header
            say whether they are whole. Shards of values that are on several ranks are written again.
        parts: what plain tensors of the model are parts of, as of :meth:`fastinit.Plan.apply_`. Files
            hold full parameters, under the full names.
        group: of the ranks, or their mesh; by default all.
        no_dist: this rank writes alone, whatever groups there are.

    Raises:
        ValueError: a plan that does not fit the model; a tensor that cannot be stored, or not in its
            format; a pattern that matches nothing of its kind; a format that is not known; another
            model's (seed's, dtype's, plan's) shards in the directory, or damaged ones; with ``verify``
            it names the tensor in which the first wrong byte is. Ranks that differ in what shall be
            written, or do not have every element of a parameter together. Formats, and experts that
            transformers would read as other tensors.
        OSError: too little room on the disk, seen before anything is written; or what the system says.
        NotImplementedError, RuntimeError: a parameter that cannot be written. Other ranks get
            ``fastinit.base.ranks.RanksError``, which says what failed on which.

    Warns:
        UserWarning: experts in a format of which transformers does not read all scales.
    """
    begun, those = time.perf_counter(), Ranks.of(group, no_dist)
    with those.together("checkpoint.write"), ExitStack() as stack:
        check_system()
        folder = Path(directory)
        those.check_alike("checkpoint.write", overwrite=bool(overwrite), verify=bool(verify))
        planned = planned_by(those, model, plan, shard_size, dtype, parts)
        there: Any = None
        if those.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(folder))
            _check_names(folder, planned)
            there = [*existing(folder, planned), stack.enter_context(mark(folder, those))]
        kept, others, name_of_mark = those.told_by_first(there, "a checkpoint: what is there")
        check_shared(folder, name_of_mark, those)
        if verify:  # where values are on several ranks, none can tell: these are written again
            kept = [s.file for s in planned.shards if s.file in kept and not s.is_apart]
        checked = Division([s for s in planned.shards if verify and s.file in kept], those)
        todo = Division([s for s in planned.shards if s.file not in kept], those)
        done = Done(checked.mine + todo.mine, progress)
        if overwrite or not others:
            found = damaged(folder, checked.own, planned.seed, done)
            for bad in those.told(found, "a checkpoint: verifying"):
                others |= bad
        if others and not overwrite:
            raise ValueError(f"{min(others.items())[1]}; --overwrite (overwrite=True) replaces it")
        kept = [name for name in kept if name not in others]
        todo = Division([s for s in planned.shards if s.file not in kept], those)
        done.total = done.so_far + todo.mine
        shares = stack.enter_context(Shares())
        partials: dict[str, str] = {}
        if those.is_first:
            _make_room(folder, others, todo.size)
            _save_config(unwrapped(model), folder, Asked.of(dtype).dtype, planned.quantization)
            for shard in todo.shards:
                if shard.is_apart:
                    partial = partial_path(folder / shard.file)
                    shares.make(partial, folder / shard.file, shard.size)
                    partials[shard.file] = partial.name
        partials = those.told_by_first(partials, "a checkpoint: its files are begun")
        busy = _write_mine(folder, planned.seed, todo, partials, done)
        those.told(None, "a checkpoint: its files are written")
        if those.is_first:
            for name, partial_name in partials.items():
                shares.publish(folder / partial_name, folder / name)
            if foreign := [s.file for s in planned.shards if not is_whole(folder / s.file, s)]:
                raise OSError(f"another run has written to {folder}: {listing('file', foreign)}")
            if planned.index is not None:
                write_text(folder / INDEX, planned.index)
    seconds = time.perf_counter() - begun
    size = sum(s.size for s in planned.shards if s.file in kept) if verify else 0
    return Written(planned, todo.size, seconds, len(kept), size, busy / seconds)


def _make_room(folder: Path, others: Collection[str], needed: int) -> None:
    """Removes what killed runs left, and others' files if the rest then fits.

    Raises:
        OSError: too little room; nothing of others was removed.
    """
    freed = sum((folder / name).stat().st_size for name in others)
    if left := remove_left(folder):
        names = ", ".join(path.name for path in left)
        warnings.warn(
            f"{folder} has files of a run on another machine, or from before this one was last "
            f"started, which are left: {names}",
            stacklevel=3,
        )
    free = free_disk_bytes(folder) + freed
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, but the checkpoint takes {needed / 1e9:.2f} GB"
        )
    if others or needed:  # nothing looks whole from here on
        (folder / INDEX).unlink(missing_ok=True)
        for name in others:
            (folder / name).unlink(missing_ok=True)
        sync_directory(folder)


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


def _write_mine(
    folder: Path, seed: int, todo: Division, partials: Mapping[str, str], done: Done
) -> float:
    """Writes what this rank has to of each file; the seconds in which the disk was at work."""
    ranges = Ranges(seed)

    def made(shard: Shard, start: int, stop: int, out: Tensor) -> None:
        make(shard, start, stop, out, ranges)
        done.add(stop - start)

    def check(shard: Shard) -> None:
        path = folder / shard.file
        if path.exists() and not is_whole(path, shard):
            raise OSError(f"{path} has been written by another run meanwhile")

    with StreamWriter() as writer:
        for shard in todo.own:
            path = folder / shard.file
            writer.write(path, shard.size, partial(made, shard), partial(check, shard))
    busy = writer.busy
    for shard in (shard for shard in todo.shards if shard.file in partials):
        partial_, path, owner = (
            folder / partials[shard.file],
            folder / shard.file,
            todo.owners[shard.file],
        )
        busy += write_share(partial_, path, shard, todo.here, owner, ranges, done)
    return busy


def _save_config(
    model: nn.Module,
    folder: Path,
    dtype: torch.dtype | None,
    quantization: dict[str, Any] | None,
) -> None:
    """The files beside the weights, as save_pretrained writes them; they come before the weights."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "save_pretrained"):
        if quantization is not None:
            path = folder / "config.json"
            there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            there["quantization_config"] = quantization
            write_text(path, json.dumps(there, indent=2) + "\n")
        return
    config = copy.deepcopy(config)
    name = str(dtype or next(p.dtype for p in model.parameters() if p.is_floating_point()))
    # transformers 5 calls it dtype; before, it was torch_dtype.
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", name.split(".")[1])
    config.architectures = [type(model).__name__]
    if quantization is not None:
        config.quantization_config = quantization
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(place)
        for path in sorted(Path(place).iterdir()):
            write_text(folder / path.name, path.read_text(encoding="utf-8"))
