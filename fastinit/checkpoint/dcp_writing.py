"""Checkpoints of torch.distributed.checkpoint, written as they are made: the files are torch's own.

Tensors are cut into chunks, which ranks share out, and torch's FileSystemWriter asks for one after the
other: each is in the memory of the one before.
"""

from __future__ import annotations

import mmap
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import filesystem, metadata, planner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.device_mesh import DeviceMesh

from fastinit.base import distributed_internals as distributed
from fastinit.base.files import alone_in, remove_left, replacing, sync_directory
from fastinit.base.memory import free_disk_bytes
from fastinit.base.ranks import Group, RanksError
from fastinit.checkpoint.disk import CHUNK
from fastinit.checkpoint.entries import Stored, check_whole
from fastinit.checkpoint.many import Ranks, agreed, divided
from fastinit.checkpoint.ranges import Range, Ranges
from fastinit.checkpoint.shared import check_shared, mark
from fastinit.checkpoint.sources import Held, Source, sources
from fastinit.elements.pieces import Piece
from fastinit.elements.strided import Strided
from fastinit.plan.fit import Parts, check_prefix
from fastinit.plan.names import unwrapped
from fastinit.plan.plan import Plan

FILES = re.compile(r"\.metadata|.*\.distcp")
"""What is written into a directory, or removed from it."""


class _Chunk(NamedTuple):
    """A block of a tensor, which is stored at once."""

    name: str
    source: Source
    which: Strided
    values: Tensor | None
    """Where this rank has them; None if they are made."""

    @property
    def nbytes(self) -> int:
        return self.which.numel * self.source.dtype.itemsize

    @property
    def item(self) -> planner.WriteItem:
        """What DCP is told of it."""
        offsets, sizes = torch.Size(self.which.start), torch.Size(self.which.sizes)
        return planner.WriteItem(
            metadata.MetadataIndex(self.name, offsets),
            planner.WriteItemType.SHARD,
            tensor_data=planner.TensorWriteData(
                metadata.ChunkStorageMetadata(offsets, sizes),
                metadata.TensorProperties(self.source.dtype),
                torch.Size(self.source.shape),
            ),
        )

    def made(self, memory: mmap.mmap, ranges: Ranges) -> Tensor:
        """Its values, in some memory, of which the tensor's storage has as much as they take."""
        if not self.which.numel:
            return torch.empty(self.which.sizes, dtype=self.source.dtype)
        flat = torch.frombuffer(memory, dtype=self.source.dtype, count=self.which.numel)
        out = flat.view(self.which.sizes)
        if self.values is not None:
            out.copy_(self.values)
        else:
            ranges.write([Range(Stored(self.name, self.source, self.which), 0, flat)])
        return out


def write_dcp(
    model: nn.Module,
    directory: str | PathLike[str],
    plan: Plan | None = None,
    *,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    parts: Parts | None = None,
    group: Group = None,
    no_dist: bool = False,
) -> metadata.Metadata:
    """Writes a model as ``dcp.save`` would, with the values that :func:`fastinit.materialize_` gives it.

    ``dcp.load`` and ``dcp_to_torch_save`` read it, under all names of ``state_dict``. As with
    :func:`write`, the model stays as it is, nothing is gathered, and memory is taken for a chunk of
    32 MiB (and for what can only be made whole). The ranks share the work; ``.metadata``, without which
    nothing is loaded, comes last. A run that was killed begins anew.

    Args:
        directory: made if there is none. All ranks have to see it.
        plan: what the parameters shall be, and the seed; by default what was recorded.
        prefix: what names get before them: ``"model."`` for ``dcp.load({"model": ...})``.
        dtype: of floating-point parameters; by default the model's.
        overwrite: removes another checkpoint of DCP, whole or not, instead of refusing.
        parts: as of :func:`write`.
        group: of the ranks, or their mesh of one dimension; by default all.
        no_dist: this rank writes alone.

    Returns:
        What torch wrote to ``.metadata``.

    Raises:
        ValueError, OSError, NotImplementedError, RuntimeError: as :func:`write`; ValueError: files of
            DCP in the directory; a prefix without its dot.
    """
    those = Ranks.of(group, no_dist)
    with those.together("checkpoint.write_dcp"), ExitStack() as stack:
        check_prefix(prefix)
        if isinstance(group, DeviceMesh) and group.ndim > 1:  # torch's writer takes one group
            raise ValueError(f"group must be a mesh of one dimension, but got {group}")
        folder = Path(directory)
        those.check_alike("checkpoint.write_dcp", prefix=prefix, overwrite=bool(overwrite))
        own, seed = sources(unwrapped(model), plan, dtype, parts)
        found, _ = agreed(own, seed, those)
        chunks = _chunks(found, those)
        there: Any = None
        if those.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(folder))
            _make_way(folder, sum(source.nbytes for source in found.values()), overwrite)
            there = stack.enter_context(mark(folder, those)), secrets.token_hex(4)
        name_of_mark, token = those.told_by_first(there, "a checkpoint: what is there")
        check_shared(folder, name_of_mark, those)
        path = tuple(prefix.split(".")[:-1])
        chosen = _Planner(
            {prefix + chunk.name: (*path, chunk.name) for chunk in chunks},
            chunks,
            prefix,
            Ranges(seed),
        )
        return _saved(_Writer(folder, token), chosen, those)


def _saved(writer: _Writer, chosen: _Planner, those: Ranks) -> metadata.Metadata:
    group = those.group.get_group() if isinstance(those.group, DeviceMesh) else those.group
    try:
        written: metadata.Metadata = distributed.save_checkpoint(
            writer, chosen, group, alone=those.size == 1
        )
        return written
    except CheckpointException as failed:  # which is no Exception; all ranks have it
        rank, (error, _) = min(failed.failures.items())
        if those.here in failed.failures:
            error = failed.failures[those.here][0]
            if isinstance(error, Exception):
                raise error from None
        raise RanksError(f"rank {rank} failed: {type(error).__name__}: {error}") from failed


def _chunks(found: Mapping[str, Source], those: Ranks) -> list[_Chunk]:
    """What this rank writes: of values on several ranks its own, and its share of the rest."""
    mine: list[_Chunk] = []
    common: list[_Chunk] = []
    for name, source in found.items():
        check_whole(Stored(name, source, Strided.contiguous(source.shape)))
        if isinstance(source.content, Held):
            pieces = source.content.pieces(name)
            mine += [_Chunk(name, source, which, view) for view, which in _cut(pieces, source)]
        else:
            whole = Piece(
                torch.empty(source.shape, device="meta"), Strided.contiguous(source.shape)
            )
            made = [_Chunk(name, source, which, None) for _, which in _cut([whole], source)]
            if source.by is None:
                common += made
            elif source.by == those.here:
                mine += made
    whose = divided([chunk.nbytes for chunk in common], those.size)
    return mine + [chunk for chunk, rank in zip(common, whose) if rank == those.here]


def _cut(pieces: Sequence[Piece] | Iterator[Piece], source: Source) -> Iterator[Piece]:
    """The pieces in chunks; whole, what has no elements or is not made in pieces."""
    for piece in pieces:
        stored = Stored(source.name, source, Strided.contiguous(source.shape))
        if stored.needs_whole or not piece.which.numel:
            yield piece
        else:
            yield from piece.cut(CHUNK // source.dtype.itemsize)


def _make_way(folder: Path, needed: int, overwrite: bool) -> None:
    """Raises unless there is room, and no other checkpoint of DCP, or that shall be removed."""
    remove_left(folder)
    others = sorted(path for path in folder.iterdir() if FILES.fullmatch(path.name))
    if others and not overwrite:
        raise ValueError(
            f"{folder} has {others[0].name} of a checkpoint of DCP, or of a run that was killed; "
            f"overwrite=True replaces it"
        )
    free = free_disk_bytes(folder) + sum(path.stat().st_size for path in others)
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, but the checkpoint takes {needed / 1e9:.2f} GB"
        )
    for path in others:  # .metadata first
        path.unlink()
    sync_directory(folder)


class _Planner(DefaultSavePlanner):
    """Says which chunks a rank writes, and makes them as they are written."""

    def __init__(
        self,
        paths: Mapping[str, tuple[str, ...]],
        chunks: Sequence[_Chunk],
        prefix: str,
        ranges: Ranges,
    ) -> None:
        super().__init__()
        self._paths = dict(paths)
        self._ranges = ranges
        named = [chunk._replace(name=prefix + chunk.name) for chunk in chunks]
        self._items = [chunk.item for chunk in named]
        self._chunks = {item.index: chunk for item, chunk in zip(self._items, named)}
        # One for all: torch keeps every tensor that it has written, and a heap breaks up.
        self._memory = mmap.mmap(-1, max([1, *(chunk.nbytes for chunk in chunks)]))

    def set_up_planner(
        self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.is_coordinator = state_dict, is_coordinator

    def create_local_plan(self) -> planner.SavePlan:
        self.plan = planner.SavePlan(self._items, planner_data=self._paths)
        return self.plan

    def resolve_data(self, write_item: planner.WriteItem) -> Tensor:
        return self._chunks[write_item.index].made(self._memory, self._ranges)


class _Writer(filesystem.FileSystemWriter):
    """Puts files in place when they are whole, under names that no other run has."""

    def __init__(self, folder: Path, token: str) -> None:
        # One chunk at a time: none is asked for before the last is written.
        super().__init__(folder, thread_count=1, per_thread_copy_ahead=0)
        self.fs = _Files()
        self._token = token

    def prepare_global_plan(self, plans: list[planner.SavePlan]) -> list[planner.SavePlan]:
        plans = super().prepare_global_plan(plans)
        for plan in plans:
            plan.storage_data.prefix += f"{self._token}_"
        return plans


class _Files(filesystem.FileSystem):
    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if mode == "rb":
            with super().create_stream(path, mode) as stream:
                yield stream
        else:
            with replacing(path) as file:
                yield _Unclosed(file)


class _Unclosed:
    """A file that torch's writer does not close before it is on disk."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def close(self) -> None:
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
