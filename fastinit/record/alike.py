"""Alike: which tensors have the same values, on all ranks that have a part of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastinit.base import ranks
from fastinit.base.torch_internals import storage_id
from fastinit.elements import shards as shard
from fastinit.elements.strided import Strided
from fastinit.fills import agreement

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Alike:
    """Which of some tensors, of each of several groups, have the same values.

    DTensors have them if each rank's parts are the same, which all ranks of their mesh tell each other:
    a number for each, in one collective of a mesh, which all enter, whatever they have loaded. With
    ``fastinit.agreement.check = "never"`` nothing is asked, and none are.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]]) -> None:
        self._known: set[int] = set()
        """The ids of DTensors that have the values of the first of their group, on all ranks."""
        meshes: dict[DeviceMesh, list[tuple[Tensor, Tensor]]] = {}
        for first, *others in groups:
            for other in others:
                if (
                    shard.is_dtensor(first)
                    and shard.is_dtensor(other)
                    and _are_cut_alike(first, other)
                ):
                    meshes.setdefault(first.device_mesh, []).append((first, other))
        for mesh, pairs in meshes.items() if agreement.check != "never" else ():
            here = [_is_same(shard.local(one), shard.local(other)) for one, other in pairs]
            said = zip(*ranks.gathered(mesh, here, "comparing tied parameters"), strict=True)
            for pair, everywhere in zip(pairs, said, strict=True):
                self._known.update(map(id, pair) if all(everywhere) else ())

    def are(self, one: Tensor, other: Tensor) -> bool:
        """Whether two of a group are the same memory, or have the same values."""
        if shard.is_dtensor(one) or shard.is_dtensor(other):
            return {id(one), id(other)} <= self._known
        return _is_same(one, other)


def _are_cut_alike(one: Tensor, other: Tensor) -> bool:
    assert shard.is_dtensor(one)
    assert shard.is_dtensor(other)
    how, its = ((t.device_mesh, t.placements, t.shape, t.dtype) for t in (one, other))
    return how == its and one.device_mesh.get_coordinate() is not None


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one.is_meta or other.is_meta:
        return False
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    is_one = storage_id(one) == storage_id(other) and Strided.of(one) == Strided.of(other)
    return is_one or torch.equal(one, other)
