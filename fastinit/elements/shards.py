"""Shards: which part of its parameter a tensor is, asked of the tensor. Nothing is communicated.

A rank's :class:`fastinit.Part` of a tensor that is sharded over a device mesh follows from the
placements and the rank's place in the mesh. What is no DTensor is the part that whoever passes it says,
otherwise all of its parameter, or is refused. torch.distributed is only looked at if someone has
imported it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import mul
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
from torch import Tensor

from fastinit.base import distributed_internals as distributed
from fastinit.base import torch_internals as internals
from fastinit.elements import partitioned
from fastinit.elements.part import Part, check_part, chunk_of, nothing
from fastinit.elements.pieces import Piece

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


PLAIN = (Tensor, torch.nn.Parameter)
"""Classes whose tensors have no operators of their own."""


def is_dtensor(tensor: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor."""
    if type(tensor) in PLAIN:  # most are, and this is asked often
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, in the same memory: all of it, unless it is a DTensor."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local().detach()


def detached(tensor: Tensor) -> Tensor:
    """``tensor.detach()``, also of a DTensor in inference mode, in which torch cannot make one."""
    if not is_dtensor(tensor):
        return tensor.detach()
    with torch.inference_mode(False):
        return tensor.detach()


def is_part(tensor: Tensor) -> bool:
    """Whether other ranks hold other elements of the same tensor."""
    return is_dtensor(tensor) and not all(p.is_replicate() for p in tensor.placements)


def check_placements(tensor: DTensor, argument: str = "tensor") -> None:
    """Raises NotImplementedError unless a DTensor's local tensor holds elements of the full one.

    So it does if each placement is Replicate or Shard (or FSDP2's strided one). Partial is refused,
    except over one rank, whose part of the sum is the sum. Of a mesh that does not list its ranks in
    ascending order torch says two things: offsets are those of the places in the mesh, but what it
    distributes, gathers, and shards by FSDP2 is in the order of the ranks.
    """
    from torch.distributed.tensor.placement_types import Partial, Replicate

    for mesh_dim, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            continue
        if isinstance(placement, distributed.shard_placements()):
            if not _ascends(tensor.device_mesh, mesh_dim):
                raise NotImplementedError(
                    f"{argument} is a DTensor sharded over a mesh that does not list its ranks in "
                    f"ascending order, {tensor.device_mesh}: torch gathers its parts in another order "
                    f"than it counts them; sort the ranks along each dimension of the mesh"
                )
            continue
        if isinstance(placement, Partial) and tensor.device_mesh.size(mesh_dim) == 1:
            continue
        raise NotImplementedError(
            f"{argument} is a DTensor with placement {placement!r}, whose local tensor holds no "
            f"elements of the full one; redistribute() it to Replicate() or Shard() first"
        )


@lru_cache(maxsize=64)
def _ascends(mesh: DeviceMesh, mesh_dim: int) -> bool:
    """Whether the ranks along a dimension of a mesh are in the order of their process group."""
    with internals.without_modes():
        return bool((mesh.mesh.diff(dim=mesh_dim) > 0).all())


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
        if partitioned.is_marked(tensor):
            partitioned.check_whole(tensor, argument, constant=constant)
        return
    check_placements(tensor, argument)
    base = internals.base_of(tensor)
    if is_dtensor(base) and _storage(tensor) != _storage(base):
        raise NotImplementedError(
            f"{argument} is a view that torch gathered of a DTensor with placements {base.placements}: "
            f"what is written to it would not reach that; write the whole DTensor"
        )


def check_runs(tensor: Tensor, argument: str, ranks_said: bool) -> None:
    """Raises unless it is known what a module that runs computes with, in place of this parameter.

    Args:
        ranks_said: whether somebody says which ranks have the other parts of a plain tensor.

    Raises:
        NotImplementedError: a DTensor, as :func:`check_held`; a plain tensor that is a part of a
            parameter, of which the module makes another (as FSDP1 does), or of unknown ranks.
    """
    if is_dtensor(tensor):
        check_held(tensor, argument)
    else:
        partitioned.check_runs(tensor, argument, ranks_said)


def _storage(tensor: DTensor) -> int:
    return internals.storage_id(local(tensor))


def part_of(tensor: Tensor, argument: str = "tensor", given: Part | None = None) -> Part | None:
    """The part of its parameter that a tensor is; None if it is all of it, as far as anything tells.

    Args:
        given: what whoever passes the tensor says of it.

    Raises:
        NotImplementedError: a part that is given of a DTensor, which says it itself; nobody knows the
            elements (:func:`check_held`); a DTensor whose local tensor has another shape than its
            placements say. TypeError: what is given is no Part.
    """
    if given is not None:
        check_part(given)
    elif type(tensor) in PLAIN and not partitioned.is_marked(tensor):
        return None  # so are most
    if not is_dtensor(tensor):
        if given is None:
            check_held(tensor, argument)
        return given
    if given is not None:
        raise NotImplementedError(f"{argument} is a DTensor, which has a part of its own already")
    check_held(tensor, argument)
    return _of_dtensor(tensor, argument)


def pieces(tensor: Tensor, argument: str = "tensor", part: Part | None = None) -> list[Piece]:
    """The blocks of its parameter that a tensor is; none on a rank that is not in a DTensor's mesh.

    Raises:
        as :func:`part_of`; ValueError: a tensor of another shape than a part that is given.
    """
    part = part_of(tensor, argument, part)
    here = local(tensor)
    return (Part(tuple(here.shape)) if part is None else part).pieces(here, argument)


class _Cut(NamedTuple):
    """What a dimension of a mesh makes of a tensor."""

    dim: int
    turns: int
    """In how many the indices are dealt out; an ordinary shard's are chunked at once."""
    ranks: int
    rank: int


def _of_dtensor(tensor: DTensor, argument: str) -> Part:
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return nothing(tensor.shape)
    cuts = {
        i: _Cut(p.dim, int(getattr(p, "split_factor", 1)), mesh.size(i), coordinate[i])
        for i, p in enumerate(tensor.placements)
        if isinstance(p, distributed.shard_placements())
    }
    order = distributed.shard_order(tensor)
    if order is None or any(cut.turns > 1 for cut in cuts.values()):
        order = list(cuts)  # from the left: turns say themselves what was cut before
    part = _cut(tuple(tensor.shape), tuple(cuts[i] for i in order))
    if part.local_shape != (here := tuple(local(tensor).shape)):
        raise NotImplementedError(
            f"{argument} is a DTensor whose local tensor has shape {here}, but its placements "
            f"{tensor.placements} give {part.local_shape} on this rank"
        )
    return part


@lru_cache(maxsize=64)
def _cut(shape: tuple[int, ...], cuts: tuple[_Cut, ...]) -> Part:
    """What is left of a tensor after some cuts, for many of few shapes."""
    part = Part(shape)
    for dim in range(len(shape)):
        its = [cut for cut in cuts if cut.dim == dim]
        for _, turns, ranks, rank in _made(its) or its:
            part = part.cut(dim, _in_turns(part.local_shape[dim], turns, ranks, rank))
    return part


def _made(cuts: Sequence[_Cut]) -> list[_Cut] | None:
    """Those of one dimension as ordinary shards in the order in which they were made, if turns say one.

    FSDP2 cuts what tensor parallelism has cut, which is further right in the mesh: turns say in how many
    parts that was. To deal out in turns from the left is the same only for sizes that divide, and for
    others torch does so where it distributes, but neither where FSDP2 cuts nor where it gathers.
    """
    made: list[_Cut] = []
    for cut in reversed(cuts):
        parts = list(itertools.accumulate((before.ranks for before in made), mul, initial=1))
        if cut.turns not in parts:
            return None
        made.insert(parts.index(cut.turns), cut._replace(turns=1))
    return made


def _in_turns(size: int, turns: int, ranks: int, rank: int) -> list[tuple[int, int]]:
    """The rank's chunk of each turn's chunk, as ``torch.chunk`` cuts both, of so many indices."""
    found = []
    for start, length in (chunk_of(size, turns, turn) for turn in range(turns)):
        first, held = chunk_of(length, ranks, rank)
        found.append((start + first, held))
    return found


def write_whole_(
    tensor: Tensor,
    write: Callable[[Tensor], object],
    part: Part | None = None,
    argument: str = "tensor",
) -> Tensor:
    """Writes a part of a parameter by a function of whole tensors, and returns it.

    The function writes a full one, of which the tensor gets its elements. Tensors that hold nothing, and
    meta tensors, need none.

    Args:
        part: of a tensor that does not say it itself.
    """
    part = part_of(tensor, argument, part)
    assert part is not None
    here = local(tensor)
    held = part.pieces(here, argument)
    if held and not tensor.is_meta:
        full = torch.empty(part.shape, dtype=tensor.dtype, device=here.device)
        write(full)
        copy_(held, full)
        torch.autograd.graph.increment_version(tensor)
    return tensor


def copy_(held: Sequence[Piece], full: Tensor) -> None:
    """Copies the pieces' elements from the full tensor, which is contiguous."""
    with torch.no_grad():
        for piece in held:
            piece.tensor.detach().copy_(piece.which.on(full))
