"""Applied: a plan's parameters and buffers, given memory and written in a model, all or none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from fastinit.base.memory import no_collection
from fastinit.elements import shards as shard
from fastinit.fills.agreement import agreeing, text_of
from fastinit.plan.buffers import Known, Mode, Restoring, check_buffers
from fastinit.plan.fill import Fill
from fastinit.plan.filled import note_filled
from fastinit.plan.fit import Fitted, Scope, fitted
from fastinit.plan.names import Model, Walk
from fastinit.plan.parameters import adopt_, check_here, memory_for, meshes_of
from fastinit.plan.replay import Computed
from fastinit.plan.storage import Format, Formats, stored_as
from fastinit.plan.write import Checked, Entry, Progress, checked

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

M = TypeVar("M", bound=nn.Module)


class Planned(Collection[str], Protocol):
    """A plan, as far as it is written: the names of parameters, and what is said of each."""

    @property
    def seed(self) -> int:
        """Of the numbers, in [0, 2^64)."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of tied parameters, each to the name under which it is planned."""

    @property
    def buffers(self) -> Known:
        """What a constructor put there, by name."""

    def __getitem__(self, name: str) -> Fill | Computed:
        """What a parameter shall be."""


class Prepared(NamedTuple):
    """All that is to be written, checked."""

    planned: Sequence[Fitted]
    checked: Checked
    memory: dict[int, nn.Parameter]
    """What is new, by the id of what is on meta."""
    restoring: Restoring

    @property
    def stored(self) -> Iterator[Fitted]:
        """Each as it is to be, in the memory that it gets."""
        return (
            its._replace(parameter=self.memory.get(id(its.parameter), its.parameter))
            for its in self.planned
        )


@no_collection()  # of a whole call: what it made is gone when the collector looks again
def write_plan_(
    plan: Planned,
    model: M,
    given: Callable[[], Scope],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    buffers: Mode,
    progress: Progress | None,
    storage: Formats | None,
) -> M:
    """Writes what a plan says of a model's parameters and buffers, as ``Plan.apply_`` says.

    Args:
        given: gives the scope; called where an error of this rank is one of all.
    """
    walk = Walk.of(model)
    meshes = meshes_of(walk)
    with agreeing(meshes, plan.seed) as said:
        scope = given()
        scope.check(walk, (*plan, *plan.aliases, *plan.buffers))
        planned = fitted(walk, plan, plan.aliases, scope=scope)
        scope.check_met(walk, plan.aliases)
        check_here(model, ((name, parameter) for name, parameter, _ in planned))
        ready = prepared(plan, walk, planned, scope, device, dtype, buffers, progress, storage)
        if meshes:
            said.update(texts(plan, ready.stored))
    return write_prepared_(model, ready)


def texts(plan: Planned, planned: Iterable[Fitted]) -> dict[DeviceMesh, str]:
    """What is written to DTensors on each mesh, in words that are the same on all of its ranks."""
    found: dict[DeviceMesh, list[tuple[str, Fill | Computed]]] = {}
    for name, parameter, _ in planned:
        if type(parameter) not in shard.PLAIN and shard.is_dtensor(parameter):
            found.setdefault(parameter.device_mesh, []).append(
                (f"{name} {parameter.dtype}", plan[name])
            )
    return {mesh: text_of(some) for mesh, some in found.items()}


def prepared(
    plan: Planned,
    model: Model,
    planned: Sequence[Fitted],
    scope: Scope,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    buffers: Mode,
    progress: Progress | None,
    storage: Formats | None = None,
) -> Prepared:
    """Given parameters of a model, or parts of them, and buffers, as ``Plan.apply_`` checks them.

    Args:
        planned: the parameters.
        scope: of the buffers that are looked at.
        buffers: what is done about those that are not as the constructor made them.
        progress: called while they are written.
        storage: dtypes and formats of some.
    """
    formats: Mapping[int, Format] = {}
    if storage is not None:
        meant = {id(parameter) for _, parameter, _ in planned}
        places = [(place.names, place.tensor) for place in scope.places(model)]
        elsewhere = list(plan) if scope.parts is not None else []
        formats = stored_as(storage, model, (p for p in places if id(p[1]) in meant), elsewhere)
    real = memory_for([(name, p) for name, p, _ in planned], device, dtype, formats)
    entries = (Entry(n, real.get(id(p), p), plan[n], part) for n, p, part in planned)
    ready = checked(entries, plan.seed, progress)
    restoring = check_buffers(model, plan.buffers, plan.seed, device, buffers, scope)
    return Prepared(planned, ready, real, restoring)


def write_prepared_(model: M, ready: Prepared) -> M:
    """Writes them, puts back buffers, and returns the model."""
    ready.checked.write()
    adopt_(model, ready.memory)
    ready.restoring.run()
    note_filled(parameter for _, parameter, _ in ready.planned)
    return model
