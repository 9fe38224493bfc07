"""Sources: what a checkpoint holds, which is (name -> values of the full parameter), and who has them.

The values are those of the model, which may be on several ranks, or what a plan says: then nobody needs
to have them. Names are those of ``state_dict``; of parts that are given with another name, that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastinit.checkpoint.packed import Packed
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.part import Part, one_shape
from fastinit.elements.pieces import Piece
from fastinit.plan.buffers import Known, planned
from fastinit.plan.fill import Fill
from fastinit.plan.fit import Parts, Scope, fitted
from fastinit.plan.names import named_buffers
from fastinit.plan.parameters import check_place, distinct_parameters, reshard_, wanted_dtype
from fastinit.plan.plan import Plan
from fastinit.plan.replay import Computed, known_values
from fastinit.plan.write import Entry, checked
from fastinit.record.materialize import recorded_buffers, recorded_plan


class Held(NamedTuple):
    """Parts of a parameter whose values this rank has; other ranks have the others.

    When ranks have agreed, these are the parts that this one writes.
    """

    parts: tuple[tuple[Part, Tensor], ...] = ()

    def pieces(self, name: str) -> Iterator[Piece]:
        """The blocks of the full parameter, and where their values are."""
        for part, tensor in self.parts:
            yield from part.pieces(tensor, name)


@dataclass(frozen=True, eq=False)
class Source:
    """A parameter or buffer of the model: its values, or what they shall be.

    Args:
        name: that of its stream.
        shape: of the whole.
        dtype: in which it is stored.
        content: what a plan says of it, or its values; None if only other ranks know.
        is_parameter: and no buffer.
        by: the only rank that can make it, by its place in the group; None if all can, or each its part.
        each: how many of the model's values an element has: 2 of two in a byte, 0 of a scale.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    content: Fill | Computed | Tensor | Packed | Held | None
    is_parameter: bool = False
    by: int | None = None
    each: int = 1

    def __repr__(self) -> str:
        its = self.content
        what = its if isinstance(its, (Fill, Computed, Packed)) else "values"
        return f"Source({self.name!r}, {self.shape}, {self.dtype}, {what})"

    @property
    def nbytes(self) -> int:
        """Of the whole, as it is stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_apart(self) -> bool:
        """Whether not every rank can write any element of it."""
        return self.by is not None or self.content is None or isinstance(self.content, Held)


def sources(
    model: nn.Module,
    plan: Plan | None = None,
    dtype: torch.dtype | None = None,
    parts: Parts | None = None,
) -> tuple[dict[str, Source], int]:
    """(by its name in ``state_dict``, without wrappers', what there is of each tensor; the seed).

    Args:
        model: as :func:`fastinit.deferred` built it, or with values, which are then stored.
        plan: what its parameters shall be; by default what was recorded.
        dtype: of floating-point parameters; by default the model's.
        parts: what plain tensors of the model are parts of, as of :meth:`fastinit.Plan.apply_`.

    Raises:
        ValueError: a plan that does not fit the model, or a tensor without values.
        NotImplementedError, RuntimeError: a parameter that cannot be written, or is a part of one and
            does not say which.
    """
    check_place(None, dtype)
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"plan must be a fastinit.Plan, but got {plan!r}")
    reshard_(model)
    scope = Scope(parts=parts)
    scope.check(model, ())
    recorded = plan is None
    if plan is None:
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        plan = recorded_plan(model, parts=parts) if on_meta else Plan({})
    contents: dict[int, tuple[str, Fill | Computed | Tensor]] = {}
    entries: list[Entry] = []
    for fit in fitted(model, dict(plan), plan.aliases, given=recorded, scope=scope):
        content, parameter = plan[fit.name], fit.parameter
        values = known_values(content)
        shape = parameter.shape if fit.part is None else fit.part.shape
        as_stored = torch.empty(shape, dtype=wanted_dtype(parameter, dtype), device="meta")
        entries.append(Entry(fit.name, as_stored, content))
        contents[id(parameter)] = fit.name, content if values is None else values
    checked(entries, plan.seed)
    known = _known_buffers(model, plan, scope)
    held: dict[str, dict[int, tuple[Tensor, Part | None]]] = {}
    for own, tensor in _named_state(model):
        names, part = scope.planned([own], tensor)
        held.setdefault(names[0], {})[id(tensor)] = tensor, part
        if id(tensor) not in contents:
            content_ = planned(own, tensor, part, known.get(names[0]), plan.seed)
            if content_ is not None:
                contents[id(tensor)] = names[0], content_
            elif tensor.is_meta:
                raise ValueError(
                    f"{own} is on meta, so it has no values to store: only a recorded_plan of a model "
                    f"built within fastinit.deferred() knows what its constructor put in buffers"
                )
    made: dict[tuple[int, ...], Source] = {}
    for name, some in held.items():
        if (key := tuple(some)) not in made:
            made[key] = _source(name, list(some.values()), dtype, contents.get(key[0]))
    return {name: made[tuple(some)] for name, some in held.items()}, plan.seed


def _named_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What ``state_dict`` has, under names without what wrappers put into them."""
    called: dict[int, list[str]] = {}
    for names, _, parameter in distinct_parameters(model):
        called[id(parameter)] = names.copy()
    for name, buffer in named_buffers(model):
        called.setdefault(id(buffer), []).append(name)
    for own, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{own} is no tensor, so a checkpoint cannot hold it")
        its = called.get(id(tensor), [])  # in the same order, if it is there several times
        name = own if own in its or not its else its[0]
        yield name, tensor
        its[:] = [other for other in its if other != name]


def _known_buffers(model: nn.Module, plan: Plan, scope: Scope) -> Known:
    """What is known of the model's buffers: by the plan, or of those on meta by what was recorded."""
    known = plan.buffers
    lost = [
        name
        for own, buffer in named_buffers(model)
        if buffer.is_meta and (name := scope.planned([own], buffer)[0][0]) not in known
    ]
    sharded = any(shard.is_dtensor(parameter) for parameter in model.parameters())
    return {**recorded_buffers(model, scope), **known} if lost and not sharded else known


def _source(
    name: str,
    there: Sequence[tuple[Tensor, Part | None]],
    dtype: torch.dtype | None,
    content: tuple[str, Fill | Computed | Tensor] | None,
) -> Source:
    """One tensor of the checkpoint.

    Args:
        there: what the model has of it, each with the part that it is if it does not say so itself.
        dtype: of floating-point parameters; None is the model's.
        content: its stream and what it shall be; None is what it has.
    """
    is_parameter = isinstance(there[0][0], nn.Parameter)
    dtypes = {wanted_dtype(tensor, dtype if is_parameter else None) for tensor, _ in there}
    if len(dtypes) > 1:
        raise ValueError(f"parts of {name} are of several dtypes: {sorted(map(str, dtypes))}")
    parts = [shard.part_of(tensor, name, given) for tensor, given in there]
    shapes = [
        tensor.shape if part is None else part.shape for (tensor, _), part in zip(there, parts)
    ]
    shape, stored_as = one_shape(name, shapes), dtypes.pop()
    if content is not None:
        return Source(content[0], shape, stored_as, content[1], is_parameter)
    held: list[tuple[Part, Tensor]] = []
    for (tensor, _), part in zip(there, parts):
        values = tensors.values(tensor, name)
        if part is None or part.is_whole:
            held.append((Part(shape), values.view(shape)))
        else:
            held.append((replace(part, name=None), values))
    if len(held) == 1 and held[0][0].is_whole:
        return Source(name, shape, stored_as, held[0][1], is_parameter)
    return Source(name, shape, stored_as, Held(tuple(held)), is_parameter)
