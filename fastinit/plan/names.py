"""Names: those of modules and tensors in a model, without what wrappers put into them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import Tensor, nn

_WRAPPERS = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    (
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
        "ActivationWrapper",
        "_checkpoint_wrapped_module",
    ),
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    (
        "torch.distributed.fsdp.fully_sharded_data_parallel",
        "FullyShardedDataParallel",
        "_fsdp_wrapped_module",
    ),
)
"""Where each is defined, and under which key it has what it wraps."""


def named_modules(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """As ``model.named_modules``; but a module that wraps another has no part in that one's name.

    So a weight is called the same in a model as it was built, checkpointed (``checkpoint_wrapper``),
    compiled (``torch.compile``) or replicated (``DistributedDataParallel``), and has the same
    numbers. Those are the names of torch.distributed.checkpoint, too (``get_model_state_dict``).
    """
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if remove_duplicate:
            if id(module) in seen:
                return
            seen.add(id(module))
        yield name, module
        wrapped = wrapped_key(module)
        for key, child in module._modules.items():
            if child is not None:
                yield from walk(child, name if key == wrapped else joined(name, key))

    return walk(model, "")


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All buffers, by each of their names, as :func:`named_modules` has them."""
    for name, module in named_modules(model, remove_duplicate=False):
        for key, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            yield joined(name, key), buffer


def wrapped_key(module: nn.Module) -> str | None:
    """Under which key a module has another that it wraps, so that it is that one to whoever uses it.

    None for all others. torch.distributed.checkpoint.state_dict (``_get_fqns``) leaves out the same.
    """
    for where, kind, key in _WRAPPERS:
        if isinstance(module, getattr(sys.modules.get(where), kind, ())):
            return key
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, of one that wraps it."""
    while (key := wrapped_key(model)) is not None:
        model = getattr(model, key)
    return model


def joined(name: str, key: str) -> str:
    """The name of what a module holds under a key."""
    return f"{name}.{key}" if name else key
