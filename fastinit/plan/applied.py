"""Applied: a plan's parameters and buffers, given memory and written in a model, all or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import nn

from fastinit.plan.buffers import Known, Mode, check_buffers
from fastinit.plan.fill import Fill
from fastinit.plan.filled import note_filled
from fastinit.plan.fit import Fitted, Scope
from fastinit.plan.parameters import adopt_, memory_for
from fastinit.plan.replay import Computed
from fastinit.plan.write import Entry, Progress, check_entries, write_entries

M = TypeVar("M", bound=nn.Module)


class Planned(Protocol):
    """A plan, as far as it is written."""

    @property
    def seed(self) -> int:
        """Of the numbers, in [0, 2^64)."""

    @property
    def buffers(self) -> Known:
        """What a constructor put there, by name."""

    def __getitem__(self, name: str) -> Fill | Computed:
        """What a parameter shall be."""


def write_planned_(
    plan: Planned,
    model: M,
    planned: Sequence[Fitted],
    scope: Scope,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    progress: Progress | None,
    buffers: Mode,
) -> M:
    """Writes given parameters of a model, or parts of them, and puts back buffers, as ``Plan.apply_``.

    Args:
        planned: the parameters.
        scope: of the buffers that are looked at.
        buffers: what is done about those that are not as the constructor made them.
    """
    real = memory_for([(name, p) for name, p, _ in planned], device, dtype)
    entries = [Entry(n, real.get(id(p), p), plan[n], part) for n, p, part in planned]
    check_entries(entries)
    restoring = check_buffers(model, plan.buffers, plan.seed, device, buffers, scope)
    write_entries(entries, plan.seed, progress)
    adopt_(model, real)
    restoring.run()
    note_filled(parameter for _, parameter, _ in planned)
    return model
