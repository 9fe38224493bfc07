"""torch.distributed's private names, each with what breaks without it.

Whoever needs one asks here, as with :mod:`fastinit.base.torch_internals`.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastinit.base.torch_internals import operator_name, schema_arguments

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Shard, _StridedShard


def awaited(tensor: Tensor) -> Tensor:
    """The result of a collective that may still run, waited for; another tensor as it is.

    Without it, results are read too early.
    """
    module = sys.modules.get("torch.distributed._functional_collectives")
    if module is not None and isinstance(tensor, module.AsyncCollectiveTensor):
        waited: Tensor = tensor.wait()
        return waited
    return tensor


def default_store() -> Any:
    """What the ranks of the default group can leave each other words in.

    Without it, ranks hear that another has ended, but not why.
    """
    return torch.distributed.distributed_c10d._get_default_store()


def process_groups() -> list[Any]:
    """The process groups that this rank is in, in the order in which they were made.

    Without it, the ranks of a group that somebody else uses cannot be asked anything.
    """
    return list(torch.distributed.distributed_c10d._world.pg_map)


def save_checkpoint(writer: Any, planner: Any, group: Any, *, alone: bool) -> Any:
    """Writes what a planner says, as ``dcp.save`` does, with a group or alone; returns the metadata.

    Without it, who writes alone would be warned that torch.distributed is not there.
    """
    from torch.distributed.checkpoint import state_dict_saver

    return state_dict_saver._save_state_dict(
        {}, writer, process_group=group, no_dist=alone, planner=planner
    )


def fsdp2_modules() -> list[torch.nn.Module]:
    """All modules that ``fully_shard`` was called on, of any model.

    Without it, a part of one that holds what FSDP2 gathered would be written to no effect.
    """
    states = sys.modules.get("torch.distributed._composable_state")
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if states is None or fsdp is None:
        return []
    return [m for m in list(states._module_state_mapping) if isinstance(m, fsdp.FSDPModule)]


def end_fsdp2_forward(module: torch.nn.Module) -> None:
    """Makes one that ``fully_shard`` was called on what it is when no forward runs.

    torch 2.13's ``reset_iter_state`` does it for the root of a model. Without it, what a forward that
    failed had gathered would stay, and the next would not gather as the first of its modules does.
    """
    state: Any = module._get_fsdp_state()  # type: ignore[operator]
    idle = type(state._training_state).IDLE
    groups = getattr(state, "_fsdp_param_groups", None)
    for group in [state._fsdp_param_group] if groups is None else groups:
        if group is not None:
            group._all_gather_result = None
            group._training_state = idle
    getattr(state, "_modules_to_run_forward", set()).clear()
    state._training_state = idle
    state._state_ctx.iter_forward_root = None


def group_of_collective(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The process group whose ranks all call an operator together, which is so called; None of others.

    To send from one to one is no collective.
    """
    if operator_name(func).strip("_") in ("send", "recv", "recv_any_source"):
        return None
    for place, argument in enumerate(schema_arguments(func)):
        if argument.name in ("process_group", "group_name"):
            group = args[place] if place < len(args) else kwargs[argument.name]
            if isinstance(group, str):
                c10d: Any = torch.distributed.distributed_c10d
                return c10d._resolve_process_group(group)
            kind: Any = torch.distributed.ProcessGroup
            return group if isinstance(group, kind) else kind.unbox(group)
    return None


class Replicas(NamedTuple):
    """What DistributedDataParallel does for a module's parameters."""

    group: Any
    """Whose ranks have the same."""
    left: set[int]
    """By their ``id``, those that it was told to leave to each rank."""


def replicas_of(module: torch.nn.Module) -> Replicas | None:
    """Of one that DistributedDataParallel wraps, or that ``replicate`` put it into and that ran since.

    Without it, of a model that is replicated by ``replicate`` each rank would scale its own copy.
    """
    ddp: Any = module
    if not isinstance(module, torch.nn.parallel.DistributedDataParallel):
        composable = sys.modules.get("torch.distributed._composable.replicate")
        if composable is None or not isinstance(module, composable.DDP):
            return None
        ddp = getattr(composable.replicate.state(module), "_ddp", None)  # made by the first forward
        if ddp is None:
            return None
    own = ddp.module.named_parameters()
    kept = {id(p) for name, p in own if name not in ddp.parameters_to_ignore}
    return Replicas(ddp.process_group, {id(p) for p in module.parameters()} - kept)


class FlatRange(NamedTuple):
    """What FSDP1 has on this rank of a parameter that it laid into a flat one."""

    module: torch.nn.Module
    key: str
    """The parameter's name in ``module``."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Of the full parameter; its elements are in the order of its memory."""
    start: int
    """The first of them that is here."""
    offset: int
    """Where that is in the flat parameter, as that is now."""
    length: int
    view: torch.nn.Parameter | None
    """What ``module`` has instead of the parameter, with ``use_orig_params``."""
    is_extended: bool
    """Whether something cut it before, as tensor parallelism does."""

    @property
    def numel(self) -> int:
        """The full parameter's."""
        return math.prod(self.shape)


class FlatParameter(NamedTuple):
    """Several parameters end to end, of which FSDP1 keeps a range."""

    tensor: torch.nn.Parameter
    is_whole: bool
    """Whether all is there now."""
    is_lost: bool
    """Whether all was gathered for computing, and what is written will be dropped."""
    ranges: list[FlatRange]


def fsdp1_flats(model: torch.nn.Module) -> list[FlatParameter]:
    """The flat parameters of FullyShardedDataParallel. Without it, nobody knows what these hold."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp._common_utils import HandleTrainingState

    handles = [module._handle for module in FullyShardedDataParallel.fsdp_modules(model)]
    found = []
    for handle in filter(None, handles):
        flat = handle.flat_param
        is_whole = not handle.is_sharded(flat)
        summoned = handle._training_state == HandleTrainingState.SUMMON_FULL_PARAMS
        ends = itertools.accumulate(flat._numels_with_padding)
        own = [
            (0, end - size, size)
            for end, size, padding in zip(ends, flat._numels_with_padding, flat._is_padding_mask)
            if not padding
        ]
        if not is_whole:
            own = [
                (its[3], its[1], its[2]) if its.in_shard else (0, 0, 0)  # type: ignore[misc]
                for its in flat._shard_param_infos
            ]
        views = [None] * len(own) if flat._params is None else flat._params
        ranges = [
            FlatRange(
                info.module,
                info.param_name,
                tuple(flat._shapes[i]),
                tuple(flat._strides[i]),
                *own[i],
                views[i],
                flat._param_extensions[i] is not None,
            )
            for i, info in enumerate(flat._param_infos)
        ]
        gathered = is_whole and handle.uses_sharded_strategy and not summoned
        is_lost = gathered or handle._skipped_use_sharded_views
        found.append(FlatParameter(flat, is_whole, is_lost, ranges))
    return found


def class_before_fsdp2(module: torch.nn.Module) -> type[torch.nn.Module]:
    """A module's class, without what ``fully_shard`` and ``replicate`` put before it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, fsdp.FSDPModule):
        return type(module)
    kinds = (k for k in type(module).__mro__ if not issubclass(k, fsdp.FSDPModule))
    return next(kind for kind in kinds if issubclass(kind, torch.nn.Module))


def shard_placements() -> tuple[type[Shard], type[_StridedShard]]:
    """Those that cut: Shard, and that of FSDP2 over tensor parallelism, refused without it."""
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    return Shard, _StridedShard


def shard_order(tensor: DTensor) -> list[int] | None:
    """The mesh's dimensions in the order in which they cut a DTensor, where it says so.

    It may not of strided shards. Without it, what is cut in another order than from the left would be
    written with others' values.
    """
    order: Any = tensor._spec.shard_order
    return None if order is None else [dim for entry in order for dim in entry.mesh_dims]
