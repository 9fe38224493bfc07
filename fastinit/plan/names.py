"""Names: those of modules and tensors in a model, without what wrappers put into them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from typing import Any, NamedTuple

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


_OF_ALL = frozenset(vars(nn.Module()))
"""Attributes that a module of any kind has: none of them is a tensor."""


class Walk(NamedTuple):
    """What a model has, found in one pass: most of its cost is to bring each module into the cache."""

    modules: list[tuple[str, str, nn.Module]]
    """As of :func:`walked`."""
    parameters: list[tuple[list[str], nn.Module, nn.Parameter]]
    """As of :func:`fastinit.plan.parameters.distinct_parameters`."""
    others: list[tuple[str, MutableMapping[str, Any], str, Tensor]]
    """The buffers of each module, and those of its plain attributes that are on meta: the module's first
    name, where it has them, under which key, and the tensor."""

    @classmethod
    def of(cls, model: nn.Module, *, others: bool = True) -> Walk:
        """Looks at a model.

        Args:
            others: whether more than its parameters is looked for.
        """
        found = cls([], [], [])
        known: dict[int, tuple[list[str], nn.Module, nn.Parameter]] = {}
        seen: set[int] = set()
        for each in walked(model):
            prefix, _, module = each
            found.modules.append(each)
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                name = joined(prefix, key)
                if (entry := known.get(id(parameter))) is not None:
                    entry[0].append(name)
                else:
                    entry = known[id(parameter)] = ([name], module, parameter)
                    found.parameters.append(entry)
            if not others or id(module) in seen:
                continue
            seen.add(id(module))
            own = vars(module)
            for key, value in module._buffers.items():
                if isinstance(value, Tensor):
                    found.others.append((prefix, module._buffers, key, value))
            for key in own:
                if key not in _OF_ALL and isinstance(value := own[key], Tensor) and value.is_meta:
                    found.others.append((prefix, own, key, value))
        return found


Model = nn.Module | Walk
"""A model, or what :meth:`Walk.of` found in it, for as long as it does not change."""


def named_modules(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """As ``model.named_modules``; but a module that wraps another has no part in that one's name.

    So a weight is called the same in a model as it was built, checkpointed (``checkpoint_wrapper``),
    compiled (``torch.compile``), replicated (``DistributedDataParallel``) or set up by Lightning's
    Fabric, and has the same numbers. Those are the names of torch.distributed.checkpoint, too
    (``get_model_state_dict``).
    """
    return ((name, module) for name, _, module in walked(model, remove_duplicate))


def walked(
    model: nn.Module, remove_duplicate: bool = False
) -> Iterator[tuple[str, str, nn.Module]]:
    """(name as of :func:`named_modules`, name as of ``model.named_modules``, module).

    Raises:
        ValueError: a wrapper has something of its own by a name that what it wraps has, too.
    """
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
                (
                    its := joined(name, key),
                    its if full is name else joined(full, key),
                    child,
                    depth + 1,
                )
                for key, child in reversed(children.items())
                if child is not None
            ]
            continue
        inside = unwrapped(module)  # Fabric's wrapper has it twice
        _check_apart(module, wrapped, inside)
        ahead += [
            (name if key == wrapped else joined(name, key), joined(full, key), child, depth + 1)
            for key, child in reversed(children.items())
            if child is not None and (key == wrapped or child is not inside)
        ]


def _check_apart(wrapper: nn.Module, wrapped: str, inside: nn.Module) -> None:
    """Raises ValueError if two tensors would have one name, and so the same numbers."""
    extra = {key for key, its in _held(wrapper) if key != wrapped and its is not inside}
    module, below = wrapper, set[str]()
    while extra and (key := wrapped_key(module)) is not None:
        module = getattr(module, key)
        below.update(key for key, _ in _held(module))
    if twice := sorted(extra & below):
        raise ValueError(
            f"{type(wrapper).__name__} has {', '.join(twice)} of its own, and so has what it wraps, to "
            f"whose names a wrapper adds nothing: give its own another name"
        )


def _held(module: nn.Module) -> list[tuple[str, Any]]:
    held = (*module._parameters.items(), *module._buffers.items(), *module._modules.items())
    return [(key, its) for key, its in held if its is not None]


def named_buffers(model: Model) -> Iterator[tuple[str, Tensor]]:
    """All buffers, by each of their names, as :func:`named_modules` has them."""
    for name, _, module in model.modules if isinstance(model, Walk) else walked(model):
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield joined(name, key), buffer


def without_wrappers(model: Model) -> dict[str, str]:
    """Names of parameters and buffers as the model itself has them, each to what it is called here."""
    return {
        joined(full, key): joined(name, key)
        for name, full, module in (model.modules if isinstance(model, Walk) else walked(model))
        for key in (*module._parameters, *module._buffers)
    }


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
