"""Partitioned: plain tensors that are this rank's part of a parameter, or a stand-in for one.

Which elements of the full parameter does a tensor hold? A DTensor says so
(:mod:`fastinit.elements.shards`), and so does whoever passes a :class:`fastinit.Part`. A plain tensor
holds all, 0, 1, 2, ... in its own shape, unless what keeps it left a mark that it does not: then nobody
knows which elements these are, and writing them by their local index would give every rank the same
numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fastinit.base.native import module
from fastinit.base.torch_internals import base_of


class Mark(NamedTuple):
    """A tensor that is not all of its parameter."""

    said: str
    """What it is: the rest of "tensor ..."."""
    way_out: str
    is_here: bool
    """Whether it is in the tensor's memory; otherwise that is a stand-in, and no write reaches it."""
    runs: bool = False
    """Whether its module computes with it as it is, and not with another tensor that is made of it."""


is_marked: Callable[[Tensor], bool] = module.is_marked if module else lambda tensor: True
"""Whether a tensor, or what it is a view of, has attributes: only then is more to be asked."""


def mark_of(tensor: Tensor) -> Mark | None:
    """What tells that a tensor is a part of its parameter; None if nothing does.

    What was taken from a part is one too. ``.data`` and ``.detach()`` give tensors that carry no mark.
    """
    if is_marked(tensor):
        base = base_of(tensor)
        for marked in (tensor,) if base is None else (tensor, base):
            for kept_by in _KEPT_BY:
                if (mark := kept_by(marked)) is not None:
                    return mark
    return None


def check_whole(tensor: Tensor, argument: str = "tensor", *, constant: bool = False) -> None:
    """Raises NotImplementedError for a tensor that is not all of its parameter.

    Args:
        constant: all elements shall be the same, so that a part can be written where it is.
    """
    mark = mark_of(tensor)
    if mark is not None and not (constant and mark.is_here):
        raise NotImplementedError(
            f"{argument} {mark.said}, and nothing says which elements of the full parameter it holds; "
            f"{mark.way_out}"
        )


def check_stays(tensor: Tensor, argument: str = "tensor") -> None:
    """Raises RuntimeError for a tensor that an optimizer overwrites with copies made of it before.

    Those of DeepSpeed do, of any precision (ZeRO-1 and 2 mark a parameter so that its copy, ``hp``, can
    be found, on all ranks; ZeRO-3 names the optimizer): what is written is lost at the next step.
    """
    if is_marked(tensor) and any(
        hasattr(each, mark)
        for each in (tensor, base_of(tensor))
        for mark in ("_hp_mapping", "_z3_optimizer")
    ):
        raise RuntimeError(
            f"{argument} has copies in DeepSpeed's optimizer, which what is written now would not "
            f"reach; write the model before deepspeed.initialize"
        )


def check_runs(tensor: Tensor, argument: str, ranks_said: bool) -> None:
    """Raises NotImplementedError unless a module that runs computes with a tensor, on known ranks.

    Args:
        ranks_said: whether somebody says which ranks have the other parts.

    Raises:
        RuntimeError: what is written to it does not stay (:func:`check_stays`).
    """
    check_stays(tensor, argument)
    mark = mark_of(tensor)
    if mark is None or (mark.runs and ranks_said):
        return
    why = (
        "and nothing says which ranks have the others: give group="
        if mark.runs
        else "but its module runs with another tensor, which is made of it and dropped; run the model "
        "before it is wrapped, on many ranks with group="
    )
    raise NotImplementedError(f"{argument} {mark.said}, {why}")


def _fsdp1(tensor: Tensor) -> Mark | None:
    """FullyShardedDataParallel: one flat parameter, cut, whose original parameters are views of it.

    While it is gathered (``summon_full_params``), and with NO_SHARD, they have their shapes; what is of
    one dimension then looks as a part would.
    """
    way_out = (
        "say it, as in plan.apply_(model, parts=fastinit.frameworks.fsdp1.parts(model)), or write the "
        "model before FullyShardedDataParallel wraps it"
    )
    if getattr(tensor, "_is_flat_param", False):
        return Mark("is FSDP1's flat parameter, which is several in one", way_out, True)
    if getattr(tensor, "_fsdp_flattened", False) and tensor.dim() == 1 and _ranks() > 1:
        said = f"is a flat view of FSDP1's (shape {tuple(tensor.shape)}, use_orig_params=True)"
        return Mark(said, way_out, True)
    return None


def _zero3(tensor: Tensor) -> Mark | None:
    """DeepSpeed's ZeRO stage 3: an empty stand-in, unless gathered; the part is elsewhere."""
    full = getattr(tensor, "ds_shape", None)
    if full is None or tuple(tensor.shape) == tuple(full):
        return None
    return Mark(
        f"is a stand-in of shape {tuple(tensor.shape)} for a parameter of DeepSpeed's ZeRO stage 3, of "
        f"shape {tuple(full)}",
        "say it, as in plan.apply_(model, parts=fastinit.frameworks.deepspeed.parts(model)), or write "
        "it within deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)",
        False,
    )


def _megatron(tensor: Tensor) -> Mark | None:
    """Megatron's tensor parallelism: a plain tensor that is one rank's rows or columns."""
    if not getattr(tensor, "tensor_model_parallel", False) or _tensor_parallel_ranks() == 1:
        return None
    return Mark(
        f"is one rank's part, along dimension {getattr(tensor, 'partition_dim', '?')}, of a parameter "
        f"that Megatron has split (shape {tuple(tensor.shape)})",
        "say it, as in plan.apply_(model, parts=fastinit.frameworks.megatron.parts(model)), or by part= "
        "(fastinit.Part)",
        True,
        runs=True,
    )


def _spmd_types(tensor: Tensor) -> Mark | None:
    """spmd_types, torchtitan's default backend: a plain tensor that varies (V) over axes of a mesh."""
    types = getattr(tensor, "_local_type", None)
    if not isinstance(types, dict) or not any(
        getattr(t, "name", "") == "V" for t in types.values()
    ):
        return None
    return Mark(
        f"is one rank's part of a parameter that spmd_types has split (shape {tuple(tensor.shape)})",
        "write it after fully_shard has made a DTensor of it, or before it is split",
        True,
        runs=True,
    )


def _ddp_of_dtensors(tensor: Tensor) -> Mark | None:
    """DistributedDataParallel with a device mesh: a local part; each forward makes a DTensor of it."""
    spec = getattr(tensor, "_st_info", None)
    if spec is None or all(
        placement.is_replicate() or spec.mesh.size(dim) == 1
        for dim, placement in enumerate(spec.placements)
    ):
        return None
    return Mark(
        f"is one rank's part (placements {spec.placements}) of a DTensor that DistributedDataParallel "
        f"took apart (shape {tuple(tensor.shape)} of {tuple(spec.shape)})",
        "write the model before DistributedDataParallel wraps it, or say it by part= (fastinit.Part)",
        True,
    )


def _tensor_parallel_ranks() -> int:
    """The number of ranks over which Megatron splits; all ranks, where it does not say."""
    state = sys.modules.get("megatron.core.parallel_state")
    if state is not None and state.model_parallel_is_initialized():
        return int(state.get_tensor_model_parallel_world_size())
    return _ranks()


def _ranks() -> int:
    dist = sys.modules.get("torch.distributed")
    distributed = dist is not None and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if dist is not None and distributed else 1


_KEPT_BY: tuple[Callable[[Tensor], Mark | None], ...] = (
    _fsdp1,
    _zero3,
    _megatron,
    _spmd_types,
    _ddp_of_dtensors,
)
