"""Kinds of tensors, in one table, and what is to come of writing and reading each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from ranks_seen import as_rank
from torch import Tensor, nn
from torch.masked import masked_tensor
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastinit.elements import tensors

SHAPE = (4, 6)


class Plain(Tensor):
    """A subclass that leaves operators alone: its memory is its own."""


class Own(Tensor):
    """A subclass with memory and with operators of its own."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


class Watching(TorchDispatchMode):
    """A mode that lets everything pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def data() -> Tensor:
    return torch.linspace(-1.0, 2.0, 24).view(SHAPE)


def resized(kept: int) -> Tensor:
    tensor = data()
    tensor.untyped_storage().resize_(kept)
    return tensor


def view_of_freed() -> Tensor:
    tensor = data()
    view = tensor[1:, 2:]
    tensor.untyped_storage().resize_(0)
    return view


def waiting() -> Tensor:
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    return AsyncCollectiveTensor(data())


def sharded(placement: str, make: Callable[[], Tensor] = lambda: data()) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh

    placements = {"shard": Shard(0), "replicate": Replicate(), "partial": Partial()}
    mesh = init_device_mesh("cpu", (2,))
    return DTensor.from_local(make(), mesh, [placements[placement]], run_check=False)


def two_ranks() -> AbstractContextManager[None]:
    """A process group of two, whose other rank is never asked."""
    return as_rank(0, 2)


def fake() -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(SHAPE)


def inside(transform: Callable[..., Any]) -> Callable[[Callable[[Tensor], object]], None]:
    """Calls a function with a tensor that stands for a value inside a transform."""

    def call(function: Callable[[Tensor], object]) -> None:
        def body(x: Tensor) -> Tensor:
            function(x)
            return x.sum()

        transform(body)

    return call


def directly(make: Callable[[], Tensor]) -> Callable[[Callable[[Tensor], object]], None]:
    return lambda function: (function(make()), None)[1]


class Kind:
    """One kind of tensor, and what is to come of it.

    Args:
        call: hands a tensor of the kind to a function.
        write, read: the error that writing and reading it is, None where it works.
        text: of the error.
        left: writing leaves it alone: it has no values.
    """

    def __init__(
        self,
        call: Callable[[Callable[[Tensor], object]], None],
        write: type[Exception] | None,
        read: type[Exception] | None,
        text: str = "",
        left: bool = False,
        within: Callable[[], Any] = nullcontext,
    ) -> None:
        self.call, self.write, self.read, self.text = call, write, read, text
        self.left, self.within = left, within


MISSING, FREED = NotImplementedError, "elements without memory"
KINDS = {
    "plain": Kind(directly(data), None, None),
    "parameter": Kind(directly(lambda: nn.Parameter(data())), None, None),
    "subclass": Kind(directly(lambda: data().as_subclass(Plain)), None, None),
    "lazily cloned": Kind(directly(lambda: torch._lazy_clone(data())), None, None),
    "negated": Kind(directly(lambda: torch.complex(data(), -data()).conj().imag), None, None),
    "negated, of one element": Kind(
        directly(lambda: torch.complex(data(), -data()).conj().imag[:1, :1]), None, None
    ),
    "strided": Kind(directly(lambda: data().repeat(2, 2)[::2, ::2]), None, None),
    "a result to come": Kind(directly(waiting), None, None, within=two_ranks),
    "under a mode": Kind(directly(data), None, None, within=Watching),
    "sharded": Kind(directly(lambda: sharded("shard")), None, None, within=two_ranks),
    "replicated": Kind(directly(lambda: sharded("replicate")), None, None, within=two_ranks),
    "partial": Kind(
        directly(lambda: sharded("partial")), MISSING, MISSING, "Partial", within=two_ranks
    ),
    "sharded and fake": Kind(
        directly(lambda: sharded("shard", fake)),
        None,
        ValueError,
        "FakeTensor",
        left=True,
        within=two_ranks,
    ),
    "freed": Kind(directly(lambda: resized(0)), RuntimeError, RuntimeError, FREED),
    "partly freed": Kind(directly(lambda: resized(40)), RuntimeError, RuntimeError, FREED),
    "view of freed": Kind(directly(view_of_freed), RuntimeError, RuntimeError, FREED),
    "zero tensor": Kind(
        directly(lambda: torch._efficientzerotensor(SHAPE)), MISSING, MISSING, "immutable zero"
    ),
    "meta": Kind(directly(lambda: data().to("meta")), None, ValueError, "is on meta", left=True),
    "fake": Kind(directly(fake), None, ValueError, "FakeTensor", left=True),
    "sparse": Kind(directly(lambda: data().to_sparse()), MISSING, MISSING, "layout"),
    "sparse rows": Kind(directly(lambda: data().to_sparse_csr()), MISSING, MISSING, "layout"),
    "mkldnn": Kind(directly(lambda: data().to_mkldnn()), MISSING, MISSING, "layout"),
    "nested": Kind(
        directly(lambda: torch.nested.nested_tensor([data(), data()])), MISSING, MISSING, "nested"
    ),
    "jagged": Kind(
        directly(lambda: torch.nested.nested_tensor([data(), data()], layout=torch.jagged)),
        MISSING,
        MISSING,
        "nested",
    ),
    "masked": Kind(
        directly(lambda: masked_tensor(data(), data() > 0)), MISSING, MISSING, "MaskedTensor"
    ),
    "two tensors": Kind(directly(lambda: TwoTensor(data(), data())), MISSING, MISSING, "TwoTensor"),
    "own operators": Kind(
        directly(lambda: Tensor._make_subclass(Own, data())), MISSING, MISSING, "Own"
    ),
    "in functionalize": Kind(
        inside(lambda f: torch.func.functionalize(f)(data())),
        MISSING,
        MISSING,
        "torch.func transform",
    ),
    "in vmap": Kind(
        inside(lambda f: torch.vmap(f)(data()[None])), MISSING, MISSING, "torch.func transform"
    ),
    "in grad": Kind(
        inside(lambda f: torch.func.grad(f)(data())), MISSING, MISSING, "torch.func transform"
    ),
    "in jvp": Kind(
        inside(lambda f: torch.func.jvp(f, (data(),), (data(),))),
        MISSING,
        MISSING,
        "torch.func transform",
    ),
}


def quietly(kind: str, function: Callable[[Tensor], object]) -> None:
    with warnings.catch_warnings(), KINDS[kind].within():
        warnings.simplefilter("ignore")  # torch's, of prototypes and deprecations
        KINDS[kind].call(function)


def readable(tensor: Tensor) -> Tensor:
    return tensors.values(tensor).clone()
