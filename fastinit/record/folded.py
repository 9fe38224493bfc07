"""Folded: operations that together are one law."""

from __future__ import annotations

import math
from dataclasses import replace

from fastinit.plan.fill import Fill
from fastinit.plan.history import Call, Contents, Filled, Own

_TRUNCATED = (
    ("erfinv_", "mul_", "add_", "clamp_"),
    ("erfinv_", "mul_", "add_", "clip_"),
)
"""What makes uniform numbers truncated normal ones: timm's and transformers' ``trunc_normal_``."""


def folded(contents: Contents) -> Contents:
    """Contents whose last writes are one Fill, if they are what makes a truncated normal law."""
    *before, uniform = contents.writes[: -len(_TRUNCATED[0])] or (None,)
    calls = contents.writes[-len(_TRUNCATED[0]) :]
    if not isinstance(uniform, Filled) or uniform.fill.distribution != "uniform":
        return contents
    if not uniform.fill.has_law or uniform.shape is not None:
        return contents
    numbers: list[float] = []
    names = []
    for call in calls:
        if not isinstance(call, Call) or not call.args:
            return contents
        own, *scalars = call.args
        scalars += list(call.kwargs.values())
        if not isinstance(own, Own) or own.view.where.as_set() != uniform.region:
            return contents
        if not all(isinstance(scalar, (int, float)) for scalar in scalars):
            return contents
        names.append(getattr(call.function, "__name__", "").split(".")[0])
        numbers += scalars
    if tuple(names) not in _TRUNCATED or len(numbers) != 4 or not numbers[0] > 0:
        return contents
    std, mean, a, b = numbers[0] / math.sqrt(2.0), *numbers[1:]
    law = uniform.fill.law
    for bound, drawn in ((a, law.p0), (b, law.p1)):
        if abs(math.erf((bound - mean) / (std * math.sqrt(2.0))) - drawn) > 1e-6:
            return contents
    fill = Fill.truncated_normal(mean, std, a, b)
    return replace(contents, writes=tuple(before)).filled(uniform.region, fill, uniform.origin)
