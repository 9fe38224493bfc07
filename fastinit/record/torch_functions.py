"""Functions of whole tensors (orthogonal_, trunc_normal_, ...), recorded as what they are.

They look at their tensor (is it on meta?) or compute with it, and other modules hold them by name. So it
is their code that is exchanged: whoever holds the function runs the recording.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastinit import init
from fastinit.base.torch_internals import without_dispatch, without_functions
from fastinit.elements.strided import Strided
from fastinit.plan.distributions import PARAMETERS
from fastinit.plan.fill import Fill
from fastinit.plan.history import View
from fastinit.plan.whole_tensors import STRUCTURES
from fastinit.record.calls import call_of
from fastinit.record.memories import META, Memory, has_memory, known_contents, memory_of
from fastinit.record.recording import Recording

_FUNCTIONS: dict[Callable[..., Any], str] = {
    getattr(module, f"{name}_"): name
    for module in (nn.init, init)
    for name in STRUCTURES
    if hasattr(module, f"{name}_")
} | {nn.init.trunc_normal_: "truncated_normal"}
"""What is recorded, and the distribution that it writes."""


def _recorded(*args: Any, **kwargs: Any) -> Any:
    # Runs with the globals of the function whose code this replaces.
    import sys

    from fastinit.record.torch_functions import call_recorded

    frame = sys._getframe()
    return call_recorded(frame.f_globals["__name__"], frame.f_code.co_name, args, kwargs)


class _Recordings(threading.local):
    """Those in force in a thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Recording] = []


_recordings = _Recordings()
_lock = threading.Lock()
_in_force = 0
_originals: dict[tuple[str, str], tuple[Callable[..., Any], str]] = {}


@contextmanager
def functions_recorded(recording: Recording) -> Iterator[None]:
    """While in force, a call of one of the functions on recorded memory is recorded as a whole."""
    _count(1)
    _recordings.stack.append(recording)
    try:
        yield
    finally:
        _recordings.stack.pop()
        _count(-1)


def _count(more: int) -> None:
    """Exchanges the functions' code for the first that are in force, and back after the last."""
    global _in_force
    with _lock:
        before, _in_force = _in_force, _in_force + more
        for function, distribution in _FUNCTIONS.items() if before == 0 else ():
            untouched = types.FunctionType(
                function.__code__,
                function.__globals__,
                function.__name__,
                function.__defaults__,
            )
            untouched.__kwdefaults__ = function.__kwdefaults__
            _originals[function.__module__, function.__name__] = untouched, distribution
            function.__code__ = _recorded.__code__.replace(co_name=function.__name__)
        for function in _FUNCTIONS if _in_force == 0 else ():
            original, _ = _originals[function.__module__, function.__name__]
            function.__code__ = original.__code__


def call_recorded(module: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of one of the functions above, while they are recorded."""
    original, distribution = _originals[module, name]
    code = original.__code__
    given = dict(zip(code.co_varnames[: code.co_argcount], args)) | kwargs
    tensor = given.pop("tensor", None)
    if not isinstance(tensor, Tensor) or not has_memory(tensor) or not _recordings.stack:
        return original(*args, **kwargs)
    recording, memory = _recordings.stack[-1], memory_of(tensor)
    keyed = given.get("seed") is not None or given.get("name") is not None
    parameters = {key: given[key] for key in PARAMETERS[distribution] if key in given}
    fill: Fill = getattr(Fill, distribution)(**parameters)
    if memory is None and fill.is_random and not keyed:
        memory = recording.keep(tensor, Memory(known_contents(tensor), recording.seed))
    own = recording.generator(args, kwargs) is not None and fill.is_random
    if memory is None or (own and not keyed):
        return original(*args, **kwargs)
    if not View.of(tensor).is_plain(memory.contents.dtype):
        return original(*args, **kwargs)
    with without_dispatch(), without_functions():
        # On meta the function checks its arguments and writes nothing.
        stand_in = torch.empty_like(tensor, device=META) if memory.is_away else tensor
        original(
            *(stand_in if argument is tensor else argument for argument in args),
            **{k: stand_in if argument is tensor else argument for k, argument in kwargs.items()},
        )
    contents, region = memory.contents, Strided.of(tensor)
    origin = memory.origin(region.merged(), fill.has_law) if fill.is_random else None
    if keyed:
        ours = getattr(init, name)  # the same bits everywhere
        made = call_of(recording, ours, args, kwargs, tensor, memory.is_away)
        memory.contents = contents.called(made._replace(overwrites=region.merged()))
    elif fill.has_law:
        memory.contents = contents.filled(region.merged(), fill, origin)
    else:
        memory.contents = contents.filled(region, fill, origin, tuple(tensor.shape))
    if memory.is_away:
        memory.promise()
    return tensor
