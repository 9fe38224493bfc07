"""Holders: whoever holds a tensor holds what takes its place; and which tensors share a storage."""

from __future__ import annotations

import copyreg
import gc
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals

T = TypeVar("T")


def exchange(tensor: Tensor, other: Tensor) -> None:
    """Each becomes what the other is, for whoever holds it: values, shape, device, ``requires_grad``.

    Attributes and classes stay where they are, but for those of wrappers such as DTensor, and of what
    becomes one. Hooks of the tensor stay its own, and so does a gradient that is on the other's device.
    """
    grads = [each.grad if each.is_leaf else None for each in (tensor, other)]
    wrapped = any(map(internals.is_traceable_wrapper_subclass, (tensor, other)))
    if wrapped and type(tensor) is not type(other):
        tensor.__class__, other.__class__ = type(other), type(tensor)
    names = [n for n in _slots(type(tensor)) if hasattr(tensor, n)] if wrapped else []
    internals.swap(tensor, other)
    for name in names:
        mine, theirs = getattr(tensor, name), getattr(other, name)
        setattr(tensor, name, theirs)
        setattr(other, name, mine)
    if wrapped:
        tensor.__dict__, other.__dict__ = other.__dict__, tensor.__dict__
    for each, grad in zip((tensor, other), grads):
        if grad is not None:
            each.grad = grad if grad.device == each.device else None
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if getattr(each, hooks, None):
                setattr(each, hooks, getattr(each, hooks))  # hands them to autograd again


def living(kind: type[T], is_wanted: Callable[[T], bool]) -> Iterator[T]:
    """All tensors, parameters and buffers, or all modules, that are alive in Python and wanted.

    What ``gc.freeze()`` has set apart is not among them.
    """
    kinds: dict[type, bool] = {}
    for one in gc.get_objects():
        its = type(one)
        if its not in kinds:
            kinds[its] = kind in its.__mro__
        if kinds[its] and is_wanted(one):
            yield one


def shared_beyond(known: Iterable[Tensor], storages: Iterable[torch.UntypedStorage]) -> bool:
    """Whether more tensors share any of some storages than those that are known."""
    count: dict[int, int] = {}
    for tensor in {id(tensor): tensor for tensor in known}.values():
        key = id(tensor.untyped_storage())
        count[key] = count.get(key, 0) + 1
    return any(internals.storage_uses(s) > count.get(id(s), 0) for s in storages)


def view_of(memory: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The view of other memory [numel] that has the elements that a tensor has in its storage.

    Args:
        dtype: of the storage's elements; by default the tensor's. A tensor of another dtype reads their
            bits, and so will the view.
    """
    if dtype not in (None, like.dtype):
        memory = memory.view(like.dtype)
    view = memory.as_strided(like.size(), like.stride(), like.storage_offset())
    return view.conj() if like.is_conj() else view


def _slots(kind: type) -> list[str]:
    names: list[str] = copyreg._slotnames(kind)  # type: ignore[attr-defined]
    return names


def empty_on(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """The view of another storage that has a tensor's elements, dtype, shape and strides."""
    made = torch.empty(0, dtype=like.dtype, device=storage.device)
    return made.set_(storage, like.storage_offset(), like.size(), like.stride())
