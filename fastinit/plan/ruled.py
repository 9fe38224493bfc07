"""Ruled: what a rule says of each parameter of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastinit.base.text import listing
from fastinit.elements import shards as shard
from fastinit.plan.fill import Fill
from fastinit.plan.fit import Parts, Scope

Rule = Callable[[str, nn.Module, torch.Size, Any], Fill | None]
"""(full name, module that owns the parameter, shape, configuration) to its Fill; None if it has none.

A rule may have a method ``check(names)``, which is given the names of all parameters and raises a
ValueError for a model that the rule is not made for.
"""


def by_rule(
    model: nn.Module, rule: Rule, config: Any = None, parts: Parts | None = None
) -> tuple[dict[str, Fill], dict[str, str]]:
    """(the Fill of each parameter, further names of tied ones): see ``Plan.from_model``."""
    if not callable(rule):
        raise TypeError(f"rule must be a function such as recipes.torch_default, but got {rule!r}")
    if config is None:
        config = getattr(model, "config", None)
    fills: dict[str, Fill] = {}
    aliases: dict[str, str] = {}
    uncovered = []
    scope = Scope(parts=parts)
    scope.check(model, ())
    found = list(scope.places(model))
    if (check := getattr(rule, "check", None)) is not None:
        check([place.names[0] for place in found])
    for names, module, parameter, part in found:
        if part is None:
            shard.check_held(parameter, names[0])  # its shape would be that of a part
        shape = parameter.shape if part is None else torch.Size(part.shape)
        fill = rule(names[0], module, shape, config)
        if fill is None:
            uncovered.append(f"{names[0]} ({type(module).__name__})")
        elif fills.get(names[0], fill) != fill:
            raise ValueError(
                f"the rule fills parts of {names[0]} differently: {fills[names[0]]} and {fill}"
            )
        else:
            fills[names[0]] = fill
            aliases.update(dict.fromkeys(names[1:], names[0]))
    if uncovered:
        raise ValueError(f"the rule has no Fill for {listing('parameter', uncovered)}")
    return fills, aliases
