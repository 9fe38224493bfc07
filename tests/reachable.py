"""Everything that a model holds: its tensors, numbers and objects, by the path that leads to each."""

from __future__ import annotations

import enum
import functools
import pathlib
import re
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LEAVES = (
    *(type(None), bool, int, float, complex, str, bytes, enum.Enum, range, slice, type),
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType, re.Pattern, pathlib.PurePath),
    *(torch.device, torch.dtype, torch.layout, torch.memory_format, torch.Size, torch.Generator),
    *(np.ndarray, np.generic, property),
)
REGISTERED = ("_parameters", "_buffers", "_modules")
ELSEWHERE = ("logging", "threading", "_thread", "typing", "importlib", "weakref", "_weakref")
"""Modules whose objects lead out of a model: into the process."""


class Held:
    """What can be reached from a model: attributes, containers, closures, partials, hooks, optimizers.

    Args:
        model: its own parameters, buffers and modules have the names that it gives them.
        outside: ids of objects that are not the model's, such as functions: they are not entered.
    """

    def __init__(self, model: nn.Module, outside: Set[int] = frozenset()) -> None:
        self.model, self.outside = model, outside
        self.places: dict[str, str] = {}
        """Of every path the first one that led to the same object."""
        self.classes: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.leaves: dict[str, Any] = {}
        self.objects: dict[int, Any] = {}
        self._first: dict[int, str] = {}
        own = [
            *model.named_modules(remove_duplicate=False),
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        for path, item in own:
            self._place(path, item)
        stack = list(reversed(own))
        entered: set[int] = set()
        while stack:
            path, item = stack.pop()
            if isinstance(item, LEAVES) and not _is_method(item):
                self.leaves[path] = item
            elif id(item) not in outside or isinstance(item, (Tensor, nn.Module)):
                self._place(path, item)
                if id(item) not in entered:
                    entered.add(id(item))
                    stack += reversed(list(self._inside(path, item)))
        for path, leaf in self.leaves.items():
            if type(leaf) is int and leaf in self._first:
                self.leaves[path] = f"id of {self._first[leaf]}"

    def _place(self, path: str, item: Any) -> None:
        first = self._first.setdefault(id(item), path)
        self.places[path] = first
        if first == path and id(item) not in self.objects:
            self.objects[id(item)] = item  # kept, so that its id stays its own
            self.classes[path] = f"{type(item).__module__}.{type(item).__qualname__}"
            if isinstance(item, Tensor):
                self.tensors[path] = item

    def _inside(self, path: str, item: Any) -> Iterator[tuple[str, Any]]:
        """What an object holds."""
        if isinstance(item, (list, tuple, deque)):
            yield from ((f"{path}[{i}]", value) for i, value in enumerate(item))
        elif isinstance(item, Mapping):
            yield from self._entries(path, item)
        elif isinstance(item, Set):
            ordered = sorted(item, key=lambda value: self._first.get(id(value), repr(value)))
            yield from ((f"{path}{{{i}}}", value) for i, value in enumerate(ordered))
        elif isinstance(item, weakref.ref):
            yield f"{path}()", item()
        elif isinstance(item, functools.partial):
            yield from zip((f"{path}.{n}" for n in _PARTIAL), (item.func, item.args, item.keywords))
        elif isinstance(item, types.MethodType):
            yield from ((f"{path}.__self__", item.__self__), (f"{path}.__func__", item.__func__))
        elif isinstance(item, types.BuiltinFunctionType):
            yield from ((f"{path}.__self__", item.__self__), (f"{path}.__name__", item.__name__))
        elif isinstance(item, types.FunctionType):
            for name, cell in zip(item.__code__.co_freevars, item.__closure__ or ()):
                try:
                    yield f"{path}<{name}>", cell.cell_contents
                except ValueError:
                    continue
            yield f"{path}.__defaults__", item.__defaults__
            yield f"{path}.__kwdefaults__", item.__kwdefaults__
        elif hasattr(item, "next_functions"):  # of autograd: it may accumulate a tensor's gradient
            yield f"{path}.variable", getattr(item, "variable", None)
        elif type(item).__module__.partition(".")[0] in ELSEWHERE or isinstance(
            item, RemovableHandle
        ):
            return
        if isinstance(item, Tensor):
            yield from self._of_tensor(path, item)
        if isinstance(item, nn.Module):
            for registered in REGISTERED:
                yield from (
                    (f"{path}.{name}".lstrip("."), value)
                    for name, value in vars(item)[registered].items()
                )
        for name, value in _attributes(item):
            if not (isinstance(item, nn.Module) and name in REGISTERED):
                if isinstance(value, (Mapping, Set, list, tuple)) and not value:
                    continue
                yield f"{path}.{name}".lstrip("."), value

    def _entries(self, path: str, item: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
        for i, (key, value) in enumerate(list(item.items())):
            if isinstance(key, str):
                yield f"{path}[{key!r}]", value
            else:  # numbers of hooks and ids of parameters are others each time
                yield f"{path}[#{i}]", value
                yield f"{path}[#{i}].key", key

    def _of_tensor(self, path: str, tensor: Tensor) -> Iterator[tuple[str, Any]]:
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            return
        if tensor.is_leaf and tensor.grad is not None:
            yield f"{path}.grad", tensor.grad
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            for i, hook in enumerate((getattr(tensor, name, None) or {}).values()):
                yield f"{path}.{name}[{i}]", hook
        flatten = getattr(tensor, "__tensor_flatten__", None)
        for name in flatten()[0] if flatten else ():
            yield f"{path}.{name}", getattr(tensor, name)


_PARTIAL = ("func", "args", "keywords")


def _is_method(item: Any) -> bool:
    """Whether it is a method of an object that is implemented in C, as those of tensors and lists."""
    owner = getattr(item, "__self__", None) if isinstance(item, types.BuiltinFunctionType) else None
    return owner is not None and not isinstance(owner, (types.ModuleType, type))


def _attributes(item: Any) -> Iterator[tuple[str, Any]]:
    attributes = getattr(item, "__dict__", None)
    if isinstance(attributes, dict):
        yield from list(attributes.items())
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                try:
                    yield name, getattr(item, name)
                except AttributeError:
                    continue


def values_of(tensor: Tensor) -> Tensor | None:
    """Dense, real values on the CPU; None of what has none."""
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin) or tensor.is_meta:
        return None
    try:
        with torch.no_grad():
            values = tensor.detach()
            values = values.dequantize() if values.is_quantized else values
            values = values if values.layout is torch.strided else values.to_dense()
            values = values.resolve_conj().resolve_neg().cpu()
            values = torch.view_as_real(values) if values.is_complex() else values
            return values if type(values) is Tensor else values.as_subclass(Tensor)
    except (RuntimeError, NotImplementedError):
        return None
