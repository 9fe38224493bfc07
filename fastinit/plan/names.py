"""Names: those of modules and tensors in a model, without what wrappers put into them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

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
    ("lightning.fabric.wrappers", "_FabricModule", "_forward_module"),
    ("lightning_fabric.wrappers", "_FabricModule", "_forward_module"),
)
"""Where each is defined, and under which key it has what it wraps."""


class Walked(list[tuple[str, str, nn.Module]]):
    """What :func:`walked` gives of a model that does not change, for those who look at it often."""


Model = nn.Module | Walked


def named_modules(
    model: Model, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """As ``model.named_modules``; but a module that wraps another has no part in that one's name.

    So a weight is called the same in a model as it was built, checkpointed (``checkpoint_wrapper``),
    compiled (``torch.compile``), replicated (``DistributedDataParallel``) or set up by Lightning's
    Fabric, and has the same numbers. Those are the names of torch.distributed.checkpoint, too
    (``get_model_state_dict``).
    """
    return ((name, module) for name, _, module in walked(model, remove_duplicate))


def walked(model: Model, remove_duplicate: bool = False) -> Iterable[tuple[str, str, nn.Module]]:
    """(name as of :func:`named_modules`, name as of ``model.named_modules``, module)."""
    if not isinstance(model, Walked):
        return _walked(model, remove_duplicate)
    if not remove_duplicate:
        return model
    first: dict[int, tuple[str, str, nn.Module]] = {}
    for each in model:
        first.setdefault(id(each[2]), each)
    return first.values()


def _walked(model: nn.Module, remove_duplicate: bool) -> Iterator[tuple[str, str, nn.Module]]:
    seen: set[int] = set()
    wraps: dict[type, str | None] = {}
    deepest = sys.getrecursionlimit()
    ahead = [("", "", model, 0)]  # a generator in each would pass each name through all above it
    while ahead:
        name, full, module, depth = ahead.pop()
        if remove_duplicate:
            if id(module) in seen:
                continue
            seen.add(id(module))
        yield name, full, module
        if not (children := module._modules):
            continue
        if depth > deepest:
            raise RecursionError(f"{name[:80]}... leads back to a module that it is in")
        if (kind := module.__class__) not in wraps:
            wraps[kind] = wrapped_key(module)
        if (wrapped := wraps[kind]) is None:
            ahead += [
                (joined(name, key), joined(full, key), child, depth + 1)
                for key, child in reversed(children.items())
                if child is not None
            ]
            continue
        inside = unwrapped(module)  # Fabric's wrapper has it twice
        ahead += [
            (name if key == wrapped else joined(name, key), joined(full, key), child, depth + 1)
            for key, child in reversed(children.items())
            if child is not None and (key == wrapped or child is not inside)
        ]


def named_buffers(model: Model) -> Iterator[tuple[str, Tensor]]:
    """All buffers, by each of their names, as :func:`named_modules` has them."""
    for name, module in named_modules(model, remove_duplicate=False):
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield joined(name, key), buffer


def wrapped_key(module: nn.Module) -> str | None:
    """Under which key a module has another that it wraps, so that it is that one to whoever uses it.

    None for all others. torch.distributed.checkpoint.state_dict (``_get_fqns``) leaves out the same.
    """
    return next((key for kind, key in _wrappers().items() if isinstance(module, kind)), None)


def _wrappers() -> dict[type, str]:
    """Those that somebody imported; no module is of the others."""
    there = [(getattr(sys.modules.get(where), kind, None), key) for where, kind, key in _WRAPPERS]
    return {kind: key for kind, key in there if kind is not None}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, of one that wraps it."""
    while (key := wrapped_key(model)) is not None:
        model = getattr(model, key)
    return model


def joined(name: str, key: str) -> str:
    """The name of what a module holds under a key."""
    return f"{name}.{key}" if name else key
