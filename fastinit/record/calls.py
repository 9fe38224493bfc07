"""Calls: operations with their tensors as they are now, to be replayed; copies fold to Fills instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill
from fastinit.plan.history import Call, Contents, Given, Own, Snapshot, View
from fastinit.record.memories import is_seen, memory_of
from fastinit.record.recording import Recording
from fastinit.record.refused import line

SMALL = 1 << 20
"""Elements: of smaller tensors that are read a copy is kept; larger ones must stay as they are."""


def call_of(
    recording: Recording,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Tensor | None,
    is_away: bool,
) -> Call:
    """The call, with its tensors as they are now."""
    own = memory_of(target) if target is not None else None

    def kept(tensor: Tensor) -> Any:
        memory = memory_of(tensor)
        if own is not None and memory is own:
            return Own(View.of(tensor))
        is_decided = is_away and memory is not None and not memory.is_away and is_seen(memory)
        if memory is not None and not is_decided:
            if is_away and not memory.is_away:
                for source in memory.contents.sources:
                    source.promised = True
            return Snapshot(memory.read(), View.of(tensor))
        if tensor.is_meta:
            raise recording.refusals.refuse(
                f"{func} at {{line}} reads a tensor on meta that was never written"
            )
        if tensor.numel() < SMALL:
            return tensor.detach().clone()
        return Given(tensor.detach(), internals.version_of(tensor))

    with internals.without_dispatch():
        args, kwargs = internals.tree_map_only(Tensor, kept, (args, kwargs))
    return Call(func, args, kwargs, line())


def after_copy(into: Contents, region: Strided, source: Tensor) -> Contents | None:
    """Contents after a copy over a region, if its source is Fills of as many elements, or one number."""
    memory = memory_of(source)
    if source.dtype not in (into.dtype, torch.float32, torch.float64):
        return None  # rounded values, which another dtype of the same numbers would not be
    if memory is None:
        if source.is_meta or not source.is_floating_point() or source.numel() == 0:
            return None
        if region == into.whole and source.is_contiguous() and source.numel() == into.numel:
            known = Contents.of_data(source.detach().clone().to(into.dtype))
            return replace(known, device=into.device)
        if source.numel() == 1:
            return into.filled(region, Fill.constant(source.item()))
        return None
    if memory.is_away is False and is_seen(memory):
        return None
    contents = memory.contents
    fills, all_there = contents.fills, Strided.of(source).merged() == contents.whole
    if not fills or not all_there or not region == into.whole == contents.whole:
        return None
    if not View.of(source).is_plain(contents.dtype):
        return None
    memory.read()
    return replace(into, base=None, writes=fills)
