"""A plan as a checkpoint of torch.distributed.checkpoint: what is loaded from it is generated.

``dcp.load(state_dict, storage_reader=PlanReader("plan.json"))`` writes each rank's part of every tensor
that is asked for, with the bits of :meth:`fastinit.Plan.apply_`. Nothing is read but the plan.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from fastinit.base import ranks
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.plan.buffers import given
from fastinit.plan.fit import check_prefix
from fastinit.plan.plan import Plan
from fastinit.plan.write import Checked, Entry, checked

# The dimensions of a chunk in which any tensor's elements are: as many as a tensor can have.
_DIMS, _UNBOUNDED = 64, 1 << 60


@dataclass
class _AnyShape:
    """What there is of a tensor: all elements of whatever shape is asked for, as a plan has no shapes.

    It has what planners read of a ``TensorStorageMetadata`` to see which chunks hold the elements that
    they want, and no size for them to compare.
    """

    chunks: list[ChunkStorageMetadata] = field(
        default_factory=lambda: [
            ChunkStorageMetadata(torch.Size([0] * _DIMS), torch.Size([_UNBOUNDED] * _DIMS))
        ]
    )


class _Asked(NamedTuple):
    """What a rank is asked for."""

    ready: Checked
    values: list[tuple[str, Tensor, Part, Tensor]]
    """(name, where to, which elements of the whole, the whole), of what the plan has values of."""
    items: list[tuple[ReadItem, Tensor]]


class PlanReader(StorageReader):
    """Loads any state dict from a plan: tensors, and DTensors of any layout, each rank its own elements.

    Shapes and dtypes are the state dict's. It may ask for less than the plan has, and by any of a tied
    parameter's names. A recorded plan (:func:`fastinit.recorded_plan`), which was not saved, has the
    buffers too. What a plan knows nothing of, such as an optimizer's state, or buffers where it was read
    from a file, DCP refuses by name ("Missing key in checkpoint"); with
    ``DefaultLoadPlanner(allow_partial_load=True)`` it leaves that as it is. The ranks' plans and seeds
    are compared in passing.

    Args:
        plan: or the file that one was saved in. ``dcp.load(checkpoint_id=...)`` names another file.
        prefix: what the state dict's names begin with, and the plan's do not: ``"model."`` of
            ``{"model": get_model_state_dict(model)}``.

    Raises:
        OSError, ValueError: as :meth:`fastinit.Plan.load`. ValueError: a prefix without its dot.
        TypeError: no plan. Where ranks differ, or a
            tensor cannot be written, ``dcp.load`` raises torch's ``CheckpointException`` on all ranks,
            which names the rank, and no rank has written anything.
    """

    def __init__(self, plan: Plan | str | PathLike[str], *, prefix: str = "") -> None:
        self.plan = _loaded(plan)
        check_prefix(prefix)
        self.prefix = prefix

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Takes another plan, if the name of its file is given."""
        if checkpoint_id is not None:
            self.plan = _loaded(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The names that the plan has."""
        buffers = [name for name, known in self.plan.buffers.items() if given(known) is not None]
        names = (*self.plan, *self.plan.aliases, *buffers)
        return Metadata({self.prefix + name: _AnyShape() for name in names})  # type: ignore[misc]

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """There is nothing to open."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Tells the coordinator which rank this is, and which plan it has."""
        return replace(plan, storage_data=(ranks.here(), _digest(self.plan)))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Tells each which ranks load. Raises ValueError unless all have the same plan and seed."""
        those, said = zip(*(plan.storage_data for plan in plans))
        if others := [rank for rank, its in enumerate(said) if its != said[0]]:
            raise ValueError(
                f"ranks {ranks.listing(others)} have another plan or seed than rank 0, so that their "
                f"values would not be of one model"
            )
        return [replace(plan, storage_data=those) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Writes what is asked for, all in one parallel region or launch for each device.

        Nothing is written on any rank unless all can write theirs.
        """
        group = ranks.group_of(plan.storage_data)
        with ranks.together(group, "loading a plan") if group is not None else nullcontext():
            asked = self._asked(plan, planner)
        asked.ready.write()
        for name, tensor, part, content in asked.values:
            shard.copy_(part.pieces(tensor, name), content.contiguous())
        for item, tensor in asked.items:
            planner.commit_tensor(item, tensor)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _asked(self, plan: LoadPlan, planner: LoadPlanner) -> _Asked:
        """What this rank is asked for, checked."""
        entries, values = [], []
        items: list[tuple[ReadItem, Tensor]] = []
        done: set[object] = set()
        for item in plan.items:
            name = item.dest_index.fqn.removeprefix(self.prefix)
            tensor, part = _target(item, planner)
            items.append((item, tensor))
            key = (self.plan.aliases.get(name, name), tensor.data_ptr(), tensor.stride(), part)
            if key in done:  # tied, and asked for by both names
                continue
            done.add(key)
            content = self.plan[name] if name in self.plan else given(self.plan.buffers[name])
            if isinstance(content, Tensor):
                values.append((name, tensor, part, content))
            else:
                assert content is not None
                whole = part.is_whole and part.shape == tuple(tensor.shape)
                own = self.plan.aliases.get(name, name)
                entries.append(Entry(own, tensor, content, None if whole else part))
        ready = checked(entries, self.plan.seed)
        for name, _, part, content in values:
            if tuple(content.shape) != part.shape:
                raise ValueError(f"{name} has shape {part.shape}, but in the plan {content.shape}")
        return _Asked(ready, values, items)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """Whether it is a file's name."""
        return Path(checkpoint_id).is_file()


def _target(item: ReadItem, planner: LoadPlanner) -> tuple[Tensor, Part]:
    """(the memory that an item is to be written to, which elements of the full tensor these are)."""
    state = getattr(planner, "state_dict", None)
    if not isinstance(state, dict):
        raise TypeError(
            f"{type(planner).__name__} has no state_dict, as DefaultLoadPlanner has it: a plan takes "
            f"shapes from there"
        )
    name = item.dest_index.fqn
    whole, tensor = state[name], planner.resolve_tensor(item).detach()
    if shard.is_dtensor(whole) and tensor.shape == shard.local(whole).shape:
        part = shard.part_of(whole, name)  # also of several blocks, which an item cannot say
        assert part is not None
        return tensor, replace(part, name=None)
    part = Part(tuple(whole.size()))
    for dim, run in enumerate(zip(item.storage_offsets, item.lengths)):
        part = part.cut(dim, [run])
    return tensor, part


def _loaded(plan: object) -> Plan:
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, (str, PathLike)):
        return Plan.load(plan)
    raise TypeError(f"plan must be a fastinit.Plan or the name of a file, but got {plan!r}")


def _digest(plan: Plan) -> str:
    what = repr((plan.seed, [*plan.items()], sorted(plan.aliases.items())))
    return blake2b(what.encode(), digest_size=16).hexdigest()
