"""Which part of a layer's output a rank has, where the output says so, or did before it became plain.

Under tensor parallelism a layer gives a DTensor, of which hooks of its own make a plain tensor: a part
of it, or all of it. Which of the two shows in the number of elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from fastinit.base import distributed_internals as distributed
from fastinit.elements import shards as shard
from fastinit.elements.part import Part

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Cut(NamedTuple):
    """Texts that are equal on ranks that have the same part; empty: all of it, as far as can be told."""

    values: str = ""
    units: str = ""
    """Which of the units."""


UNCUT = Cut()
"""All of it."""


class Whole(NamedTuple):
    """An output before it became plain."""

    shape: tuple[int, ...]
    mesh: DeviceMesh


def whole_of(x: Tensor | None) -> Whole | None:
    """None of what is no DTensor."""
    return Whole(tuple(x.shape), x.device_mesh) if shard.is_dtensor(x) else None


def cut_of(x: Tensor, here: Tensor, whole: Whole | None, dim: int | None) -> Cut:
    """Which part of a layer's output a tensor is.

    Args:
        here: what this rank has of it.
        whole: what it was before it became plain, if anything else.
        dim: of units, if it is known.
    """
    if shard.is_dtensor(x):
        cut = {
            mesh_dim: placement.dim
            for mesh_dim, placement in enumerate(x.placements)
            if isinstance(placement, distributed.shard_placements())
        }
        units = [d for d, of in cut.items() if dim is not None and of == dim % x.dim()]
        return Cut(_place(x.device_mesh, list(cut)), _place(x.device_mesh, units))
    if whole is None or here.numel() == math.prod(whole.shape):
        return UNCUT
    place = _place(whole.mesh, list(range(whole.mesh.ndim)))
    same = dim is None or here.dim() != len(whole.shape) or here.shape[dim] == whole.shape[dim]
    return Cut(place, "" if same else place)


def text_of(part: Part | None) -> str:
    """The same for parts that are the same; empty for all of a parameter."""
    if part is None or part.is_whole:
        return ""
    return blake2b(repr(part).encode(), digest_size=8).hexdigest()


def _place(mesh: DeviceMesh, dims: list[int]) -> str:
    """This rank's place along some dimensions of a mesh."""
    place: Sequence[int] | None = mesh.get_coordinate()
    return " ".join(f"{d}:{place[d]}" for d in dims if place and mesh.size(d) > 1)
