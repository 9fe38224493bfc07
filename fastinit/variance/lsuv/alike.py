"""What ranks have in common before LSUV begins: what is asked of them, and the values that several hold.

Some digests in one small collective; only ranks that differ tell each other, in a second, in what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastinit.base import distributed_internals as distributed
from fastinit.base import ranks as base
from fastinit.base.text import listing
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.fills import agreement
from fastinit.plan.plan import Plan
from fastinit.statistics.tensor import moments_many
from fastinit.stream import laws
from fastinit.variance.lsuv.ranks import Ranks, checksum, digest_of


class Held(NamedTuple):
    """A parameter that other ranks may hold too."""

    name: str
    part: str
    """The same text for the same elements of it."""
    here: Tensor


def check_alike(
    ranks: Ranks, asked: Mapping[str, object], model: nn.Module, plan: Plan | None
) -> None:
    """Raises, on all ranks, unless they are about to do the same to the same model.

    Args:
        asked: what all have to be told alike, by what that is called; as far as :func:`said` says it.
        plan: of a model that was recorded.

    Raises:
        ValueError: what is asked differs, or the values of what ranks hold in common.
        RuntimeError: their plans differ, or the seeds of these.
    """
    if ranks.alone:
        return
    held = _held(model)
    numbers = [digest_of(said(value)) for value in asked.values()]
    for some in held.values():
        numbers += [digest_of([one[:2] for one in some]), digest_of(_values(some))]
    rows = ranks.gathered(numbers, "what all are about to do")
    first = rows[0][: len(asked)]
    if others := [place for place, row in enumerate(rows) if row[: len(asked)] != first]:
        unlike = [name for i, name in enumerate(asked) if any(row[i] != first[i] for row in rows)]
        raise ValueError(
            f"ranks must call lsuv_ alike, with models of the same layers, but {ranks.named(others)} "
            f"not as the first: {', '.join(unlike)} differ{'s' * (len(unlike) == 1)}"
        )
    known: dict[float, float] = {}
    pairs = [pair for row in rows for pair in zip(row[len(asked) :: 2], row[len(asked) + 1 :: 2])]
    if any(known.setdefault(which, values) != values for which, values in pairs):
        raise ValueError(_differing(ranks, [one for some in held.values() for one in some]))
    if plan is not None:
        agreement.compare(plan, ranks.group)


def said(value: object) -> str:
    """What can be compared of an option: numbers, texts, and collections of these; of a function its
    name, of other things their type's.

    >>> said({"b": 2.0, "a": partial(max, 1)})
    "{'a': partial(builtins.max, (1), {}), 'b': 2.0}"
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Mapping):
        items = sorted(f"{said(key)}: {said(of)}" for key, of in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(said, value))})"
    if isinstance(value, partial):
        return f"partial({said(value.func)}, {said(value.args)}, {said(value.keywords)})"
    named: Any = value if hasattr(value, "__qualname__") else type(value)
    return ".".join(filter(None, (getattr(named, "__module__", None), named.__qualname__)))


def _held(model: nn.Module) -> dict[Any, list[Held]]:
    """The parameters that are here, by how they lie on ranks; none of which nobody says that."""
    replicas = filter(None, map(distributed.replicas_of, model.modules()))
    ignored = {its for each in replicas for its in each.left}
    found: dict[Any, list[Held]] = {}
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta or id(parameter) in ignored:
            continue
        here = tensors.local(shard.detached(parameter))
        try:
            part = shard.part_of(parameter, name)
        except NotImplementedError:
            continue
        lies = (
            (parameter.device_mesh, parameter.placements) if shard.is_dtensor(parameter) else None
        )
        if tensors.unreadable(here) is None:
            found.setdefault(lies, []).append(Held(name, repr(part), here))
    return found


def _values(some: list[Held]) -> list[int]:
    """Of each tensor a digest of its moments, which are read at the speed of memory, or its bits."""
    read = [one.here for one in some if one.here.dtype in laws.DTYPES]
    raws = iter(())
    if read:
        raw = torch.stack([m.raw.to(read[0].device) for m in moments_many(read)])
        raws = iter(raw.cpu().view(torch.int64).tolist())
    return [
        digest_of(next(raws)) if one.here.dtype in laws.DTYPES else checksum(one.here)
        for one in some
    ]


def _differing(ranks: Ranks, held: list[Held]) -> str:
    """Which parameters differ on which ranks; a collective."""
    mine = [(one.name, one.part, values) for one, values in zip(held, _values(held))]
    texts = base.gathered_texts(ranks.group, json.dumps(mine), "which weights differ")
    found: dict[tuple[str, str], dict[int, list[int]]] = {}
    for rank, text in zip(base.members(ranks.group), texts):
        for name, part, values in json.loads(text):
            found.setdefault((name, part), {}).setdefault(values, []).append(rank)
    unlike = {name: of for (name, _), of in reversed(found.items()) if len(of) > 1}
    which = " / ".join(map(base.listing, next(reversed(unlike.values())).values()))
    return (
        f"ranks must have the same values of what they share, but ranks {which} differ in "
        f"{listing('parameter', list(reversed(unlike)))}: give all the same before lsuv_"
    )
