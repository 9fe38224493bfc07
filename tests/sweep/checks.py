"""What else is asked of a model that the sweep has built: a row here is a column of the results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastinit import Plan, deferred, materialize_, recorded_plan
from sweep.shrink import Build

HOLDS = "holds"


def _recorded(build: Build) -> nn.Module:
    with deferred(seed=0):
        return build()


def plan_is_the_model(build: Build) -> str:
    """The recorded plan, applied to an eager model, gives what ``materialize_`` gives, to the bit."""
    model = _recorded(build)
    plan = recorded_plan(model)
    written = dict(materialize_(model).named_parameters())
    eager = plan.apply_(build())
    wrong = [
        name
        for name, parameter in eager.named_parameters()
        if name not in written or not _equal(parameter, written[name])
    ]
    return f"differ: {', '.join(wrong[:5])} ({len(wrong)} in all)" if wrong else HOLDS


def plan_saves(build: Build) -> str:
    """The plan is small JSON, and read again the same plan."""
    plan = recorded_plan(_recorded(build))
    return HOLDS if Plan.from_json(plan.to_json()) == plan else "read again it is another"


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_floating_point():
        return torch.equal(one.nan_to_num(), other.nan_to_num())
    return torch.equal(one, other)


CHECKS: dict[str, Callable[[Build], str]] = {
    "plan": plan_is_the_model,
    "saves": plan_saves,
}
