"""Audit: of each parameter and buffer of a model, who wrote it, as far as that can be known.

Memory does not say whether anybody wrote it. What can be known: what is on meta has no values; what
``deferred`` recorded, or a plan has, can be written; what fastinit wrote is noted with its memory; torch
counts writes; and a buffer can be compared with what its constructor gave. The rest is left open.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fastinit.base import html, text
from fastinit.base.ranks import Group, gathered_texts, members
from fastinit.base.torch_internals import is_persistent, loads_from_nothing, storage_id, version_of
from fastinit.elements import shards as shard
from fastinit.plan import groups
from fastinit.plan.buffers import Pending, compared
from fastinit.plan.filled import is_filled, writes
from fastinit.plan.fit import ALL, Scope
from fastinit.plan.names import joined, walked
from fastinit.plan.parameters import offloaded
from fastinit.plan.plan import Plan
from fastinit.plan.replay import Computed
from fastinit.record.built import built, constructor_plan
from fastinit.record.memories import is_changed, memory_of
from fastinit.record.model_record import MADE_LATER, NOT_RECORDED

State = Literal[
    "loaded",
    "filled",
    "kept",
    "made",
    "written",
    "given",
    "changed",
    "recorded",
    "unwritten",
    "lazy",
    "offloaded",
]

MEANINGS: dict[State, str] = {
    "unwritten": "without values, and nobody knows which",
    "recorded": "still to be written, and it is known with what",
    "changed": "a buffer with other values than its constructor gave",
    "given": "memory of somebody else, of which nothing tells whether it was written",
    "lazy": "without a shape until the first forward",
    "offloaded": "kept elsewhere, and put there for each forward by accelerate's hooks",
    "filled": "written by fastinit, and by no operation since",
    "written": "written by an operation, since fastinit filled it or since its memory was put there",
    "loaded": "not among the missing, which the caller named, or loaded within the block",
    "kept": "filled before, and left by fill_missing_",
    "made": "as its constructor made it, where that is no law",
}
"""What the states of an :class:`Audit` mean, those first that leave most to do."""

Kind = Literal["parameter", "buffer", "non-persistent buffer", "attribute"]


class Audited(NamedTuple):
    """What is known of one tensor of a model."""

    name: str
    kind: Kind
    """An attribute is a plain one that holds a tensor on meta."""
    state: State
    elements: int
    """Of the full tensor; 0 of a lazy one."""
    tied: tuple[str, ...] = ()
    """Further names of the same tensor."""
    note: str = ""


@dataclass(frozen=True)
class Audit(html.InNotebooks):
    """Who wrote each parameter and buffer of a model; what :data:`MEANINGS` says of each state.

    ``print(audit)`` shows a table of at most 80 columns, one line for all that are called alike.
    """

    tensors: tuple[Audited, ...]
    """Each once: parameters, then buffers, then plain attributes on meta."""

    def names(self, *states: State) -> list[str]:
        """The first name of each tensor in one of some states."""
        return [each.name for each in self.tensors if each.state in states]

    @property
    def loaded(self) -> list[str]:
        """What was loaded, as the caller said or torch counted."""
        return self.names("loaded", "written")

    @property
    def filled(self) -> list[str]:
        """What fastinit wrote."""
        return self.names("filled")

    @property
    def left(self) -> list[str]:
        """What was left as it is, since others made it."""
        return self.names("kept", "made", "given", "changed", "lazy", "offloaded")

    @property
    def missing(self) -> list[str]:
        """What has still to be written."""
        return self.names("recorded", "unwritten")

    @property
    def tied(self) -> dict[str, str]:
        """Each further name of a tensor, with its first."""
        return {alias: each.name for each in self.tensors for alias in each.tied}

    def all_merge(self, group: Group = None) -> Audit:
        """What is known on all ranks, the same on each; a collective of one text.

        Where ranks say different things of a tensor, the state is the one that leaves most to do, and
        the note says which ranks say what: rank 0 may have loaded what others still lack.

        Args:
            group: a process group or mesh; by default all ranks.

        Raises:
            RuntimeError: another rank failed (``fastinit.base.ranks``).
        """
        mine = json.dumps([list(each) for each in self.tensors])
        texts = gathered_texts(group, mine, "merging what was audited")
        said: dict[str, dict[int, Audited]] = {}
        for rank, told in zip(members(group), texts, strict=True):
            for name, kind, state, elements, tied, note in json.loads(told):
                each = Audited(name, kind, state, elements, tuple(tied), note)
                said.setdefault(name, {})[rank] = each
        return Audit(tuple(_merged(ranks) for ranks in said.values()))

    def __str__(self) -> str:
        return str(self.table())

    def table(self) -> html.Table:
        """One line for each pattern of names and state, then what is tied and what is to be said."""
        states = {each.name: each.state for each in self.tensors}
        sizes = {each.name: each.elements for each in self.tensors}
        alike = groups.alike(states)
        cells = [["count", "elements", "state"]]
        for _, names in alike:
            elements = text.count(sum(sizes[name] for name in names))
            cells.append([str(len(names)), elements, states[names[0]]])
        table = groups.table([pattern for pattern, _ in alike], cells, "<>><", what="tensor")
        ties = [f"{name}: tied to {first}" for name, first in self.tied.items()]
        lines = [textwrap.fill(tie, text.WIDTH, subsequent_indent="  ") for tie in ties]
        lines += text.reasons([(each.name, each.note) for each in self.tensors], {})
        return table.above(lines)


def _merged(of: Mapping[int, Audited]) -> Audited:
    """What ranks say of one tensor."""
    by_state: dict[State, list[int]] = {}
    for rank, each in of.items():
        by_state.setdefault(each.state, []).append(rank)
    urgent = list(MEANINGS)
    worst = min(of.values(), key=lambda each: urgent.index(each.state))
    if len(by_state) == 1:
        return worst
    said = [
        f"{state} on {text.listing('rank', list(map(str, r)))}" for state, r in by_state.items()
    ]
    return worst._replace(note="; ".join([*said, *([worst.note] if worst.note else [])]))


class Place(NamedTuple):
    """Where a model has a tensor."""

    name: str
    """Without what wrappers put into it."""
    full_name: str
    """As ``named_parameters`` has it."""
    module: nn.Module
    key: str


class Held(NamedTuple):
    """A tensor that a model holds."""

    places: list[Place]
    kind: Kind
    tensor: Tensor
    is_offloaded: bool = False

    @property
    def names(self) -> list[str]:
        """All of them, in the model."""
        return [place.name for place in self.places]

    def in_plan(self, scope: Scope) -> list[str]:
        """Its names in a plan."""
        return scope.planned(self.names, self.tensor)[0]


def held(model: nn.Module) -> list[Held]:
    """The tensors of an :class:`Audit`."""
    parameters: dict[int, Held] = {}
    others: dict[int, Held] = {}
    away = offloaded(model)
    for path, full_path, module in walked(model):
        for found, owner in (
            (parameters, module._parameters),
            (others, module._buffers),
            (others, vars(module)),
        ):
            for key, tensor in owner.items():
                is_plain = owner is vars(module)
                if not isinstance(tensor, Tensor) or (is_plain and not tensor.is_meta):
                    continue
                kind: Kind = "attribute"
                if not is_plain:
                    kind = "parameter" if found is parameters else "non-persistent buffer"
                item = found.setdefault(id(tensor), Held([], kind, tensor, id(tensor) in away))
                item.places.append(Place(joined(path, key), joined(full_path, key), module, key))
                if item.kind == "non-persistent buffer" and is_persistent(module, key):
                    found[id(tensor)] = item._replace(kind="buffer")
    return [*parameters.values(), *others.values()]


LACKING = f"{NOT_RECORDED} ({MADE_LATER})"
"""Said of what has no values, where the constructor's plan is all there is."""


def state_of(item: Held, plan: Plan, scope: Scope = ALL, *, lacking: str = "") -> tuple[State, str]:
    """What is known of a tensor, with a note.

    Args:
        plan: of what can be written.
        scope: what the model's tensors are in the plan.
        lacking: the note of what has neither values nor a place in the plan.
    """
    tensor, is_parameter = item.tensor, item.kind == "parameter"
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        return "lazy", ""
    if item.is_offloaded:
        return "offloaded", ""
    names, part = scope.planned(item.names, tensor)
    entries = plan if is_parameter else plan.buffers
    names = [name for name in names if name in entries]
    if tensor.is_meta:
        if is_changed(tensor) or (shard.is_dtensor(tensor) and writes(tensor)):
            return "unwritten", "written on meta, where nothing is kept"
        if any(_has_values(entries[name]) for name in names):
            return "recorded", ""
        if (memory := memory_of(tensor)) is None:
            return "unwritten", lacking
        if not memory.has_values(tensor):
            return "unwritten", "left unwritten by its constructor"
        # Recorded, and not in the plan of the whole model, of which it is not known: made of a part.
        return ("recorded", "") if lacking else ("unwritten", "")
    if (filled := is_filled(tensor)) is not None:
        return ("filled" if filled else "written"), ""
    if names and not is_parameter:
        as_built = compared(tensor, plan.buffers[names[0]], plan.seed, part)
        if as_built is not None:
            return _OF_BUFFERS[as_built], ""
    return ("written" if is_written(item) else "given"), ""


def _has_values(planned: Any) -> bool:
    """Whether what is computed follows from values, and not from what nobody wrote."""
    planned = planned.computed if isinstance(planned, Pending) else planned
    return not isinstance(planned, Computed) or planned.contents.is_written(planned.view)


_OF_BUFFERS: dict[str, State] = {"made": "made", "pending": "recorded", "other": "changed"}


def is_loaded(item: Held) -> bool:
    """Whether it is on meta, but the values are known that a load put there within the block."""
    memory = memory_of(item.tensor) if item.kind == "parameter" and item.tensor.is_meta else None
    return memory is not None and memory.contents.follows_a_load and not is_changed(item.tensor)


def is_claimed(item: Held) -> bool:
    """Whether its module calls a buffer loaded of which a file has nothing, as BatchNorm's count is.

    So its name is not among the missing, and what is in its memory stays there.
    """
    if item.kind != "buffer" or item.is_offloaded:
        return False
    return all(loads_from_nothing(place.module, place.key) for place in item.places)


def is_replaced(item: Held) -> bool:
    """Whether it has memory, where its constructor left a parameter to be written."""
    _, _, module, key = item.places[0]
    left = built(module)
    return not item.tensor.is_meta and left is not None and key in left.parameters


def is_written(item: Held) -> bool:
    """Whether an operation wrote it since its block ended, or since it took another's place then."""
    _, _, module, key = item.places[0]
    left = built(module)
    before = left.buffers.get(key) if left is not None and item.kind != "parameter" else None
    if before is not None and storage_id(before.tensor) == storage_id(shard.local(item.tensor)):
        return version_of(before.tensor) != before.version
    return (before is not None or is_replaced(item)) and writes(item.tensor) > 0


def audit(model: nn.Module, plan: Plan | None = None) -> Audit:
    """Says of each parameter and buffer whether somebody wrote it, as far as that can be known.

    Memory that others made says nothing: that of a model that was built eagerly, or loaded with
    ``assign=True``, looks like that of ``to_empty``. It is called "given". So look before anything else
    takes the place of what is on meta, and name what is missing to :func:`fill_missing_`.

    Args:
        plan: of what can be written; by default what the constructor of a model that was built within
            :func:`deferred` recorded.

    >>> import torch
    >>> from fastinit import deferred
    >>> with deferred():
    ...     model = nn.Linear(4, 4)
    >>> model.load_state_dict({"weight": torch.ones(4, 4)}, strict=False, assign=True)
    _IncompatibleKeys(missing_keys=['bias'], unexpected_keys=[])
    >>> print(audit(model))
    tensor    count  elements  state
    -----------------------------------
    weight        1        16  given
    bias          1         4  recorded
    """
    known = constructor_plan(model) if plan is None else plan
    known = Plan({}) if known is None else known
    lacking = LACKING if plan is None else ""
    return Audit(tuple(audited(i, *state_of(i, known, lacking=lacking)) for i in held(model)))


def audited(item: Held, state: State, note: str = "") -> Audited:
    """What is said of a tensor."""
    elements = 0 if state == "lazy" else item.tensor.numel()
    name, *tied = item.names
    return Audited(name, item.kind, state, elements, tuple(tied), note)
