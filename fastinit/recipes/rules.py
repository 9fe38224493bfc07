"""What recipes are made of: rules by pattern of names, one after the other, and settings.

A rule may have a method ``scaling(name, module, shape, config, optimizer)`` as well: what it multiplies
an optimizer's settings by for that parameter, a :class:`Scaling`, or None where it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, update_wrapper
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.base import number
from fastinit.base.patterns import Patterns, matches, several
from fastinit.base.text import listing
from fastinit.plan.fill import Fill
from fastinit.plan.ruled import Rule


class Scaling(NamedTuple):
    """What a rule multiplies an optimizer's settings by, for one parameter.

    Attributes:
        lr: the learning rate.
        weight_decay: as AdamW and SGD have it, who multiply it by the rate.
        eps: Adam's.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


OPTIMIZERS = ("adam", "sgd")
"""Those that rules know; "adam" is AdamW too."""


def check_optimizer(optimizer: object) -> None:
    """Raises ValueError for one that rules do not know."""
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, but got {optimizer!r}")


Scales = Callable[[str, nn.Module, torch.Size, Any, str], Scaling | None]
"""(name, module, shape, configuration, one of OPTIMIZERS) to what they are multiplied by."""


class Checked:
    """A rule that refuses models that it is not made for, or that scales an optimizer's settings.

    Args:
        rule: what it is otherwise; if it is a Checked one, its check comes first.
        check: given the names of all parameters, raises ValueError.
        scaling: by default that of ``rule``.
    """

    def __init__(
        self,
        rule: Rule,
        check: Callable[[Sequence[str]], None] | None = None,
        scaling: Scales | None = None,
    ) -> None:
        update_wrapper(self, rule)
        self.rule, self.own_check, self.own_scaling = rule, check, scaling

    def check(self, names: Sequence[str]) -> None:
        check_rule(self.rule, names)
        if self.own_check is not None:
            self.own_check(names)

    def scaling(
        self, name: str, module: nn.Module, shape: torch.Size, config: Any, optimizer: str
    ) -> Scaling | None:
        own = self.own_scaling or partial(scaling_of, self.rule)
        return own(name, module, shape, config, optimizer)

    def __call__(self, name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        return self.rule(name, module, shape, config)


def by_name(fills: Mapping[Patterns, Fill | Rule]) -> Checked:
    """The rule that gives a parameter what the first matching pattern stands for.

    Args:
        fills: pattern, or several in a tuple, to a Fill or to a rule that makes it.

    A tied parameter has the first of its names.

    Raises:
        ValueError: from ``Plan.from_model``, for patterns that get no parameter, be it that none matches
            or that earlier patterns match them all, and as with every rule for parameters without Fill.

    >>> rule = by_name({"*bias": Fill.constant(0.0), "*.weight": Fill.normal(std=0.02)})
    >>> print(rule("fc.bias", nn.Linear(2, 2), torch.Size([2]), None))
    constant 0
    """
    entries = [(several(patterns), made) for patterns, made in fills.items()]

    def chosen(name: str) -> Fill | Rule | None:
        return next((made for patterns, made in entries if matches(name, patterns)), None)

    def rule(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        made = chosen(name)
        return made(name, module, shape, config) if callable(made) else made

    def scaling(
        name: str, module: nn.Module, shape: torch.Size, config: Any, optimizer: str
    ) -> Scaling | None:
        return scaling_of(chosen(name), name, module, shape, config, optimizer)

    def check(names: Sequence[str]) -> None:
        left = list(names)
        idle = []
        for patterns, made in entries:
            own = [name for name in left if matches(name, patterns)]
            left = [name for name in left if not matches(name, patterns)]
            if not own:
                taken = any(matches(name, patterns) for name in names)
                idle.append(f"{' or '.join(patterns)}{' (after earlier patterns)' * taken}")
            else:
                check_rule(made, own)
        if idle:
            raise ValueError(f"no parameter matches {listing('pattern', idle)}")

    return Checked(rule, check, scaling)


def first_of(*rules: Rule) -> Checked:
    """The rule that gives what the first of several rules has for a parameter.

    Of an optimizer's settings it is the first that says anything of them.
    """

    def rule(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        for each in rules:
            if (fill := each(name, module, shape, config)) is not None:
                return fill
        return None

    def check(names: Sequence[str]) -> None:
        for each in rules:
            check_rule(each, names)

    def scaling(
        name: str, module: nn.Module, shape: torch.Size, config: Any, optimizer: str
    ) -> Scaling | None:
        for each in rules:
            if (found := scaling_of(each, name, module, shape, config, optimizer)) is not None:
                return found
        return None

    return Checked(rule, check, scaling)


def needs(*patterns: str) -> Callable[[Rule], Checked]:
    """Decorates a rule that would do nothing of its own to a model where none of the patterns match."""

    def check(names: Sequence[str]) -> None:
        if not any(matches(name, patterns) for name in names):
            raise ValueError(f"no parameter matches {' or '.join(patterns)}")

    return lambda rule: Checked(rule, check)


def scaling_of(
    rule: Fill | Rule | None,
    name: str,
    module: nn.Module,
    shape: torch.Size,
    config: Any,
    optimizer: str,
) -> Scaling | None:
    """What a rule multiplies an optimizer's settings by for a parameter; None if it says nothing."""
    scaling: Scales | None = getattr(rule, "scaling", None)
    return None if scaling is None else scaling(name, module, shape, config, optimizer)


def check_rule(rule: Fill | Rule, names: Sequence[str]) -> None:
    """Raises ValueError if the rule is not made for a model with parameters of these names."""
    if (check := getattr(rule, "check", None)) is not None:
        check(names)


def setting(config: Any, *names: str, default: Any = None) -> Any:
    """The first of some attributes of a configuration, or items of a mapping, that is not None.

    Raises:
        ValueError: there is none, and no default.
    """
    for name in names:
        is_mapping = isinstance(config, Mapping)
        value = config.get(name) if is_mapping else getattr(config, name, None)
        if value is not None:
            return value
    if default is None:
        raise ValueError(
            f"the recipe needs a config with {' or '.join(names)}, but got {type(config).__name__}"
        )
    return default


def number_of(config: Any, *names: str, default: float | None = None) -> float:
    """A :func:`setting` that is a finite number and not negative.

    Raises:
        ValueError: there is none, and no default.
        NumberTypeError, NumberRangeError: it is no such number.
    """
    return number.multiplier("/".join(names), setting(config, *names, default=default))


def count_of(config: Any, *names: str) -> int:
    """A :func:`setting` that is a whole number above 0: layers, heads, a width.

    Raises:
        ValueError: there is none.
        NumberTypeError, NumberRangeError: it is no such number.
    """
    return number.integer("/".join(names), setting(config, *names), least=1)
