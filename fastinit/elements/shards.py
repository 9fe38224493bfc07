"""Shards: which elements of the full parameter a tensor holds, and where. Nothing is communicated.

A rank's part of a tensor that is sharded over a device mesh follows from the placements and the rank's
place in the mesh. It is one block of the full tensor, or several where a dimension is dealt out in turns
(FSDP2 over tensor parallelism). What is no DTensor is all of its parameter, or is refused.
torch.distributed is only looked at if someone has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.elements import partitioned
from fastinit.elements.strided import Piece, Strided

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Runs = list[tuple[int, int]]
"""(start, length) of the indices that are held of one dimension, in their order."""


def is_dtensor(tensor: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, in the same memory: all of it, unless it is a DTensor."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local().detach()


def is_part(tensor: Tensor) -> bool:
    """Whether other ranks hold other elements of the same tensor."""
    return is_dtensor(tensor) and not all(p.is_replicate() for p in tensor.placements)


def check_placements(tensor: DTensor, argument: str = "tensor") -> None:
    """Raises NotImplementedError unless a DTensor's local tensor holds elements of the full one.

    So it does if each placement is Replicate or Shard (or FSDP2's strided one). Partial is refused,
    except over one rank, whose part of the sum is the sum.
    """
    from torch.distributed.tensor.placement_types import Partial, Replicate

    for mesh_dim, placement in enumerate(tensor.placements):
        if isinstance(placement, (Replicate, *internals.shard_placements())):
            continue
        if isinstance(placement, Partial) and tensor.device_mesh.size(mesh_dim) == 1:
            continue
        raise NotImplementedError(
            f"{argument} is a DTensor with placement {placement!r}, whose local tensor holds no "
            f"elements of the full one; redistribute() it to Replicate() or Shard() first"
        )


def check_held(tensor: Tensor, argument: str = "tensor", *, constant: bool = False) -> None:
    """Raises unless it is known which elements of the full tensor this one holds, and it holds them.

    Args:
        constant: all elements shall be the same, so that it need not be known which these are.

    Raises:
        NotImplementedError: a DTensor with placements of other kinds (:func:`check_placements`), or that
            is a view of another but shares no memory with it, as where torch gathered the dimension that
            was cut; a plain tensor that is a part of a parameter (:mod:`fastinit.elements.partitioned`).
    """
    if not is_dtensor(tensor):
        partitioned.check_whole(tensor, argument, constant=constant)
        return
    check_placements(tensor, argument)
    base = internals.base_of(tensor)
    if is_dtensor(base) and _storage(tensor) != _storage(base):
        raise NotImplementedError(
            f"{argument} is a view that torch gathered of a DTensor with placements {base.placements}: "
            f"what is written to it would not reach that; write the whole DTensor"
        )


def _storage(tensor: DTensor) -> int:
    return internals.storage_id(local(tensor))


def pieces(tensor: Tensor, argument: str = "tensor") -> list[Piece]:
    """The blocks of a DTensor that this rank holds; none on a rank that is not in its mesh.

    Raises:
        NotImplementedError: as :func:`check_held`; a local tensor of another shape than the placements
            say.
    """
    assert is_dtensor(tensor)
    check_held(tensor, argument)
    mesh, here = tensor.device_mesh, local(tensor)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return []
    held: list[Runs] = [[(0, size)] for size in tensor.shape]
    for mesh_dim in _order(tensor):
        placement = tensor.placements[mesh_dim]
        if isinstance(placement, internals.shard_placements()):
            # Of an ordinary shard there is one turn: all indices are chunked at once.
            turns = int(getattr(placement, "split_factor", 1))
            dim, ranks, rank = placement.dim, mesh.size(mesh_dim), coordinate[mesh_dim]
            held[dim] = _merged(
                run
                for turn in range(turns)
                for run in _chunk(_chunk(held[dim], turns, turn), ranks, rank)
            )
    shape = tuple(sum(length for _, length in runs) for runs in held)
    if shape != tuple(here.shape):
        raise NotImplementedError(
            f"{argument} is a DTensor whose local tensor has shape {tuple(here.shape)}, but its "
            f"placements {tensor.placements} give {shape} on this rank"
        )
    return [piece for piece in _blocks(here, held, tensor.shape) if piece.which.numel]


def write_whole_(tensor: DTensor, write: Callable[[Tensor], object]) -> DTensor:
    """Writes a DTensor by a function of whole tensors, and returns it.

    The function writes a full one, of which this rank keeps its part. Ranks that hold nothing, and meta
    tensors, need none.
    """
    held = pieces(tensor)
    if held and not tensor.is_meta:
        full = torch.empty(tensor.shape, dtype=tensor.dtype, device=held[0].tensor.device)
        write(full)
        copy_(tensor, full)
    return tensor


def copy_(tensor: Tensor, full: Tensor) -> None:
    """Copies this rank's elements of a DTensor from the full tensor, which is contiguous."""
    with torch.no_grad():
        for piece in pieces(tensor):
            piece.tensor.copy_(piece.which.on(full))
    torch.autograd.graph.increment_version(tensor)


def _order(tensor: DTensor) -> Sequence[int]:
    """The mesh's dimensions in the order in which they shard: from the left, unless the spec says."""
    order = internals.shard_order(tensor)
    return range(tensor.device_mesh.ndim) if order is None else order


def _chunk(runs: Runs, chunks: int, which: int) -> Runs:
    """One of the chunks, empty ones included, that ``torch.chunk`` would make of a dimension's indices.

    Args:
        runs: the indices, n in all.
        chunks: at least 1; each has ceil(n / chunks) indices, but for the last ones.
        which: in ``range(chunks)``.
    """
    size = -(-sum(length for _, length in runs) // chunks)
    first, last = which * size, (which + 1) * size
    taken, before = [], 0
    for start, length in runs:
        low, high = max(first - before, 0), min(last - before, length)
        if low < high:
            taken.append((start + low, high - low))
        before += length
    return taken


def _merged(runs: Iterable[tuple[int, int]]) -> Runs:
    """The runs, neighbours as one."""
    merged: Runs = []
    for start, length in runs:
        first, before = merged[-1] if merged else (0, 0)
        if merged and first + before == start:
            merged[-1] = (first, before + length)
        else:
            merged.append((start, length))
    return merged


def _blocks(here: Tensor, held: Sequence[Runs], shape: Sequence[int]) -> list[Piece]:
    """Each combination of the dimensions' runs.

    Args:
        here: the local tensor, of as many indices in each dimension as are held.
        held: runs of the full tensor's indices, for each dimension.
        shape: the full tensor's.
    """
    _, _, strides = Strided.contiguous(shape)
    pieces = [Piece(here, Strided(0, tuple(here.shape), strides))]
    for dim, runs in enumerate(held):
        lengths = [length for _, length in runs]
        pieces = [
            Piece(view, Strided(offset + start * strides[dim], tuple(view.shape), strides))
            for tensor, (offset, _, _) in pieces
            for (start, _), view in zip(runs, tensor.split(lengths, dim))
        ]
    return pieces
