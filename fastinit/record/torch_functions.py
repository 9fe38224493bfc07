"""Functions of whole tensors (orthogonal_, trunc_normal_, ...), recorded as what they are.

They look at their tensor (is it on meta?) or compute with it, and other modules hold them by name. So it
is their code that is exchanged: whoever holds the function runs the recording.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastinit import init
from fastinit.base.torch_internals import without_dispatch
from fastinit.elements.strided import Strided
from fastinit.plan.distributions import PARAMETERS
from fastinit.plan.fill import Fill
from fastinit.plan.whole_tensors import STRUCTURES
from fastinit.record.memories import memories
from fastinit.record.recorder import Recorder

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


_recorder: Recorder | None = None
_originals: dict[tuple[str, str], tuple[Callable[..., Any], str]] = {}


@contextmanager
def functions_recorded(recorder: Recorder) -> Iterator[None]:
    """While in force, a call of one of the functions on recorded memory is recorded as a whole."""
    global _recorder
    codes = {function: function.__code__ for function in _FUNCTIONS}
    for function, code in codes.items():
        untouched = types.FunctionType(
            code, function.__globals__, function.__name__, function.__defaults__
        )
        untouched.__kwdefaults__ = function.__kwdefaults__
        key = function.__module__, function.__name__
        _originals[key] = untouched, _FUNCTIONS[function]
        function.__code__ = _recorded.__code__.replace(co_name=function.__name__)
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = None
        for function, code in codes.items():
            function.__code__ = code
        _originals.clear()


def call_recorded(module: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of one of the functions above, while they are recorded."""
    original, distribution = _originals[module, name]
    code = original.__code__
    given = dict(zip(code.co_varnames[: code.co_argcount], args)) | kwargs
    tensor = given.pop("tensor")
    memory = memories.get(tensor) if isinstance(tensor, Tensor) else None
    if _recorder is None or memory is None:
        return original(*args, **kwargs)
    with without_dispatch():
        # On meta the function checks its arguments and writes nothing.
        original(*args, **kwargs)
    contents = memory.contents
    region, shape = Strided.of(tensor).merged(), tuple(tensor.shape)
    parameters = {key: given[key] for key in PARAMETERS[distribution] if key in given}
    fill: Fill = getattr(Fill, distribution)(**parameters)
    keyed = given.get("seed") is not None or given.get("name") is not None
    if not keyed and fill.has_law:
        memory.contents = contents.filled(region, fill, memory.next_origin())
    elif not keyed and tensor.is_contiguous() and region == contents.whole:
        memory.contents = contents.filled(region, fill, memory.next_origin(), shape)
    else:
        ours = getattr(init, name)  # the same bits everywhere
        memory.contents = contents.called(_recorder.call_on(tensor, ours, args, kwargs, memory))
    return tensor
