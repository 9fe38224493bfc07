"""Agreement: ranks that share a tensor and draw its seed each for itself have to draw the same.

Without ``seed=`` a DTensor's seed is drawn on each rank of its mesh, from generators that are in the
same state if the program treats them alike. Whether they are is asked of all ranks once, by one small
collective at the first such draw (of a mesh's ranks, with a generator). It does not see generators
that part later: ``check = "always"`` does.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import torch

from fastinit.base import ranks as group_of
from fastinit.base.torch_internals import without_dispatch
from fastinit.stream import keys

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

check: Literal["once", "always", "never"] = "once"
"""When ranks compare the seeds that they drew: at the first draw, at each, or never.

To be set alike on all ranks (``fastinit.agreement.check = "never"``), since a collective needs them all.
"""

_Agreed = MutableMapping[torch.Generator, set[frozenset[int]]]
# By process group, as what was agreed ends with it; sets of ranks, as submeshes are made anew each time.
_agreed: WeakKeyDictionary[object, _Agreed] = WeakKeyDictionary()


def draw_seed(mesh: DeviceMesh, generator: torch.Generator | None = None) -> int:
    """:func:`fastinit.stream.keys.draw_seed` for a mesh's tensor: the same on all ranks, or an error.

    A rank that is not in the mesh draws as the others do, and is not asked.

    Raises:
        RuntimeError: on every rank of the mesh, if they differ.
        ValueError: :data:`check` is none of the three.
    """
    seed = keys.draw_seed(generator)
    if check not in ("once", "always", "never"):
        raise ValueError(
            f'fastinit.agreement.check must be "once", "always" or "never", but got {check!r}'
        )
    if check == "never" or mesh.size() == 1 or mesh.get_coordinate() is None:
        return seed
    with without_dispatch():
        ranks = frozenset(mesh.mesh.flatten().tolist())
        agreed = _agreed_here().setdefault(generator or torch.default_generator, set())
        # If more ranks agreed, so did these; and those all know it, so that none waits for another.
        if check == "always" or not any(ranks <= more for more in agreed):
            _compare(mesh, seed)
            agreed.add(ranks)
    return seed


def _agreed_here() -> _Agreed:
    world = torch.distributed.group.WORLD
    if (agreed := _agreed.get(world)) is None:
        agreed = _agreed[world] = WeakKeyDictionary()
    return agreed


def _compare(mesh: DeviceMesh, seed: int) -> None:
    """Raises unless all ranks drew the same; a collective."""
    ranks_of: dict[int, list[int]] = {}
    rows = group_of.gathered(mesh, [keys.signed(seed)], "comparing the seeds that ranks drew")
    for rank, (signed,) in zip(group_of.members(mesh), rows):
        ranks_of.setdefault(signed & (1 << 64) - 1, []).append(rank)
    if len(ranks_of) > 1:
        said = "; ".join(
            f"rank{'s' if len(ranks) > 1 else ''} {group_of.listing(ranks)} drew {seed}"
            for seed, ranks in list(ranks_of.items())[:8]
        )
        raise RuntimeError(
            f"ranks differ in the seed that they drew for a DTensor: {said}. Each rank writes its shard "
            f"by itself, so bring their generators into the same state (torch.manual_seed), or give "
            f'seed=. Nothing was written. (fastinit.agreement.check = "never" leaves out this check.)'
        )
