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
from fastinit.base.torch_internals import (
    dispatch_modes,
    function_modes,
    version_of,
    without_dispatch,
    without_functions,
)
from fastinit.elements.strided import Strided
from fastinit.plan.distributions import PARAMETERS
from fastinit.plan.fill import Fill
from fastinit.plan.history import View
from fastinit.plan.whole_tensors import STRUCTURES
from fastinit.record.calls import call_of
from fastinit.record.memories import (
    META,
    Memory,
    has_memory,
    is_plain,
    known_contents,
    memory_of,
)
from fastinit.record.recording import Recording
from fastinit.record.torch_operations import law_fill

_FUNCTIONS: dict[Callable[..., Any], str] = {
    getattr(module, f"{name}_"): name
    for module in (nn.init, init)
    for name in STRUCTURES
    if hasattr(module, f"{name}_")
} | {nn.init.trunc_normal_: "truncated_normal"}
"""What is recorded, and the distribution that it writes."""

_LAWS = tuple(
    getattr(nn.init, f"{name}_")
    for name in (
        *("uniform", "normal", "constant", "ones", "zeros"),
        *("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"),
    )
)
"""What would be recorded as the operation that it ends in, but is asked for most often."""


def _recorded(*args: Any, **kwargs: Any) -> Any:
    # Runs with the globals of the function whose code this replaces.
    import sys

    from fastinit.record.torch_functions import call_recorded

    # A frame in a variable of its own would keep the arguments alive.
    return call_recorded(globals()["__name__"], sys._getframe().f_code.co_name, args, kwargs)


class _Recordings(threading.local):
    """Those in force in a thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Recording] = []


_recordings = _Recordings()
_lock = threading.Lock()
_in_force = 0
_originals: dict[tuple[str, str], tuple[Callable[..., Any], str | None]] = {}


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
        for function in (*_FUNCTIONS, *_LAWS) if before == 0 else ():
            untouched = types.FunctionType(
                function.__code__,
                function.__globals__,
                function.__name__,
                function.__defaults__,
            )
            untouched.__kwdefaults__ = function.__kwdefaults__
            its = untouched, _FUNCTIONS.get(function)
            _originals[function.__module__, function.__name__] = its
            function.__code__ = _recorded.__code__.replace(co_name=function.__name__)
        for function in (*_FUNCTIONS, *_LAWS) if _in_force == 0 else ():
            original, _ = _originals[function.__module__, function.__name__]
            function.__code__ = original.__code__


def call_recorded(module: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of one of the functions above, while they are recorded."""
    original, distribution = _originals[module, name]
    if distribution is None:
        tensor = args[0] if args else kwargs.get("tensor")
        if not _recordings.stack:
            return original(*args, **kwargs)
        if _law_is_recorded(tensor, original, args, kwargs):
            return tensor
        before = _seen(tensor)
        returned = original(*args, **kwargs)
        if before is not None and _is_same(before, _seen(tensor)):
            raise _recordings.stack[-1].refusals.refuse(
                f"torch.nn.init.{name} at {{line}} wrote nothing, as something keeps it from that. If "
                f"that is init_module(empty_init=True) of Lightning: leave it out, deferred() takes no "
                f"memory"
            )
        return returned
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
        memory.contents = contents.called(made._replace(overwrites=View.of(tensor)))
    elif fill.has_law:
        memory.contents = contents.filled(region.merged(), fill, origin)
    else:
        memory.contents = contents.filled(region, fill, origin, tuple(tensor.shape))
    if memory.is_away:
        memory.promise()
    return tensor


def _seen(tensor: Any) -> tuple[Any, ...] | None:
    """What a write changes: its record, what that says, the count of writes. None without elements."""
    with without_functions():
        if not isinstance(tensor, Tensor) or tensor.is_inference() or not tensor.numel():
            return None
        memory = memory_of(tensor)
        return memory, None if memory is None else memory.contents, version_of(tensor)


def _is_same(one: tuple[Any, ...], other: tuple[Any, ...] | None) -> bool:
    return other is not None and all(
        a is b or (isinstance(a, int) and a == b) for a, b in zip(one, other)
    )


def _law_is_recorded(
    tensor: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Records what a function writes, if it is a law over all of a parameter without values.

    In a fraction of the time in which the operation that it ends in would be recorded. Whatever is
    unusual is left to that, and other modes are shown what they would be.
    """
    if function_modes() != 1 or dispatch_modes() != 1:
        return False
    recording = _recordings.stack[-1]
    with without_functions():
        memory = memory_of(tensor) if type(tensor) in (Tensor, nn.Parameter) else None
        if memory is None or not memory.is_away or not tensor.is_floating_point():
            return False
        whole = memory.contents.whole
        is_whole = is_plain(tensor, memory.contents.dtype) and Strided.merged_of(tensor) == whole
        if not is_whole or not tensor.numel() or recording.generator(args, kwargs) is not None:
            return False
        asked = _Asked(tuple(tensor.shape))
        try:
            if args:
                original(asked, *args[1:], **kwargs)
            else:
                original(**{**kwargs, "tensor": asked})
        except (AttributeError, TypeError):  # it asks for more: the operation tells
            return False
    if asked.law is None:
        return False
    memory.contents = memory.filled(whole, law_fill(*asked.law))
    memory.versions.clear()
    memory.promise()
    return True


class _Asked:
    """What a function of torch.nn.init asks of its tensor, and the law that it writes.

    Args:
        shape: of the tensor.
    """

    __slots__ = ("law", "shape")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.law: tuple[Any, ...] | None = None

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int) -> int:
        return self.shape[dim]

    def uniform_(self, a: float = 0.0, b: float = 1.0, *, generator: None = None) -> _Asked:
        return self._written("uniform", a, b)

    def normal_(self, mean: float = 0.0, std: float = 1.0, *, generator: None = None) -> _Asked:
        return self._written("normal", mean, std)

    def fill_(self, value: float) -> _Asked:
        return self._written("constant", value)

    def zero_(self) -> _Asked:
        return self._written("constant", 0.0)

    def _written(self, name: str, *numbers: float) -> _Asked:
        if any(type(number) not in (int, float) for number in numbers):
            raise TypeError(f"{name} of {numbers}")
        self.law = (name, *map(float, numbers))
        return self
