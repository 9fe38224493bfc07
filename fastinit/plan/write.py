"""Writing: what a plan says of each parameter, written into tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastinit.elements import shards as shard
from fastinit.elements.strided import Piece, Strided
from fastinit.fills import operator as ops
from fastinit.plan.fill import Fill, write_whole_
from fastinit.plan.replay import Computed
from fastinit.stream.keys import stream_id

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Progress = Callable[[int, int], None]
"""(elements written, elements in all), after each batch."""

# With a progress callback a model is written in batches of at least this many elements: enough for
# the cost of starting one (microseconds) to vanish, few enough for a bar to move.
BATCH = 1 << 26


class Entry(NamedTuple):
    """A tensor to be written, and what it shall be. The name is that of its stream.

    Of a DTensor this rank's shard is written, with the values that the full tensor has there.
    """

    name: str
    tensor: Tensor
    fill: Fill | Computed


def check_entries(entries: Sequence[Entry]) -> None:
    """Raises, naming the parameter, unless all can be written.

    Raises:
        NotImplementedError, RuntimeError, ValueError: as ``fastinit.ops.check_writable``, and as the
            function of a distribution of whole tensors; a part outside its parameter; a tensor of
            which nobody knows the elements (``fastinit.elements.shards.check_held``).
    """
    for name, tensor, fill in entries:
        ops.check_target(tensor, name)
        if shard.is_dtensor(tensor):
            shard.pieces(tensor, name)
        if isinstance(fill, Computed):
            if fill.view.sizes != tuple(tensor.shape):
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, but was recorded as {fill.view.sizes}"
                )
            continue
        if not fill.has_law:
            try:
                whole = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                write_whole_(whole, fill, 0, name)
            except (ValueError, RuntimeError, NotImplementedError) as error:
                raise type(error)(f"{name}: {error}") from None
        for region, _ in fill.parts:
            if region.end > tensor.numel():
                raise ValueError(f"{name} has {tensor.numel()} elements, but a part at {region}")


def write_entries(entries: Sequence[Entry], seed: int, progress: Progress | None = None) -> None:
    """Writes all, those with a law in one launch or parallel region for each device.

    Args:
        progress: called after each of several batches, in which they are then written. Of DTensors it
            is told of the elements of this rank.
    """
    total = sum(shard.local(entry.tensor).numel() for entry in entries)
    written = 0
    for batch in [list(entries)] if progress is None else _batches(entries):
        _write(batch, seed)
        written += sum(shard.local(entry.tensor).numel() for entry in batch)
        if progress is not None:
            progress(written, total)


def _write(entries: Sequence[Entry], seed: int) -> None:
    plain: list[ops.Request] = []
    parts: list[list[ops.Request]] = []  # the first of each tensor, the second, ...: in this order
    copies: list[tuple[Tensor, Tensor]] = []
    for name, tensor, fill in entries:
        if shard.is_dtensor(tensor) and not _is_by_blocks(fill, tensor):
            _write_shard(name, tensor, fill, seed)
            continue
        if isinstance(fill, Computed):
            fill.write_(tensor, seed)
            continue
        if fill.parts and not shard.is_dtensor(tensor) and not tensor.is_contiguous():
            copies.append((tensor, torch.empty_like(tensor, memory_format=torch.contiguous_format)))
            tensor = copies[-1][1]
        stream = fill.stream or name
        if fill.has_law:
            plain.append(ops.Request(tensor, fill.law, seed, stream_id(stream)))
        else:
            write_whole_(tensor, fill, seed, stream)
        for place, (region, part) in enumerate(fill.parts):
            parts += [[]] if place == len(parts) else []
            parts[place] += _part(tensor, region, part, seed, name)
    for requests in (plain, *parts):
        ops.fill_many_(requests)
    for tensor, copy in copies:
        tensor.detach().copy_(copy)


def _part(
    tensor: Tensor, region: Strided, part: Fill, seed: int, name: str
) -> Iterator[ops.Request]:
    """A part of a tensor; of a DTensor what is in this rank's shard, as it is a block."""
    if shard.is_dtensor(tensor):
        block = region.block(tensor.shape)
        assert block is not None
        held = (piece.common(block) for piece in shard.pieces(tensor, name))
        pieces = [piece for piece in held if piece is not None]
    else:
        pieces = [Piece(region.on(tensor.detach()), region)]
    for view, which in pieces:
        yield ops.Request(view, part.law, seed, stream_id(part.stream or name), which)


def _is_by_blocks(fill: Fill | Computed, tensor: Tensor) -> bool:
    """Whether a shard can be written by itself: laws over the tensor, or over blocks of it."""
    return (
        isinstance(fill, Fill)
        and fill.has_law
        and all(region.block(tensor.shape) is not None for region, _ in fill.parts)
    )


def _write_shard(name: str, tensor: DTensor, fill: Fill | Computed, seed: int) -> None:
    """What needs the full tensor: that is made, written, and its elements of this rank copied."""
    shard.write_whole_(tensor, lambda full: _write([Entry(name, full, fill)], seed))


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    elements = 0
    for entry in entries:
        batch.append(entry)
        elements += shard.local(entry.tensor).numel()
        if elements >= BATCH:
            yield batch
            batch, elements = [], 0
    if batch:
        yield batch
