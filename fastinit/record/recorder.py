"""Recorder: watches the operations of a constructor at the dispatcher, and keeps what its memory holds.

Parameters are on meta and nothing of theirs is computed: writes change their :class:`Contents`, and what
is computed from them has no values either. Other tensors are real and computed as always; of those that
hold random numbers the contents are kept as well, since they are written anew when a model is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.record import torch_operations as operations
from fastinit.record.memories import META, are_away, memory_of, storage_numel
from fastinit.record.recording import Recording
from fastinit.record.refused import HINT
from fastinit.record.results import compute, elsewhere, made_new
from fastinit.record.writes import write


@internals.called_as_it_is
class Recorder(internals.TorchDispatchMode):
    """The dispatch mode. What it records outlives it, since models are written later."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = recording

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.recording.keeps_generators:
            args, kwargs = operations.without_generators(args, kwargs)
        draws = self.recording.draws(func, args, kwargs)
        if operations.makes_new(func):
            return made_new(self.recording, func, args, kwargs, draws)
        if self.recording.place is not None and kwargs.get("device") == META:
            kwargs = {
                **kwargs,
                "device": self.recording.place,
            }  # of what is on meta only as it is recorded
        tensors = operations.tensors_of(args, kwargs)
        if not draws and all(memory_of(tensor) is None for tensor in tensors):
            return func(*args, **kwargs)
        if operations.is_reshaping(func):
            return self._reshaped(func, args, kwargs)
        func = operations.honest(func, args)
        if written := operations.written(func, args, kwargs):
            return write(self.recording, func, args, kwargs, written, tensors, draws)
        if operations.is_view(func):
            return func(*args, **kwargs)
        if operations.is_conversion(func) and are_away(tensors):
            return elsewhere(self.recording, args[0], kwargs)
        return compute(self.recording, func, args, kwargs, tensors, draws)

    def _reshaped(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Another shape of the tensor itself: ``t_``, ``squeeze_``, ``resize_``, ``set_``."""
        memory = memory_of(args[0])
        name = internals.operator_name(func)
        if memory is None or name not in ("resize_", "set_"):
            return func(*args, **kwargs)
        if name == "resize_" and memory.contents.is_unwritten:
            out = func(*args, **kwargs)
            memory.contents = replace(memory.contents, numel=storage_numel(args[0]))
            return out
        if name == "set_":  # a view of the other's storage from now on
            tensors = [argument for argument in args if isinstance(argument, Tensor)]
            for tensor in tensors if are_away(tensors) else ():
                self.recording.to_meta(tensor)
            return func(*args, **kwargs)
        raise self.recording.refusals.refuse(f"{func} at {{line}} resizes what is recorded: {HINT}")
