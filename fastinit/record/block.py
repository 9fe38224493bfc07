"""Deferred initialisation: any constructor runs as it is, and its parameters are written afterwards."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import UninitializedParameter

from fastinit.base.holders import living
from fastinit.base.memory import no_collection
from fastinit.base.torch_internals import (
    plain_dispatch,
    storage_uses,
    version_of,
    without_dispatch,
    without_functions,
    without_python,
)
from fastinit.record.beside_dispatch import BesideDispatch
from fastinit.record.built import note_built
from fastinit.record.memories import META, Memory, has_memory, memory_of
from fastinit.record.recorder import Recorder
from fastinit.record.recording import Recording
from fastinit.record.torch_functions import functions_recorded
from fastinit.stream import keys

_thread: int | None = None
"""The thread in which a block is in force. There is one at a time: torch's generator is everybody's."""


@contextmanager
def deferred(seed: int = 0, *, keep_generators: bool = True) -> Iterator[None]:
    """Within the block modules are built without memory for their parameters, and without writing them.

    Constructors run unchanged. Each parameter is put on meta as it is registered, and says the device
    that it will have; what would have been written to it is recorded, by whatever function or method it
    is, and :func:`materialize_` writes it, with the streams of the parameters' names. Other tensors are
    real. What is computed from parameters gets its values with them, and so do random buffers, unless
    the constructor looked at what torch drew: these stay as drawn, by a generator that ``seed`` has
    seeded, and that is put back at the end of the block.

    Args:
        seed: in [0, 2^64), of all numbers that are recorded.
        keep_generators: what is drawn from a generator that the constructor makes (``generator=``), or
            from torch's after the constructor seeded that, is what torch draws. With False these are
            numbers of the parameters' names as well.

    Raises:
        ValueError: seed out of range; the default device is meta (transformers would not initialise).
        RuntimeError: within another such block, or beside one of another thread.
        DeferredError: within the block, for what cannot be recorded: code that reads the values of a
            parameter that has none. It names the line. If it is caught, the end of the block raises it.

    Other threads may build modules meanwhile, but not call functions of ``torch.nn.init`` by which whole
    tensors are made while a block begins or ends: their code is exchanged.

    >>> from fastinit import materialize_
    >>> with deferred(seed=0):
    ...     model = nn.Linear(4, 4)
    >>> model.weight.is_meta, materialize_(model).weight.is_meta
    (True, False)
    """
    global _thread
    seed = keys.check_seed(seed)
    if torch.empty(0).device == META:  # as in place_of
        raise ValueError("the default device must not be meta within deferred(), but it is")
    if _thread is not None:
        raise RuntimeError("deferred() is already in force")
    recording = Recording(seed, keep_generators)
    modules: dict[int, weakref.ref[nn.Module]] = {}
    registered: dict[int, dict[str, nn.Parameter]] = {}

    def on_module(module: nn.Module) -> None:
        modules[id(module)] = weakref.ref(module)

    def on_registration(module: nn.Module, name: str, param: nn.Parameter) -> None:
        if threading.get_ident() != _thread:
            return
        with without_python(), without_functions():
            if _is_plain(param):
                on_module(module)
                registered.setdefault(id(module), {})[name] = param
                _take(recording, param, module._parameters.get(name) is not None)

    def on_buffer(module: nn.Module, name: str, buffer: Tensor) -> None:
        if threading.get_ident() == _thread:
            on_module(module)

    def on_copy(module: nn.Module) -> None:
        if threading.get_ident() == _thread:
            on_module(module)

    _thread = threading.get_ident()
    with ExitStack() as stack:
        stack.callback(_leave)
        recording.generator_seed = stack.enter_context(_seeded(seed))
        stack.callback(register_module_parameter_registration_hook(on_registration).remove)
        stack.callback(register_module_buffer_registration_hook(on_buffer).remove)
        stack.enter_context(_copies(on_copy))
        stack.enter_context(_recorded(recording))
        yield
    with without_dispatch(), without_functions(), no_collection():
        there = [module for ref in modules.values() if (module := ref()) is not None]
        for module in there:
            for name, known in registered.get(id(module), {}).items():
                param = module._parameters.get(name)
                if param is None or param is known or param.is_meta or not _is_plain(param):
                    continue
                _take(recording, param, True)  # put there unregistered, as by Module.to_empty
        registered.clear()
        _put_on_meta(recording)
        built = note_built(there)
        _note_versions(recording, built)


def _leave() -> None:
    global _thread
    _thread = None


@contextmanager
def writes_recorded(seed: int) -> Iterator[None]:
    """Within the block writes to recorded parameters are recorded, as within :func:`deferred`."""
    with nullcontext() if _thread == threading.get_ident() else _recorded(Recording(seed)):
        yield


@contextmanager
def _copies(on_copy: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within the block modules that ``copy`` and ``pickle`` make are told; they register nothing."""
    original = nn.Module.__setstate__

    def set_state(self: nn.Module, state: Any) -> None:
        original(self, state)  # type: ignore[no-untyped-call]
        on_copy(self)

    nn.Module.__setstate__ = set_state  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__setstate__ = original  # type: ignore[method-assign]


@contextmanager
def _recorded(recording: Recording) -> Iterator[None]:
    with functions_recorded(recording), BesideDispatch(recording), Recorder(recording):
        yield
    if recording.refusals.first is not None:
        raise recording.refusals.first  # what was caught: the constructor went on otherwise than eagerly


@contextmanager
def _seeded(seed: int) -> Iterator[int]:
    """Within the block torch's generators start from a seed of ours; afterwards they are as before."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):
        own = keys.substream(keys.ANONYMOUS, f"deferred {seed}")  # which nobody else will take
        torch.manual_seed(own)
        yield own


def _is_plain(param: nn.Parameter) -> bool:
    """Whether a parameter does no more than hold values."""
    if isinstance(param, UninitializedParameter):
        return False
    return type(param).__torch_dispatch__ is plain_dispatch and has_memory(param)


def _take(recording: Recording, param: nn.Parameter, replaces: bool) -> None:
    """Puts a module's parameter on meta.

    Args:
        replaces: whether it takes another's place.
    """
    is_new = memory_of(param) is None and not param.is_meta
    memory = recording.to_meta(param)
    memory.is_parameter = True
    if is_new and replaces:
        memory.contents = replace(memory.contents, is_loaded=True)


def _put_on_meta(recording: Recording) -> None:
    """What waits for its random numbers is on meta when the block ends, with all of its memory."""
    waiting = {m for m in recording.memories if m.is_away and m.contents.is_random}

    def is_real(tensor: Tensor) -> bool:
        return not tensor.is_meta and tensor.is_leaf and memory_of(tensor) in waiting

    if any(storage.device != META for memory in waiting for storage in memory.storages):
        for tensor in list(living(Tensor, is_real)):
            recording.to_meta(tensor)


def _note_versions(recording: Recording, known: Iterable[Tensor]) -> None:
    """Remembers how tensors that are to be written were left, so that later writes are seen.

    Args:
        known: some of them. All that live in Python are looked through only if more share their memory.
    """
    left = {id(m): sum(map(storage_uses, m.storages)) for m in recording.memories if _is_pending(m)}

    def is_to_be_written(tensor: Tensor) -> bool:
        memory = memory_of(tensor)
        return memory is not None and id(memory) in left and not tensor.is_inference()

    def note(tensor: Tensor) -> None:
        memory = memory_of(tensor)
        assert memory is not None
        memory.versions[id(tensor)] = version_of(tensor)
        left[id(memory)] -= 1

    for tensor in filter(is_to_be_written, known):
        note(tensor)
    left = {key: uses for key, uses in left.items() if uses}
    for tensor in living(Tensor, is_to_be_written) if left else ():
        note(tensor)


def _is_pending(memory: Memory) -> bool:
    """Whether somebody will write it."""
    return memory.is_away or memory.contents.is_random
