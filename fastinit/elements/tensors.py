"""Tensors: the one gate that says what a tensor is, before anything reads its address.

Below it comes only plain dense memory. Everything above (fills, moments, products, watch, lsuv_) asks
here, and asks the tensor itself (its storage, its dispatch, its placements), never its class's name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastinit.base import distributed_internals as distributed
from fastinit.base import torch_internals as internals
from fastinit.base.native import module
from fastinit.elements import shards as shard
from fastinit.elements.strided import Strided

Obstacle = tuple[type[Exception], str]
"""What stands between a tensor and its elements: the exception it is, and the rest of "tensor ..."."""


plain_address: Callable[[object], int]
plain_address = module.plain_address if module else lambda tensor: 0
"""The address of what is certainly contiguous memory, the CPU's or a CUDA device's, of a tensor's values
but for conjugation: the short way, for what is called often.

0 says nothing: the long way (:func:`obstacle`) looks closer. Dynamo does not know it.
"""

plain_cpu_address: Callable[[object], int]
plain_cpu_address = module.plain_cpu_address if module else lambda tensor: 0
"""The same of what is on the CPU."""

whole_address: Callable[[object], int]
whole_address = module.whole_address if module else lambda tensor: 0
"""The same of what is certainly all of its parameter (:mod:`partitioned`), and no computed temporary."""

whole_cpu_address: Callable[[object], int]
whole_cpu_address = module.whole_cpu_address if module else lambda tensor: 0
"""And of that which is on the CPU."""


def is_fake(tensor: Tensor) -> bool:
    """Whether it is a FakeTensor."""
    return internals.is_fake_class(type(tensor))


def is_traced(tensor: Tensor) -> bool:
    """Whether operators only trace it: a FakeTensor, or what export and AOTAutograd trace with."""
    return is_fake(tensor) or internals.is_export_tensor(tensor)


def obstacle(tensor: Tensor) -> Obstacle | None:
    """Why there is no plain dense memory behind a tensor's elements; None if there is.

    A meta tensor passes, as its elements are nowhere; so do lazily conjugated and negated views, whose
    memory is plain but holds other values. DTensors and asynchronous results are :func:`local`'s.
    """
    if plain_address(tensor):
        return None
    if torch.nn.parameter.is_lazy(tensor):
        return ValueError, "is uninitialised: it has no shape before its module has run"
    if internals.is_in_transform(tensor):
        return (
            NotImplementedError,
            "is a value inside a torch.func transform (vmap, grad, jvp, ...)",
        )
    if is_fake(tensor):
        return ValueError, "is a FakeTensor, which has no values"
    if is_traced(tensor) or internals.is_functionalised(tensor):
        return NotImplementedError, "is being functionalised: it has no memory of its own"
    if tensor.is_nested:
        return NotImplementedError, "is a nested tensor"
    if type(tensor).__torch_dispatch__ is not internals.plain_dispatch:
        kind = type(tensor)
        return (
            NotImplementedError,
            f"is a {kind.__module__}.{kind.__qualname__}, a tensor subclass with operators of its own: "
            f"only it knows where its elements are",
        )
    if tensor.is_quantized:
        return NotImplementedError, f"is quantised ({tensor.dtype})"
    if tensor.layout is not torch.strided:
        return NotImplementedError, f"has layout {tensor.layout}, not torch.strided"
    if internals.is_zero_tensor(tensor):
        return NotImplementedError, "is an immutable zero without memory (clone() it first)"
    if tensor.is_meta or tensor.numel() == 0:
        return None
    needed = Strided.of(tensor).end * tensor.itemsize
    there = tensor.untyped_storage().nbytes()
    if there < needed or tensor.data_ptr() == 0:
        return (
            RuntimeError,
            f"has elements without memory: they reach to byte {needed} of a storage of {there} bytes "
            f"(resized or freed, as by FSDP between uses)",
        )
    return None


def local(tensor: Tensor, argument: str = "tensor") -> Tensor:
    """The part of a tensor that is in this process's memory.

    Of a DTensor it is this rank's part, in the same memory and without a gradient; of an asynchronous
    result its value, for which this waits; any other tensor is returned as it is.

    Raises:
        NotImplementedError: a DTensor with a placement that holds no elements (Partial).
    """
    if shard.is_dtensor(tensor):
        shard.check_placements(tensor, argument)
        return local(shard.local(tensor), argument)
    return distributed.awaited(tensor)


def sizes(tensor: Tensor, argument: str = "tensor") -> torch.Size:
    """Its shape. Raises NotImplementedError where it has none: a nested tensor."""
    if tensor.is_nested:
        raise NotImplementedError(f"{argument} is a nested tensor, which has no shape")
    return tensor.shape


def is_left_alone(tensor: Tensor) -> bool:
    """Whether there is nothing to write: a FakeTensor that no mode traces, or a DTensor of one."""
    if type(tensor) in shard.PLAIN or torch.compiler.is_compiling():
        return False
    if shard.is_dtensor(tensor):
        return is_fake(shard.local(tensor))
    return is_fake(tensor) and not internals.dispatch_modes()


def memory(tensor: Tensor, argument: str = "tensor") -> Tensor:
    """The plain dense memory of a tensor (:func:`local`): what can be written; a meta tensor as it is.

    Raises:
        NotImplementedError: a kind of tensor that has none (sparse, quantised, nested, inside a
            torch.func transform, a subclass with operators of its own).
        ValueError: a FakeTensor.
        RuntimeError: a tensor whose storage is smaller than its elements need.
    """
    if plain_address(tensor):
        return tensor
    here = local(tensor, argument)
    if found := obstacle(here):
        raise found[0](f"{argument} {found[1]}")
    return here


def check_memory(tensor: Tensor, argument: str = "tensor") -> None:
    """Raises RuntimeError where torch's own operators, asked to write, would write freed memory."""
    if torch.compiler.is_compiling():
        return
    if (found := obstacle(tensor)) and found[0] is RuntimeError:
        raise RuntimeError(f"{argument} {found[1]}")


def values(tensor: Tensor, argument: str = "tensor") -> Tensor:
    """The plain dense memory that holds a tensor's values: what can be read.

    It is :func:`memory` without a gradient, and a copy of what is lazily conjugated or negated.

    Raises:
        as :func:`memory`; ValueError: also a meta tensor.
    """
    if plain_address(tensor):
        return tensor.detach().resolve_conj()
    if found := unreadable(tensor):
        raise found[0](f"{argument} {found[1]}")
    with torch.no_grad():
        return local(tensor, argument).detach().resolve_conj().resolve_neg()


def unreadable(tensor: Tensor) -> Obstacle | None:
    """Why a tensor's values cannot be read, or None."""
    if plain_address(tensor):
        return None
    try:
        here = local(tensor)
    except NotImplementedError as error:
        return NotImplementedError, str(error).removeprefix("tensor ")
    if found := obstacle(here):
        return found
    return (ValueError, "is on meta, which holds no values") if here.is_meta else None
