"""Master weights: float32 values of parameters of fewer bits, where an optimizer keeps them.

A parameter is its master weight, rounded, so that neither is made from the other: each is written from
the plan, in its own memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from fastinit.base.memory import no_collection
from fastinit.base.text import listing
from fastinit.elements import shards as shard
from fastinit.elements.part import Part, check_part
from fastinit.fills.agreement import agreeing
from fastinit.plan.applied import texts
from fastinit.plan.fit import Fitted, Parts, Scope
from fastinit.plan.plan import Plan
from fastinit.plan.write import Entry, Progress, checked

Masters = Mapping[str, Tensor] | Iterable[tuple[Tensor, Part]]
"""Master weights by the names of their parameters; or with the Parts that they are, which have names."""

S = TypeVar("S", bound=Masters)

_WIDE = (torch.float32, torch.float64)


def master_(
    shards: S,
    plan: Plan,
    *,
    parts: Parts | None = None,
    progress: Progress | None = None,
) -> S:
    """Writes master weights: what a plan's parameters are in float32, where an optimizer keeps them.

    The values are those that the plan gives float32 parameters, so a parameter of another dtype is its
    master weight rounded (a uniform or truncated law apart, whose bounds the rounded value keeps too).
    They are written in place, and nothing else of their size is made: neither a float32 model that is
    then rounded, nor a copy. A parameter that a constructor computed, and a distribution of whole
    tensors, take the memory of one of them at a time where a rank has a part of it.

    Args:
        shards: float32 tensors (of float64 the same values, widened) on any device, that have memory: a
            map from the plan's names, or pairs of a tensor and the :class:`fastinit.Part` that it is,
            with its parameter's name. DTensors say themselves what they hold; other tensors without a
            Part are whole parameters, of whatever shape, as plans say none. They need not be all of the
            plan's, and may be several parts of one. Of tied parameters any name will do.
        plan: what the parameters are, as it was applied to them.
        parts: of a map's plain tensors that are parts of the plan's parameters: a map of names to Parts,
            or a function of name and tensor, as of :meth:`fastinit.Plan.apply_`.
        progress: as of :meth:`fastinit.Plan.apply_`.

    Returns:
        ``shards``.

    Raises:
        ValueError: names that the plan lacks (all are listed), tensors of another dtype than float32 or
            float64, or on meta; a Part of another shape than its tensor's.
        TypeError: ``plan`` is no Plan, ``shards`` neither map nor pairs, what is written no tensor, a
            Part without a name in a pair.
        RuntimeError: ranks with DTensors on one mesh write different plans, or one of them failed.
        NotImplementedError, RuntimeError: as :meth:`fastinit.Plan.apply_`.

    >>> from torch import nn
    >>> from fastinit import Fill
    >>> plan = Plan({"weight": Fill.normal(std=0.02)}, seed=1)
    >>> layer = plan.apply_(nn.Linear(8, 4, bias=False, dtype=torch.bfloat16))
    >>> masters = {"weight": torch.empty(4, 8)}
    >>> optimizer = torch.optim.AdamW(master_(masters, plan).values())
    >>> torch.equal(masters["weight"].bfloat16(), layer.weight)
    True
    """
    if not isinstance(shards, Iterable):
        kind = type(shards).__name__
        raise TypeError(
            f"shards must be tensors by names, or pairs of tensor and Part, but got {kind}"
        )
    pairs = list(shards.items() if isinstance(shards, Mapping) else shards)
    found = (each for pair in pairs if isinstance(pair, (tuple, list)) for each in pair)
    meshes = [tensor.device_mesh for tensor in found if shard.is_dtensor(tensor)]
    seed = plan.seed if isinstance(plan, Plan) else 0
    with no_collection():
        with agreeing(meshes, seed) as said:  # an error of this rank is one of all
            if not isinstance(plan, Plan):
                raise TypeError(f"plan must be a fastinit.Plan, but got {plan!r}")
            fits = _fitted(_named(shards if isinstance(shards, Mapping) else pairs), plan, parts)
            entries = (Entry(name, tensor, plan[name], part) for name, tensor, part in fits)
            ready = checked(entries, plan.seed, progress)
            said.update(texts(plan, fits))
        ready.write()
    return shards


_Named = list[tuple[str, Tensor, Part | None]]


def _named(shards: Masters) -> _Named:
    if isinstance(shards, Mapping):
        return [(name, tensor, None) for name, tensor in shards.items()]
    named: _Named = []
    for tensor, part in shards:
        if (name := check_part(part).name) is None:
            raise TypeError(f"a Part in a pair needs its parameter's name, but got {part!r}")
        named.append((name, tensor, part))
    return named


def _fitted(named: _Named, plan: Plan, parts: Parts | None) -> list[Fitted]:
    """Each tensor, and what it is in the plan; raises for what is no master weight of it."""
    if isinstance(parts, Mapping) and (idle := set(parts) - {name for name, _, _ in named}):
        raise ValueError(f"parts has {listing('tensor', sorted(idle))} that shards lacks")
    scope, fits, missing = Scope(parts=parts), [], []
    for name, tensor, part in named:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but got {type(tensor).__name__}")
        if tensor.dtype not in _WIDE or tensor.is_meta:
            where = " on meta" if tensor.is_meta else ""
            raise ValueError(
                f"{name} is {tensor.dtype}{where}, but master weights are float32 and have memory"
            )
        if part is None:
            (name, *_), part = scope.planned([name], tensor)
        if name in plan:
            fits.append(Fitted(plan.aliases.get(name, name), tensor, part))
        else:
            missing.append(name)
    if missing:
        raise ValueError(f"the plan has no {listing('parameter', missing)}")
    return fits
