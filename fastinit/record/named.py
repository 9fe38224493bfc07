"""Named: what the caller of fill_missing_ says was not loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastinit.base.patterns import Choice, matches
from fastinit.base.text import listing
from fastinit.elements.part import Run
from fastinit.plan.fit import Scope
from fastinit.plan.rows import Rows, runs_of
from fastinit.record.audit import Held

Missing = str | Iterable[str] | Mapping[str, Rows | None]

_EXTRA_STATE = "_extra_state"
"""The last part of names in a state dict that are of no tensor."""


class Named:
    """What the caller says was not loaded."""

    def __init__(self, missing: Missing) -> None:
        rows: dict[str, Any] = {}
        if isinstance(missing, Mapping):
            rows = dict(missing)
        elif isinstance(missing, str):
            rows = {missing: None}
        elif isinstance(missing, Iterable):
            for name in missing:
                if not isinstance(name, str):
                    raise TypeError(f"missing must be names of tensors, but got {name!r}")
                rows[name] = None
        else:
            raise TypeError(f"missing must be names of tensors, but got {missing!r}")
        if wrong := [name for name in rows if not isinstance(name, str)]:
            raise TypeError(f"missing must be names of tensors, but got {wrong[0]!r}")
        self.all = Choice(tuple(name for name, its in rows.items() if its is None))
        self.some = {name: its for name, its in rows.items() if its is not None}

    def has(self, item: Held) -> bool:
        """Whether a tensor was not loaded, by any of its names."""
        return all(p.name in self.all or p.full_name in self.all for p in item.places)

    def rows(self, item: Held, scope: Scope) -> list[Run] | None:
        """The rows that were not; None if it is not named with rows."""
        patterns = [
            pattern for pattern in self.some if any(matches(n, pattern) for n in item.names)
        ]
        if not patterns:
            return None
        part = scope.planned(item.names, item.tensor)[1]
        shape = tuple(item.tensor.shape) if part is None else part.shape
        if item.kind != "parameter" or not shape:
            raise ValueError(f"missing: {item.names[0]} has no rows")
        runs = [runs_of(self.some[p], shape[0], f"missing[{p!r}]") for p in patterns]
        every = [row for some in runs for start, n in some for row in range(start, start + n)]
        return runs_of(every, shape[0], "missing")

    def problems(self, items: Sequence[Held]) -> list[str]:
        """What it names that the model lacks."""
        places = [place for item in items for place in item.places]
        names = [name for place in places for name in (place.name, place.full_name)]
        idle = self.all.idle(names) + Choice(tuple(self.some)).idle(names)
        idle = [name for name in idle if name.rpartition(".")[2] != _EXTRA_STATE]
        return [f"the model has no {listing('tensor', idle)}"] if idle else []
