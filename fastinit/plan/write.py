"""Writing: what a plan says of each parameter, written into tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.base.number import NumberRangeError
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.elements.pieces import Piece
from fastinit.elements.strided import Strided, row_major, whole
from fastinit.fills import operator as ops
from fastinit.fills.wrapped import Wrapped, wrapped
from fastinit.plan.fill import Fill
from fastinit.plan.replay import Computed
from fastinit.plan.values import Values, check_shape, law_in, part_stream, write_values_
from fastinit.stream import laws
from fastinit.stream.keys import stream_id

Progress = Callable[[int, int], None]
"""(elements written, elements in all), after each batch."""

# With a progress callback a model is written in batches of at least this many elements: enough for
# the cost of starting one (microseconds) to vanish, few enough for a bar to move.
BATCH = 1 << 26

# A part of more blocks than this, of a DTensor, is written by way of the whole: each is a request.
BLOCKS = 1 << 10


class Entry(NamedTuple):
    """A tensor to be written, and what its parameter shall be. The name is that of its stream.

    Of a DTensor this rank's shard is written, with the values that the full tensor has there.
    """

    name: str
    tensor: Tensor
    fill: Fill | Computed
    part: Part | None = None
    """Of the parameter, where the tensor is one and does not say so itself."""


class Checked:
    """Entries that can all be written: what :func:`checked` gives."""

    def __init__(self, batches: list[_Batch], progress: Progress | None) -> None:
        self._batches = batches
        self._progress = progress

    def write(self) -> None:
        """Writes them, once: those with a law in one launch or parallel region for each device."""
        total = sum(batch.elements for batch in self._batches)
        written = 0
        for batch in self._batches:
            batch.write()
            written += batch.elements
            if self._progress is not None:
                self._progress(written, total)


def checked(entries: Iterable[Entry], seed: int, progress: Progress | None = None) -> Checked:
    """Checks that all can be written, and raises, naming the parameter, if one cannot.

    Args:
        progress: called after each of several batches, in which they are then written. Of DTensors it
            is told of the elements of this rank.

    Raises:
        NotImplementedError, RuntimeError, ValueError: as ``fastinit.ops.check_writable``, and as the
            function of a distribution of whole tensors; a part outside its parameter; a tensor of
            which nobody knows the elements (``fastinit.elements.shards.check_held``).
    """
    batches = [_Batch(seed)]
    for entry in entries:
        if progress is not None and batches[-1].elements >= BATCH:
            batches.append(_Batch(seed))
        batches[-1].add(entry, counted=progress is not None)
    return Checked(batches, progress)


class _Batch:
    """Entries that are written together."""

    def __init__(self, seed: int) -> None:
        self.elements = 0
        self._seed = seed
        self._of_laws = ops.Batch()  # of one law, whatever this rank has of it
        self._others: list[Entry] = []

    def add(self, entry: Entry, *, counted: bool) -> None:
        """Checks one and keeps it; its elements are only counted for whoever asks."""
        name, tensor, fill, part = entry
        if counted:
            self.elements += shard.local(tensor).numel()
        if (inner := wrapped(tensor, name)) is not None:
            self._add_wrapped(entry, inner)
            return
        if isinstance(fill, Fill) and fill.has_law and not fill.parts:
            stream = stream_id(fill.stream or name)
            law = law_in(fill, tensor.dtype)
            self._of_laws.add(ops.Request(tensor, law, self._seed, stream, part), name)
            return
        _check(entry)
        self._others.append(entry)

    def _add_wrapped(self, entry: Entry, inner: Wrapped) -> None:
        name, tensor, fill, part = entry
        if shard.is_dtensor(tensor):
            part = shard.part_of(tensor, name, part)
        if inner.values is not None:
            self.add(Entry(name, inner.values, fill, part), counted=False)
            return
        if not isinstance(fill, Fill) or not fill.has_law or fill.parts:
            raise NotImplementedError(
                f"{name} is stored as packed values and scales, which are written of one law, but it "
                f"has {fill}"
            )
        stream = stream_id(fill.stream or name)
        try:
            for request in inner.requests(fill.law, self._seed, stream, part):
                self._of_laws.add(request, name)
        except NumberRangeError as error:
            raise NumberRangeError(f"{name}: {error}") from None

    def write(self) -> None:
        seed = self._seed
        stages: list[list[Values]] = [
            []
        ]  # other bases, then the first part of each, the second, ...
        copies: list[tuple[Tensor, Tensor]] = []
        sharded: list[Tensor] = []
        for name, tensor, fill, given in self._others:
            blocks: list[_Blocks] | None = None
            shape = tuple(tensor.shape)
            if (part := shard.part_of(tensor, name, given)) is not None:
                shape = part.shape
                blocks = _by_blocks(fill, shape)
                if blocks is None or not isinstance(fill, Fill):
                    _write_shard(name, tensor, fill, seed, given)
                    continue
                sharded.append(tensor)
                pieces = part.pieces(shard.local(tensor), name)
            elif isinstance(fill, Computed):
                fill.write_(tensor, seed)
                continue
            else:
                if fill.parts and not tensor.is_contiguous():
                    contiguous = torch.empty_like(tensor, memory_format=torch.contiguous_format)
                    copies.append((tensor, contiguous))
                    tensor = contiguous
                pieces = [Piece(tensor, whole(shape))]
            if (base := fill.base) is not None:
                for view, which in pieces:
                    stages[0].append(Values(view, base, fill.stream or name, which, shape))
            for place, its in enumerate(fill.parts):
                stage = 0 if base is None else place + 1  # fused parts have no element in common
                stages += [[]] if stage == len(stages) else []
                if blocks is not None:
                    held = _held(pieces, blocks[place], its.own)
                else:
                    held = iter([Piece(its.region.on(tensor.detach()), its.which)])
                stream = part_stream(fill, place, name)
                of = its.region.sizes if its.own else shape
                stages[stage] += [Values(v, its.fill, stream, which, of) for v, which in held]
        write_values_(stages[0], seed, self._of_laws)
        for values in stages[1:]:
            write_values_(values, seed)
        for tensor, copy in copies:
            tensor.detach().copy_(copy)
        for tensor in sharded:  # the local tensors have counters of their own
            torch.autograd.graph.increment_version(tensor)


def _check(entry: Entry) -> None:
    """Raises unless an entry of more than one law can be written."""
    name, tensor, fill, part = entry
    ops.check_target(tensor, name, part)
    if part is not None:
        part.pieces(shard.local(tensor), name)
    shape = tuple(tensor.shape) if part is None else part.shape
    if isinstance(fill, Computed):
        if fill.shape != shape:
            raise ValueError(f"{name} has shape {shape}, but was recorded as {fill.shape}")
        return
    try:
        check_shape(fill, shape)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise type(error)(f"{name}: {error}") from None
    for law in (f.drawn for f in _fills(fill) if f.exact):
        laws.check_dtype(law, tensor.dtype, name)
    if tensor.is_complex() and not all(f.has_law for f in _fills(fill) if f.is_elementwise):
        raise NotImplementedError(
            f"{name} is complex, but steps and arange are of real values: {fill}"
        )


_Blocks = list[tuple[Strided, int]]


def _by_blocks(fill: Fill | Computed, shape: Sequence[int]) -> list[_Blocks] | None:
    """The blocks of each part; None if a shard cannot be written by itself, without the full tensor."""
    if not isinstance(fill, Fill) or not fill.is_by_elements:
        return None
    found: list[_Blocks] = []
    for part in fill.parts:
        blocks = part.region.blocks(shape, BLOCKS)
        if blocks is None:
            return None
        found.append(blocks)
    return found


def _held(pieces: Sequence[Piece], blocks: _Blocks, own: bool) -> Iterator[Piece]:
    """What this rank holds of a part, with the elements of the part's stream."""
    for block, first in blocks:
        for piece in pieces:
            if (common := piece.common(block)) is None:
                continue
            if own:  # counted in the block, whose first element is number ``first`` of the part
                strides = row_major(block.sizes)
                steps = zip(common.which.start, block.start, strides)
                offset = first + sum((place - start) * stride for place, start, stride in steps)
                common = Piece(common.tensor, Strided(offset, common.which.sizes, strides))
            yield common


def _fills(fill: Fill) -> Iterator[Fill]:
    """The base and the parts."""
    if fill.base is not None:
        yield fill.base
    for part in fill.parts:
        yield part.fill


def _write_shard(
    name: str, tensor: Tensor, fill: Fill | Computed, seed: int, part: Part | None
) -> None:
    """What needs the full tensor: that is made, written, and its elements of this rank copied."""
    shard.write_whole_(
        tensor, lambda full: checked([Entry(name, full, fill)], seed).write(), part, name
    )
