"""Writable: the checks before a fill, of one tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fastinit.elements import partitioned, tensors
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.elements.strided import Strided
from fastinit.fills.at_hand import SHORT_WAY, at_hand
from fastinit.stream import laws

# What every call needs, looked up once.
_is_compiling = torch.compiler.is_compiling
_is_marked = partitioned.is_marked
_plain_address = tensors.plain_address

_WRITABLE = SHORT_WAY | frozenset(laws.COMPLEX)


def check_target(tensor: Tensor, argument: str = "tensor", part: Part | None = None) -> None:
    """Raises unless a function of whole tensors can write ``tensor``, or the part that it is.

    Raises:
        as :func:`check_writable`, and as ``fastinit.elements.shards.part_of``.
    """
    if part is None and at_hand(tensor) and tensor.dtype in SHORT_WAY:
        return
    if _is_compiling():
        check_writable(tensor, argument)
        return
    check_writable(shard.local(tensor), argument)
    shard.part_of(tensor, argument, part)


def check_writable(tensor: Tensor, argument: str = "tensor") -> None:
    """Raises unless :func:`fill_` can write ``tensor``; see there for the exceptions."""
    if not _is_compiling() and is_short_way(tensor) and not _is_marked(tensor):
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{argument} must be a torch.Tensor, but got {type(tensor).__name__}")
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        raise ValueError(
            f"{argument} is an {type(tensor).__name__}: it has no shape yet; run the module once, or "
            f"call its materialize() method, before it is initialised"
        )
    if tensor.dtype not in _WRITABLE:
        raise NotImplementedError(
            f"{argument} must have a float8, float16, bfloat16, float32, float64 or complex dtype, but "
            f"got {tensor.dtype}"
        )
    check_place(tensor, argument)


def check_place(tensor: Tensor, argument: str) -> None:
    """Raises unless a tensor of any dtype has memory that can be written; see ``fill_``."""
    if _is_compiling() or tensors.is_traced(tensor):
        return  # what follows looks at the tensor's memory, which a traced tensor has none of
    partitioned.check_stays(tensor, argument)
    if shard.is_dtensor(tensor):
        raise NotImplementedError(
            f"{argument} is a DTensor, of which this rank holds a shard: Plan.apply_ can write it"
        )
    tensor = tensors.memory(tensor, argument)
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{argument} is an inference tensor: it can only be written inside torch.inference_mode()"
        )
    if tensor.numel() > 1 and not tensor.is_contiguous() and Strided.of(tensor).overlaps:
        raise RuntimeError(
            f"{argument} has elements that share memory (shape {tuple(tensor.shape)}, strides "
            f"{tensor.stride()}), so they cannot all be written; clone() it first"
        )


def is_short_way(tensor: Tensor) -> bool:
    """Whether it is certainly memory that can be written as it lies, and all that there is to ask."""
    return bool(_plain_address(tensor)) and tensor.dtype in SHORT_WAY
