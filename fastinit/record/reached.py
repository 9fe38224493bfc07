"""Reached: the tensors that a model holds anywhere, by their place in it."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator, Set
from typing import Any

from torch import Tensor, nn

_ATOMS = (str, bytes, int, float, complex, type(None), type, types.ModuleType)
_REGISTERED = ("_parameters", "_buffers", "_modules")


def reached(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of what a model holds, each tensor once; parameters and buffers by their names.

    Lists, dicts, attributes of any object, closures, gradients and weak references are followed, but
    not into modules that the model itself is a part of.
    """
    seen: set[int] = set()
    own = {id(module) for module in model.modules()}
    kept: list[Any] = []  # so that ids stay those of these objects
    waiting: list[tuple[str, Any]] = [("", model)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, _ATOMS) or id(item) in seen:
            continue
        seen.add(id(item))
        kept.append(item)
        if isinstance(item, nn.Module) and id(item) not in own and _has_inside(item, model):
            continue
        if isinstance(item, Tensor):
            yield path, item
        waiting += [(p, v) for p, v in _inside(path, item) if not isinstance(v, _ATOMS)][::-1]


def _has_inside(module: nn.Module, model: nn.Module) -> bool:
    return "_modules" in vars(module) and any(each is model for each in module.modules())


def _inside(path: str, item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, (dict, types.MappingProxyType)):  # other mappings may load what they give
        yield from ((f"{path}[{key!r}]", value) for key, value in list(item.items()))
        yield from ((f"{path}[{n}]", key) for n, key in enumerate(list(item)))
    elif isinstance(item, (list, tuple, Set)):
        if len(item) and isinstance(next(iter(item)), _ATOMS[:-2]):
            return  # of numbers or names
        yield from ((f"{path}[{n}]", value) for n, value in enumerate(item))
    elif isinstance(item, weakref.ref):
        yield path, item()
    elif isinstance(item, functools.partial):
        yield from ((path, value) for value in (item.func, item.args, item.keywords))
    elif isinstance(item, types.MethodType):
        yield from ((path, value) for value in (item.__self__, item.__func__))
    elif isinstance(item, types.FunctionType):
        cells = zip(item.__code__.co_freevars, item.__closure__ or ())
        yield from ((f"{path}<{name}>", _content(cell)) for name, cell in cells)
        yield from ((path, value) for value in (item.__defaults__, item.__kwdefaults__))
    if isinstance(item, Tensor):
        yield f"{path}.grad", item.grad if item.is_leaf else None
    if isinstance(item, nn.Module):
        for registered in _REGISTERED:
            for name, value in vars(item)[registered].items():
                yield f"{path}.{name}" if path else name, value
    for name, value in getattr(item, "__dict__", {}).items() if _has_attributes(item) else ():
        if isinstance(value, (dict, list, tuple)) and not value:
            continue
        if not (isinstance(item, nn.Module) and name in _REGISTERED):
            yield f"{path}.{name}" if path else name, value


def _has_attributes(item: Any) -> bool:
    return not isinstance(item, (types.FunctionType, types.MethodType, types.BuiltinFunctionType))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
