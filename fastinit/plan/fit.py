"""Fit: the one check that a plan and a model have the same parameters, tied alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from fastinit.base.text import listing
from fastinit.plan.parameters import distinct_parameters


def fitted(
    model: nn.Module,
    planned: Collection[str],
    aliases: Mapping[str, str],
    *,
    given: bool = False,
) -> list[tuple[str, nn.Parameter]]:
    """(the name under which it is planned, parameter) of each of a model's parameters, tied ones once.

    Args:
        planned: names of the plan's parameters.
        aliases: further names of tied ones, each to the name under which it is planned.
        given: parameters that have values may be missing in the plan, and are left out here.

    Raises:
        ValueError: parameters that the plan lacks, or the model; parameters that the plan ties and the
            model does not, or the other way round (all are listed).
    """
    found, missing, problems = [], [], []
    names_found: set[str] = set()
    for names, _, parameter in distinct_parameters(model):
        here = [name for name in names if name in planned]
        names_found.update(here)
        if len(here) > 1:
            problems.append(f"tied in the model but not in the plan: {', '.join(here)}")
        elif here:
            found.append((here[0], parameter))
        elif not given or parameter.is_meta:
            tied = aliases.get(names[0])
            missing.append(f"{names[0]} (tied to {tied} in the plan)" if tied else names[0])
    if missing:
        problems.append(f"the plan has no {listing('parameter', missing)}")
    if extra := [name for name in planned if name not in names_found]:
        problems.append(f"the model has no {listing('parameter', extra)}")
    if problems:
        raise ValueError("the plan does not fit the model: " + "; ".join(problems))
    return found
