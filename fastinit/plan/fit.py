"""Fit: the one check that a plan and a model, or a part of it, have the same parameters, tied alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from torch import nn

from fastinit.base.patterns import Choice
from fastinit.base.text import listing
from fastinit.plan.parameters import distinct_parameters


class Scope(NamedTuple):
    """Which of a plan's parameters and buffers are meant, by their names in the plan."""

    prefix: str = ""
    """What the plan's names have before the model's."""
    only: Choice | None = None
    """Of names in the plan; by default all."""

    def check(self, model: nn.Module, planned: Iterable[str]) -> None:
        """Raises unless the prefix ends with its dot and each pattern matches something.

        Args:
            model: its parameters can be matched, too.
            planned: all names that the plan has.

        Raises:
            ValueError: they do not. TypeError: a prefix that is no text.
        """
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix must be a str, but got {self.prefix!r}")
        if self.prefix and not self.prefix.endswith("."):
            raise ValueError(
                f"prefix must be all that stands before the model's names, as in '{self.prefix}.', "
                f"but got {self.prefix!r}"
            )
        if self.only is None:
            return
        names = [name for name in planned if name.startswith(self.prefix)]
        names += [self.prefix + name for own, _, _ in distinct_parameters(model) for name in own]
        if idle := self.only.idle(names):
            under = f" under {self.prefix}" if self.prefix else ""
            raise ValueError(f"no parameter{under} matches {listing('pattern', idle)}")

    def has(self, *names: str) -> bool:
        """Whether what goes by these names is meant."""
        return self.only is None or any(name in self.only for name in names)


ALL = Scope()


def fitted(
    model: nn.Module,
    planned: Collection[str],
    aliases: Mapping[str, str],
    *,
    given: bool = False,
    scope: Scope = ALL,
) -> list[tuple[str, nn.Parameter]]:
    """(the name under which it is planned, parameter) of each of a model's parameters, tied ones once.

    A parameter of the plan is found by any of its names.

    Args:
        planned: names of the plan's parameters.
        aliases: further names of tied ones, each to the name under which it is planned.
        given: parameters that have values may be missing in the plan, and are left out here.
        scope: others are left out, of the plan and of the model, and may be whatever they are.

    Raises:
        ValueError: parameters that the plan lacks, or the model; parameters that the plan ties and the
            model does not, or the other way round (all are listed).
    """
    names_of: dict[str, list[str]] = {name: [name] for name in planned}
    for alias, name in aliases.items():
        names_of[name].append(alias)
    planned_as = {name: own for own, names in names_of.items() for name in names}
    found: dict[
        str, tuple[str, nn.Parameter]
    ] = {}  # by the name in the plan; with that in the model
    missing, problems = [], []
    for own, _, parameter in distinct_parameters(model):
        names = [scope.prefix + name for name in own]
        here = list(dict.fromkeys(planned_as[name] for name in names if name in planned_as))
        if not scope.has(*names, *(other for name in here for other in names_of[name])):
            continue
        if not here:
            if not given or parameter.is_meta:
                missing.append(names[0])
        elif tied := [name for name in here if name in found]:
            pair = (found[tied[0]][0], names[0])
            problems.append(f"tied in the plan but not in the model: {', '.join(pair)}")
        else:
            if len(here) > 1:
                problems.append(f"tied in the model but not in the plan: {', '.join(here)}")
            found.update(dict.fromkeys(here, (names[0], parameter)))
    if missing:
        problems.insert(0, f"the plan has no {listing('parameter', missing)}")
    extra = [
        own
        for own, names in names_of.items()
        if own not in found
        and scope.has(*names)
        and any(name.startswith(scope.prefix) for name in names)
    ]
    if extra:
        problems.append(f"the model has no {listing('parameter', extra)}")
    if problems:
        raise ValueError("the plan does not fit the model: " + "; ".join(problems))
    return [(name, parameter) for name, (_, parameter) in found.items()]
