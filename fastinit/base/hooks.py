"""Hooks that stay with the module they were set on: its copies and pickles do not have them.

A module keeps its hooks in dicts, which are copied and pickled with it. So a copy that is made while a
model is watched (for an average of weights, by ``torch.save(model)``, for another process) would keep
hooks that nobody removes, or could not be made at all. Every hook that fastinit sets is one of these.
"""

from __future__ import annotations

import copyreg
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch.utils.hooks import RemovableHandle

_Pickled = tuple[Any, ...] | str

_lock = threading.Lock()
_held: dict[int, tuple[OrderedDict[int, Any], set[int]]] = {}
"""By its id, each dict that has such hooks, and their keys in it."""
_others: Callable[[Any], _Pickled] | None = None
"""How somebody else has OrderedDicts pickled."""


class Uncopied:
    """A hook that was just registered, from now on one that copies and pickles do not have."""

    def __init__(self, handle: RemovableHandle) -> None:
        global _others
        self._handle = handle
        hooks, self._key, *more = handle.__getstate__()
        self._dicts: list[OrderedDict[int, Any]] = [hooks, *(more[0] if more else ())]
        with _lock:
            if not _held:
                _others = copyreg.dispatch_table.get(OrderedDict)
                copyreg.pickle(OrderedDict, _pickled)
            for own in self._dicts:
                _held.setdefault(id(own), (own, set()))[1].add(self._key)

    def remove(self) -> None:
        """Removes the hook, if that was not done before."""
        self._handle.remove()
        with _lock:
            for own in self._dicts:
                keys = _held[id(own)][1]
                keys.discard(self._key)
                if not keys:
                    del _held[id(own)]
            self._dicts.clear()
            if not _held and copyreg.dispatch_table.get(OrderedDict) is _pickled:
                del copyreg.dispatch_table[OrderedDict]
                if _others is not None:
                    copyreg.pickle(OrderedDict, _others)


def _pickled(value: OrderedDict[Any, Any]) -> _Pickled:
    """As copy and pickle have it of an OrderedDict, which ask here while there are such hooks."""
    _, keys = _held.get(id(value), (None, None))
    if keys is None:
        return value.__reduce__() if _others is None else _others(value)
    made, pairs = value.__reduce__()[:4], value.items()
    return (*made, iter([pair for pair in pairs if pair[0] not in keys]))


class OwnForward:
    """Until it is removed, a module has its class's ``forward`` as an attribute of its own.

    It does what it did. But code that dynamo compiled for it before is not run for it meanwhile: a
    ``forward`` of its own is what dynamo guards of a module, and hooks are not. Copies and pickles do
    not have it.
    """

    _held: dict[int, int] = {}  # noqa: RUF012  # by a module's id, how many hold it

    def __init__(self, module: Any) -> None:
        self._module: Any = module
        with _lock:
            held = self._held[id(module)] = self._held.get(id(module), 0) + 1
            if held == 1:
                vars(module)["forward"] = MethodType(type(module).forward, module)
                vars(module)["__reduce_ex__"] = partial(_without_own, module)

    @classmethod
    def is_replaced(cls, module: Any) -> bool:
        """Whether somebody else gave the module a ``forward``, or has it pickled in another way."""
        return id(module) not in cls._held and not {"forward", "__reduce_ex__"}.isdisjoint(
            vars(module)
        )

    def remove(self) -> None:
        """Takes it away, if that was not done before."""
        if (module := self._module) is None:
            return
        self._module = None
        with _lock:
            self._held[id(module)] -= 1
            if not self._held[id(module)]:
                del self._held[id(module)]
                for name in ("forward", "__reduce_ex__"):
                    vars(module).pop(name, None)


def is_own(module: Any, name: str) -> bool:
    """Whether an attribute of a module is nothing but its class's, as :class:`OwnForward` sets it."""
    held = vars(module).get(name)
    return (
        isinstance(held, MethodType)
        and held.__self__ is module
        and held.__func__ is inspect.getattr_static(type(module), name, None)
    )


def _without_own(module: Any, protocol: Any) -> _Pickled:
    kind: Any = type(module)
    reduced: _Pickled = kind.__reduce_ex__(module, protocol)
    if isinstance(reduced, str) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    state = {k: v for k, v in reduced[2].items() if k not in ("forward", "__reduce_ex__")}
    return (*reduced[:2], state, *reduced[3:])
