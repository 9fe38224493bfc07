"""The ranks of process groups and meshes: who they are, which is here, and what goes between them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor

from fastinit.base import distributed_internals as distributed
from fastinit.base import torch_internals as internals

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    Group: TypeAlias = "ProcessGroup | DeviceMesh | Grid | None"
else:
    Group = object  # of a torch without distributed
"""Some ranks. None: all (torch's default group), or this process alone where there is no group."""

_OUTSIDE = "this rank is not in the group"
LOST = -(2**63) + 1  # in each word of a row: whoever sends it lost a rank
PATIENCE = 5.0
"""Seconds in which a rank that failed waits for the others to hear it. Who comes later, waiting for it
in a collective of the model's own, hears it from the store, when this rank's process has ended."""


class Grid:
    """The ranks of groups that cross, each rank of one with each of the others; made by all of them.

    So they are where a model is sharded over one mesh and replicated over another group.

    Attributes:
        ranks: all, in ascending order.

    Raises:
        ValueError: on every rank, if the ranks that are reached are not the same from each.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.lines = [line for group in groups for line in lines(group)]
        self.ranks = [torch.distributed.get_rank()]
        reached = all_gather(self.lines, self.ranks, None).flatten().tolist()
        self.ranks = sorted(set(reached))
        all_say = set(map(tuple, all_gather(self.lines, reached, None).sort(1).values.tolist()))
        if len(all_say) > 1:
            raise ValueError("groups must cross, each rank of one with each of the others")


def is_up() -> bool:
    """Whether there is a process group, so that None is more than this process."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_available() and dist.is_initialized())


def here() -> int:
    """This process's global rank; alone it is 0."""
    return torch.distributed.get_rank() if is_up() else 0


def members(group: Group = None) -> list[int]:
    """The global ranks of a group, in its own order; of a mesh, row-major. TypeError: it is no group."""
    if group is None and not is_up():
        return [0]
    if isinstance(group, Grid):
        return group.ranks
    if mesh := _mesh(group):
        with internals.without_modes():
            ranks: list[int] = mesh.mesh.flatten().tolist()
        return ranks
    return list(torch.distributed.get_process_group_ranks(_process_group(group)))


def place(group: Group = None) -> int:
    """Which of the :func:`members` this rank is. Raises ValueError unless it is one."""
    those = members(group)
    if here() not in those:
        raise ValueError(_OUTSIDE)
    return those.index(here())


def group_of(ranks: Sequence[int]) -> ProcessGroup | None:
    """A process group of exactly these, the oldest that this rank is in; None without one."""
    if not is_up():
        return None
    groups = distributed.process_groups()
    return next((one for one in groups if sorted(members(one)) == sorted(ranks)), None)


def lines(group: Group) -> list[ProcessGroup]:
    """The process groups that a gather goes over, one after another; none where this rank is alone.

    Of a mesh, the last dimension's is the first.
    """
    if group is None and not is_up():
        return []
    if isinstance(group, Grid):
        return group.lines
    if mesh := _mesh(group):
        if mesh.get_coordinate() is None:
            raise ValueError(f"this rank is not in the mesh {mesh}")
        dims = (dim for dim in reversed(range(mesh.ndim)) if mesh.size(dim) > 1)
        return [mesh.get_group(dim) for dim in dims]
    dist = torch.distributed
    line = _process_group(group)
    if dist.get_rank(line) < 0:
        raise ValueError(_OUTSIDE)
    return [line] if dist.get_world_size(line) > 1 else []


def all_gather(lines: list[ProcessGroup], row: list[int], until: float | None) -> Tensor:
    """int64 [ranks, words], on the CPU: a row of each rank. Raises TimeoutError after ``until``.

    Each rank sends to each: in a ring, those who have no dead neighbour would wait for one that has,
    and gave up. Who lost a rank in one line tells the next.
    """
    dist = torch.distributed
    lost: RuntimeError | None = None
    with torch.no_grad():
        known = torch.tensor([row], dtype=torch.int64, device="cpu")
        for line in lines:
            size = dist.get_world_size(line)
            mine = known.to(_device(line)).repeat(size, 1)
            # Not empty: a group that only plays one (torch's "fake") leaves it as it is.
            known = mine.clone()
            try:
                work = dist.all_to_all_single(known, mine, group=line, async_op=True)
                while until is not None and not work.is_completed():
                    if time.monotonic() > until:
                        raise TimeoutError(f"no answer within {PATIENCE:g} s")
                    time.sleep(0.002)
                work.wait()
            except RuntimeError as error:
                lost, known = error, torch.full_like(known, LOST)
        known = known.cpu()
    if bool((known == LOST).all(1).any()):
        raise lost or ConnectionError("another rank lost one")
    return known


def _process_group(group: Group) -> ProcessGroup:
    """Of what is no mesh."""
    dist = torch.distributed
    if group is not None and not isinstance(group, getattr(dist, "ProcessGroup", ())):
        if is_up() and group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(_OUTSIDE)
        raise TypeError(f"group must be a process group, a device mesh or None, but got {group!r}")
    return cast("ProcessGroup", dist.group.WORLD if group is None else group)


def _device(line: ProcessGroup) -> torch.device:
    """Where a group's small tensors have to be: the CPU, if it has a backend for that."""
    config = torch.distributed.get_backend_config(line)
    kinds = [entry.partition(":")[0] for entry in config.split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])


def _mesh(group: Group) -> DeviceMesh | None:
    module = sys.modules.get("torch.distributed.device_mesh")
    is_one = module is not None and isinstance(group, module.DeviceMesh)
    return cast("DeviceMesh", group) if is_one else None
