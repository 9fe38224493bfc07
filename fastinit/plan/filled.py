"""Filled: what fastinit wrote, noted with its memory, and whether somebody wrote it since."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastinit.base.torch_internals import is_traceable_wrapper_subclass, version_of
from fastinit.elements import shards as shard

_FILLED = "_fastinit_filled"
"""The attribute of a storage: how often each tensor of it was written, when fastinit had filled it."""


def writes(tensor: Tensor) -> int:
    """How often operations wrote a tensor, or this rank's part, since it was made."""
    return _writes(tensor, shard.local(tensor))


def _writes(tensor: Tensor, here: Tensor) -> int:
    try:
        own = version_of(tensor)
    except RuntimeError:  # an inference tensor has none
        own = 0
    return own if here is tensor else own + _writes(here, here)


def _place(here: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Its elements in its storage: as ``Strided.of``, of thousands at once."""
    return int(here.storage_offset()), here.shape, here.stride()


def note_filled(tensors: Iterable[Tensor]) -> None:
    """Notes that these were filled, with the memory that they have."""
    for tensor in tensors:
        if (here := _in_memory(tensor)) is not None:
            storage = here.untyped_storage()
            if (marks := getattr(storage, _FILLED, None)) is None:
                marks = {}
                setattr(storage, _FILLED, marks)
            marks[_place(here)] = _writes(tensor, here)


def is_filled(tensor: Tensor) -> bool | None:
    """Whether no operation wrote it since fastinit filled it; None if fastinit did not.

    What is written to its ``data`` is not seen.
    """
    here = _in_memory(tensor)
    marks = None if here is None else getattr(here.untyped_storage(), _FILLED, None)
    filled = (marks or {}).get(_place(here)) if here is not None else None
    return None if filled is None else bool(filled == writes(tensor))


def _in_memory(tensor: Tensor) -> Tensor | None:
    """What this rank has, if that is a view of a storage with values."""
    here = shard.local(tensor)
    if here.is_meta or here.layout is not torch.strided:
        return None
    if type(here) in shard.PLAIN:
        return here
    return None if is_traceable_wrapper_subclass(here) else here
