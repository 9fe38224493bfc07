"""torch's private names, each with what breaks without it: nothing else in fastinit uses one.

A torch that renames one of them breaks this file and its test (tests/base/test_torch_internals.py, one
for each), not something that is found later. All are there in torch 2.11 and in 2.13: on both the tests
pass. Where torch has a public way that does, that is taken.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, wraps
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode,
    _pop_mode_temporarily,
)
from torch.utils._python_dispatch import (
    is_traceable_wrapper_subclass as is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_map_only as tree_map_only

Called = TypeVar("Called", bound=Callable[..., Any])

# TorchDispatchMode: nothing is recorded, and nothing that a forward writes is put back.
# is_traceable_wrapper_subclass: what wrapper subclasses hold would not be put back. tree_*: tensors in
# lists and dicts of arguments would not be seen.

# --- dispatch ------------------------------------------------------------------------------------

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many dispatch modes are in force. Without it, fills under FakeTensorMode would write memory."""

without_dispatch: Callable[[], AbstractContextManager[object]] = _disable_current_modes
"""Within the block no dispatch mode is in force. Without it, what a mode does would be shown to it."""


function_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many torch function modes are in force. Without it, the user's would not be shown a call."""


def without_modes() -> AbstractContextManager[object]:
    """:data:`without_dispatch` where there is a mode, for what is called often."""
    return without_dispatch() if dispatch_modes() else nullcontext()


def paused(mode: TorchDispatchMode) -> AbstractContextManager[object]:
    """Within the block a mode is out of force, if it is the innermost. Without it, all is slower."""
    return _pop_mode_temporarily() if _get_current_dispatch_mode() is mode else nullcontext()


def without_python() -> AbstractContextManager[object]:
    """Within the block nothing of Python is dispatched to, as :data:`without_dispatch`, in a tenth of
    the time; wrapper subclasses do not work in it. Without it, registering a parameter takes longer."""
    return torch._C._DisableTorchDispatch()


def called_as_it_is(mode: type[TorchDispatchMode]) -> type[TorchDispatchMode]:
    """A mode whose ``__torch_dispatch__`` is called without what keeps dynamo from compiling it.

    Dynamo compiles nothing while a mode is in force. Without it, all that is recorded takes longer.
    """
    mode.__torch_dispatch__ = inspect.unwrap(mode.__torch_dispatch__)  # type: ignore[method-assign]
    return mode


def without_functions() -> AbstractContextManager[object]:
    """Within the block no ``__torch_function__`` is asked, that of modes included.

    Without it, MultiheadAttention would take another path, with other roundings.
    """
    return torch._C.DisableTorchFunction()


set_data = Tensor.data.__set__  # type: ignore[attr-defined]
"""What ``tensor.data = x`` is to a torch function mode. Without it, such writes are not recorded."""

plain_dispatch = Tensor.__torch_dispatch__
"""Of a class that leaves dispatch alone. Without it, wrapper tensors would be taken for memory."""


# --- operators -----------------------------------------------------------------------------------


@cache
def operator_name(func: Any) -> str:
    """As in ``aten::normal_``, without namespace and overload. Without it, a write is not recognised."""
    return str(func.overloadpacket.__name__)


@cache
def schema_arguments(func: Any) -> tuple[Any, ...]:
    """What an operator takes, and which of it it writes; nothing of one of higher order, which has no
    schema. Without it, writes go unseen."""
    schema = getattr(func, "_schema", None)
    return tuple(schema.arguments) if schema is not None else ()


@cache
def schema_returns(func: Any) -> tuple[Any, ...]:
    """What an operator gives. Without it, views and numbers read from a parameter go unseen."""
    return tuple(func._schema.returns)


def is_written(argument: Any) -> bool:
    """Whether an operator writes this argument of its schema."""
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


honest_batch_norm = torch.ops.aten._native_batch_norm_legit.default
"""``native_batch_norm``, with a schema that says what it writes. Without it, that is not recorded."""


# --- tensors -------------------------------------------------------------------------------------

base_of: Callable[[Tensor], Tensor | None] = attrgetter("_base")
"""What a tensor is a view of. Without it, chunks of a parameter cannot be written one after another."""

version_of: Callable[[Tensor], int] = Tensor._version.__get__  # type: ignore[attr-defined]
"""How often a tensor was written. Without it, changed values would be taken for known ones."""

increment_version: Callable[[tuple[Tensor, ...]], None] = torch._C._increment_version
"""Says that tensors were written. ``torch.autograd.graph.increment_version`` does the same in more than
twice the time. Without it, autograd would take new values for those that it has kept."""


record_gradients: Callable[[bool], None] = torch._C._set_grad_enabled
"""Whether autograd sees what is done. ``torch.no_grad`` does the same in three times the time. Without
it, constants take longer than torch's."""


def storage_id(tensor: Tensor) -> int:
    """What tensors of one storage have in common, also on meta, where addresses are all 0.

    Without it, views of a recorded parameter are not told from other tensors.
    """
    return int(tensor.untyped_storage()._cdata)


def storage_uses(storage: torch.UntypedStorage) -> int:
    """How many tensors share a storage.

    Without it, all that is alive would be searched for others whenever a model is written.
    """
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


is_in_transform: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether it is a value inside torch.func. Without it, an address would be read that it has not."""


def is_zero_tensor(tensor: Tensor) -> bool:
    """Whether it is an immutable zero without memory, as autograd makes them. Without it: as above."""
    return bool(tensor._is_zerotensor())


def is_functionalised(tensor: Tensor) -> bool:
    """Whether it is being functionalised (torch.func.functionalize). Without it: as above."""
    return bool(torch._is_functional_tensor(tensor))


def is_fake_class(kind: type) -> bool:
    """Whether a class's tensors are FakeTensors: a device, a shape and strides, but no values."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and issubclass(kind, module.FakeTensor)


def is_export_tensor(tensor: Tensor) -> bool:
    """Whether export or AOTAutograd trace with it. Without it, tracing would write memory."""
    module = sys.modules.get("torch._subclasses.functional_tensor")
    return module is not None and isinstance(tensor, module.FunctionalTensor)


def swap(one: Tensor, other: Tensor) -> None:
    """Swaps what two tensors of one class are.

    ``torch.utils.swap_tensors`` refuses those with weak references, as LSTM's have. Without it, a
    recorded LSTM could not run while it is on meta.
    """
    torch._C._swap_tensor_impl(one, other)


def constant_when_compiled(function: Callable[..., Any]) -> None:
    """torch.compile takes what a function gives for a constant. Without it, it would trace BLAKE2b.

    ``torch.compiler.assume_constant_result`` does the same, and imports all of dynamo.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which dynamo leaves alone with all that it calls, if it is there.

    ``torch.compiler.disable`` does the same, and imports all of dynamo. Without it, what a compiled
    function calls behind a graph break is compiled frame by frame, and fails in dynamo itself.
    """
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.disable(function)


def between_graphs(function: Called) -> Called:
    """A function that compiled code calls as it is (:func:`uncompiled`), with its graph cut there.

    Without it, dynamo would compile what a watch does at the end of a step.
    """

    def outside(*args: Any) -> Any:
        return uncompiled(function)(*args)

    outside._torchdynamo_disable = True  # type: ignore[attr-defined]
    outside._torchdynamo_disable_msg = "a step of fastinit.watch ends here"  # type: ignore[attr-defined]

    @wraps(function)
    def called(*args: Any) -> Any:
        return (outside if torch.compiler.is_dynamo_compiling() else function)(*args)

    return called  # type: ignore[return-value]


def is_transforming() -> bool:
    """Whether a torch.func transform runs here. Without it, a watched model fails in a compiled one."""
    return torch._C._functorch.peek_interpreter_stack() is not None


constant_when_compiled(is_transforming)  # dynamo guards the transforms itself


def is_exporting() -> bool:
    """Whether torch.export traces here. Without it, torch 2.11's dynamo would say so of all it compiles,
    which no watch would then measure."""
    return torch.compiler.is_exporting()


constant_when_compiled(is_exporting)

is_jit_tracing: Callable[[], bool] = torch._C._is_tracing
"""Whether torch.jit.trace makes a graph here. Without it, fills would not be in the graph, and a watch's
measurements would be.

``torch.jit.is_tracing`` asks the same, and has no types."""

backward_pass: Callable[[], int] = torch._C._current_graph_task_id
"""Which backward pass runs here, or -1. Without it, watch counts checkpointed layers twice."""


# --- modules -------------------------------------------------------------------------------------


def is_weight_norm(module: torch.nn.Module) -> bool:
    """Whether it is what ``parametrizations.weight_norm`` registers, of one dimension ``dim``, or -1.

    Without it, the scale of such a layer cannot be set.
    """
    return type(module) is torch.nn.utils.parametrizations._WeightNorm


def is_persistent(module: torch.nn.Module, key: str) -> bool:
    """Whether a buffer is in the state dict. Without it, rotary embeddings would be left empty."""
    return key not in module._non_persistent_buffers_set


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether it runs as torch.compile made it. Without it, hooks are registered that do not run."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    wrapped = frames is not None and isinstance(module, frames.OptimizedModule)
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None


def loads_from_nothing(module: torch.nn.Module, key: str) -> bool:
    """Whether a load of no values calls a buffer loaded, as BatchNorm's of its count of batches does.

    Without it, what torch says was loaded is taken to be.
    """
    load = getattr(type(module), "_load_from_state_dict", None)
    if load in (None, getattr(torch.nn.Module, "_load_from_state_dict", None)):
        return False
    missing: list[str] = []
    with suppress(Exception):  # of a function that wants a file's
        twin, own = copy.copy(module), module._buffers.items()
        buffers = {name: b if b is None else torch.zeros_like(b) for name, b in own}
        no_hooks = OrderedDict[Any, Any]()
        vars(twin).update(_parameters={}, _buffers=buffers, _load_state_dict_pre_hooks=no_hooks)
        load(twin, {}, "", {}, True, missing, [], [])
        return key not in missing
    return False


def global_hooks() -> bool:
    """Whether hooks of all modules are registered. Without it, what they do to outputs goes unseen."""
    modules = torch.nn.modules.module
    return bool(modules._global_forward_hooks or modules._global_forward_pre_hooks)


def last_global_hook_first() -> None:
    """The forward hook of all modules that was registered last runs before all. Without it: as above."""
    hooks: Any = torch.nn.modules.module._global_forward_hooks
    hooks.move_to_end(next(reversed(hooks)), last=False)
