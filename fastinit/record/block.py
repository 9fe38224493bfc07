"""Deferred initialisation: any constructor runs as it is, and its parameters are written afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from fastinit.base.torch_internals import set_data, without_dispatch
from fastinit.elements.strided import Strided
from fastinit.plan import parameters
from fastinit.plan.history import Call, Contents, Made, Snapshot
from fastinit.record.memories import META, Memory, known_contents, memories, storage_numel
from fastinit.record.recorder import DeferredError, Recorder, line
from fastinit.record.torch_functions import functions_recorded
from fastinit.stream import keys

_active = False


@contextmanager
def deferred(seed: int = 0) -> Iterator[None]:
    """Within the block modules are built without memory for their parameters, and without writing them.

    Constructors run unchanged. Each parameter becomes meta as it is registered; what would have been
    written to it is recorded, by whatever function or method it is, and :func:`materialize_` writes it,
    with the streams of the parameters' names. Buffers are real. A copy of a parameter, as of a teacher
    or of layers that are clones, is equal to it as it would be.

    Args:
        seed: in [0, 2^64), of all parameters that are recorded.

    Raises:
        ValueError: seed out of range; the default device is meta (transformers would not initialise).
        RuntimeError: within another such block.
        DeferredError: within the block, for what cannot be recorded: code that reads the values of a
            parameter that has none. It names the line.

    Not safe for threads that build modules meanwhile: ``nn.Module`` and ``torch.nn.init`` are changed.

    >>> from fastinit import materialize_
    >>> with deferred(seed=0):
    ...     model = nn.Linear(4, 4)
    >>> model.weight.is_meta, materialize_(model).weight.is_meta
    (True, False)
    """
    global _active
    seed = keys.check_seed(seed)
    if torch.get_default_device() == META:
        raise ValueError("the default device must not be meta within deferred(), but it is")
    if _active:
        raise RuntimeError("deferred() is already in force")
    original = nn.Module.register_parameter

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if isinstance(param, nn.Parameter) and not isinstance(param, UninitializedParameter):
            with without_dispatch():
                _to_meta(param, seed)
        original(self, name, param)

    _active = True
    nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
    try:
        with recording(seed):
            yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
        _active = False
        memories.tidy()


@contextmanager
def recording(seed: int) -> Iterator[None]:
    """Within the block writes to recorded parameters are recorded, as within :func:`deferred`."""
    recorder = Recorder(seed)
    with functions_recorded(recorder), _Access(seed), recorder:
        yield


class _Access(TorchFunctionMode):
    """What goes past the dispatcher to a parameter: ``parameter.data = x``, ``tolist()`` and so on."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        tensor = args[0] if args else None
        if isinstance(tensor, Tensor) and tensor.is_meta:
            if func == set_data and not args[1].is_meta:
                return self._set_data(tensor, args[1])
            if func in (Tensor.tolist, Tensor.numpy, Tensor.data_ptr) and memories.get(tensor):
                raise DeferredError(
                    f"{func.__name__}() at {line()} reads the values of a parameter, which has none yet"
                )
        return func(*args, **(kwargs or {}))

    def _set_data(self, tensor: Tensor, value: Tensor) -> None:
        with without_dispatch():
            contents = _registered(value, memories.get(value))
            tensor.data = torch.empty_like(value, device=META)
            memories.set(tensor, Memory(contents, self.seed))


def _to_meta(param: nn.Parameter, seed: int) -> None:
    """Puts a parameter on meta where it is, so that whoever holds it holds the one on meta."""
    memory = memories.get(param)
    if param.is_meta:
        if memory is None:
            memories.set(param, Memory(Contents(param.numel(), param.dtype, META), seed))
        return
    if type(param.data) is not Tensor or param.layout is not torch.strided or param.is_quantized:
        return  # of a class that does more than hold values
    contents = _registered(param, memory)
    meta = parameters.like(param, META, param.dtype)
    try:
        torch.utils.swap_tensors(param, meta)
    except RuntimeError:  # something else refers to it: it stays real, and is written at the end
        if memory is None:
            memories.set(param, Memory(known_contents(param), seed))
        return
    recorded = Memory(contents, seed)
    if memory is not None:
        recorded.origin, recorded.was_read = memory.origin, memory.was_read
    memories.set(param, recorded)


def _registered(param: Tensor, memory: Memory | None) -> Contents:
    """What a parameter holds, as contents of memory of its own."""
    numel = storage_numel(param)
    dense = numel == param.numel() and param.storage_offset() == 0
    if memory is None:
        if param.is_contiguous():
            return Contents.of_data(param)
        by_memory = param.detach().as_strided((numel,), (1,), 0) if dense else param.detach()
        return Contents.of_data(by_memory)
    if dense:
        return memory.contents
    copy = Call(
        torch.ops.aten.clone.default,
        (Snapshot(memory.read(), Strided.of(param)),),
        {"memory_format": torch.contiguous_format},
        line(),
    )
    return Contents(param.numel(), param.dtype, param.device, Made(copy, 0))
