"""Patching: torch.nn.init's functions swapped for fastinit's, and exactly restored."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from fastinit import init

# transformers keeps torch's functions in a table of this name, made at import (5.x, 4.x).
_TABLES = ("transformers.initialization", "transformers.modeling_utils")
_TABLE = "TORCH_INIT_FUNCTIONS"


class _Swap(NamedTuple):
    namespace: MutableMapping[str, Any]
    key: str
    original: Any


_names = tuple(n for n in init.__all__ if not n.startswith("_") and hasattr(torch.nn.init, n))
_ours = {n: getattr(init, n) for n in _names}
_swaps: list[_Swap] = []
_depth = 0


def patch() -> None:
    """Makes ``torch.nn.init``'s functions fastinit's, for the whole process.

    Also where torch.nn's own modules hold them under their names, and in transformers'
    ``TORCH_INIT_FUNCTIONS``, if transformers is imported; one imported later finds fastinit's.
    Other modules that did ``from torch.nn.init import ...`` before keep torch's. Calls nest: each
    needs its :func:`unpatch`.
    """
    global _depth
    if _depth == 0:
        torch_init = vars(torch.nn.init)
        originals = {n: torch_init[n] for n in _names}
        for namespace in _namespaces():
            for name in _names:
                # A table's entries, whatever they are; a module's, if they are torch's.
                if name in namespace and namespace[name] in (originals[name], _ours[name]):
                    _swaps.append(_Swap(namespace, name, namespace[name]))
                    namespace[name] = _ours[name]
    _depth += 1


def unpatch() -> None:
    """Undoes the last :func:`patch`; what it replaced is back when the outermost is undone.

    Raises:
        RuntimeError: nothing is patched.
    """
    global _depth
    if _depth == 0:
        raise RuntimeError("unpatch() without a patch() before it")
    _depth -= 1
    if _depth:
        return
    originals = {s.key: s.original for s in _swaps if s.namespace is vars(torch.nn.init)}
    # What was imported while patched took fastinit's functions for torch's.
    for namespace in _namespaces():
        for name in _names:
            if namespace.get(name) is _ours[name]:
                namespace[name] = originals[name]
    for namespace, name, original in _swaps:
        namespace[name] = original
    _swaps.clear()


@contextmanager
def patched() -> Iterator[None]:
    """:func:`patch` for a with block and :func:`unpatch` after it, also on an exception."""
    patch()
    try:
        yield
    finally:
        unpatch()


def _namespaces() -> Iterator[MutableMapping[str, Any]]:
    """Where torch's init functions are held: torch.nn's modules and transformers' tables."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.nn.") and module is not None:
            yield vars(module)
    for name in _TABLES:
        table = vars(sys.modules[name]).get(_TABLE) if name in sys.modules else None
        if isinstance(table, dict):
            yield table
