"""Values: those that a constructor looks at, and operations without any."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.plan.history import View
from fastinit.plan.replay import known_values_of
from fastinit.record.memories import META, forget, memory_of
from fastinit.record.recording import Recording
from fastinit.record.refused import HINT, line


def look(recording: Recording, tensor: Tensor) -> None:
    """The constructor looks at a real tensor's values: if they are random, they stay what they are.

    Raises:
        DeferredError: something without values depends on them.
    """
    memory = memory_of(tensor)
    if memory is None:
        return
    if not memory.contents.is_random:
        forget(tensor)  # it may be written from now on
    for source in memory.contents.sources:
        if source.promised:
            raise recording.refusals.refuse(
                f"{{line}} reads random numbers of which a parameter has been made: "
                f"they are drawn at the end. {HINT}"
            )
        source.seen = source.seen or line()


def values(recording: Recording, tensor: Tensor) -> Tensor:
    """What a tensor without values will hold, if no chance has a part in it.

    Raises:
        DeferredError: it will be random, or is unwritten.
    """
    memory = memory_of(tensor)
    assert memory is not None
    if not memory.contents.is_known:
        raise recording.refusals.refuse(
            f"{{line}} reads the values of a parameter, which has none yet: {HINT}"
        )
    with internals.without_dispatch():
        return View.of(tensor).on(known_values_of(memory.contents))


def of_known_values(
    recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    def known(tensor: Tensor) -> Tensor:
        memory = memory_of(tensor)
        if memory is not None and memory.is_away:
            return values(recording, tensor)
        look(recording, tensor)
        return tensor

    args, kwargs = internals.tree_map_only(Tensor, known, (args, kwargs))
    return func(*args, **kwargs)


def run_on_meta(
    recording: Recording,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Runs an operation without values, for its checks and the shapes of what it gives."""
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": META}
    on_meta = internals.tree_map_only(Tensor, _to_meta, (args, kwargs))
    try:
        return func(*on_meta[0], **on_meta[1])
    except NotImplementedError:
        stand_ins = internals.tree_map_only(Tensor, _stand_in, (args, kwargs))
    try:
        out = func(*stand_ins[0], **stand_ins[1])
    except Exception as error:
        raise recording.refusals.refuse(
            f"{func} at {{line}} has no form for tensors without values ({error}): {HINT}"
        ) from error
    return internals.tree_map_only(Tensor, _to_meta, out)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to(META)


def _stand_in(tensor: Tensor) -> Tensor:
    """A real tensor of the same shape and dtype, of any values, for an operation that needs some."""
    like = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if like.is_floating_point() or like.is_complex():
        return like.normal_(generator=torch.Generator().manual_seed(0))
    return like.zero_()
