"""Blocks: what a model repeats, and between which its hidden state, the residual stream, is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from torch import nn

from fastinit.plan.names import unwrapped
from fastinit.variance.layers import without_hooks
from fastinit.variance.watch.targets import Target


def block_targets(model: nn.Module, known: Collection[str]) -> tuple[list[Target], dict[str, str]]:
    """Each block as what is watched by its output, and by name why others cannot be.

    Blocks are the members of a container that has two or more with one forward, but for those without
    modules inside, as layers are. A container is a module that one can go through, as a ModuleList, a
    Sequential and a ModuleDict are. Of containers within each other the outermost has them.

    Args:
        known: names of what is watched already.

    Raises:
        ValueError: the model has no blocks.
    """
    closed, inside = without_hooks(model, compiled=True), set[nn.Module]()
    targets, passed = list[Target](), dict[str, str]()
    for prefix, container in model.named_modules():
        if container in inside or not hasattr(type(container), "__iter__"):
            continue
        members = {name: m for name, m in container.named_children() if _may_be_block(m)}
        forwards = Counter(_forward(member) for member in members.values())
        if max(forwards.values(), default=0) < 2:
            continue
        for key, module in members.items():
            name = f"{prefix}.{key}" if prefix else key
            inside.update(module.modules())
            if module in closed:
                passed[name] = closed[module]
            elif name not in known:
                targets.append(Target(name, module, None))
    if not inside:
        raise ValueError(
            "residual=True is of models with blocks: members of a ModuleList, Sequential, ModuleDict or "
            "another module that can be iterated, two or more with one forward and modules inside, of "
            f"which {type(model).__name__} has none"
        )
    return targets, passed


def _may_be_block(module: nn.Module) -> bool:
    """Whether it has modules inside, and a forward, which containers of modules have not."""
    inside = next(unwrapped(module).children(), None)
    return inside is not None and _forward(module) is not nn.Module.forward


def _forward(module: nn.Module) -> Callable[..., object]:
    """That of a module, or of what it wraps. One that is parametrised is of a class of its own."""
    return type(unwrapped(module)).forward
