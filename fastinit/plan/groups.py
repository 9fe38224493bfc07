"""Groups: a plan's parameters that are called and filled alike, one line of a table each.

A group's pattern stands for its members and no others: ``*`` where it has all indices that there are,
else which: ``layers.0-5.weight``, ``0.bias``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import NamedTuple

from fastinit.base import html, text
from fastinit.plan.fill import Fill
from fastinit.plan.replay import Computed

_INDEX = re.compile(r"(?<![^.])(?:0|[1-9][0-9]*)(?![^.])")
_HEADED = re.compile(r"(.*(?<![^.])[\d*][\d*,…-]*)\.(?=[^\d*])(.+)")


class Group(NamedTuple):
    """Parameters of one pattern with the same Fill: a line of a table."""

    pattern: str
    fill: Fill | Computed
    names: tuple[str, ...]
    elements: int | None

    def __repr__(self) -> str:
        return f"Group({self.pattern!r}, {len(self.names)} parameters, {self.fill})"


def pattern(name: str) -> str:
    """A parameter's name with its layer indices collapsed.

    >>> pattern("model.layers.11.mlp.up_proj.weight")
    'model.layers.*.mlp.up_proj.weight'
    """
    return _INDEX.sub("*", name)


def groups(fills: Mapping[str, Fill | Computed], sizes: Mapping[str, int]) -> list[Group]:
    """The groups of a plan, in the order in which each first appears.

    Args:
        fills: by name.
        sizes: the parameters' elements, by name; empty if they are not known.
    """
    # Where numbers are taken from does not make another line.
    keys: dict[str, Hashable] = {
        name: _unnamed(fill) if isinstance(fill, Fill) else str(fill)
        for name, fill in fills.items()
    }
    return [
        Group(label, fills[names[0]], names, sum(sizes[n] for n in names) if sizes else None)
        for label, names in alike(keys)
    ]


def alike(keys: Mapping[str, Hashable]) -> list[tuple[str, tuple[str, ...]]]:
    """(pattern, names) of all names of one pattern with equal keys, as they first appear."""
    found: dict[tuple[str, Hashable], dict[_Indices, str]] = {}
    there: dict[str, list[set[int]]] = {}
    for name, key in keys.items():
        shape, at = pattern(name), _indices(name)
        found.setdefault((shape, key), {})[at] = name
        for indices, index in zip(there.setdefault(shape, [set() for _ in at]), at):
            indices.add(index)
    made = []
    for (shape, _), members in found.items():
        for box in _boxes(list(members)):
            names = tuple(members[at] for at in product(*box))
            said = map(_said, box, there[shape])
            label = re.sub(r"(?<![^.])\*(?![^.])", lambda _: next(said), shape)  # noqa: B023
            made.append((label, names))
    return made


def _unnamed(fill: Fill) -> Fill:
    parts = [part._replace(fill=replace(part.fill, stream=None)) for part in fill.parts]
    return replace(fill, stream=None, parts=tuple(parts))


def headed(labels: Sequence[str], room: int) -> Iterator[tuple[str | None, str]]:
    """(heading to be put above, or None; first cell) of each label.

    Layers are a heading above their parameters where some would not fit.
    """
    split = [match.groups() if (match := _HEADED.fullmatch(label)) else None for label in labels]
    long = {parts[0] for label, parts in zip(labels, split) if parts and len(label) > room}
    current = None
    for label, parts in zip(labels, split):
        if parts is None or parts[0] not in long:
            current = None
            yield None, label
            continue
        yield (parts[0] if parts[0] != current else None), "  " + parts[1]
        current = parts[0]


def table(
    labels: Sequence[str],
    cells: Sequence[Sequence[str]],
    align: str,
    *,
    total: bool = False,
    what: str = "parameter",
) -> html.Table:
    """A table of groups.

    Args:
        labels: the groups' patterns.
        cells: the header, then what stands beside each pattern, then the total if there is one.
        align: of all columns, as of :func:`fastinit.base.text.table`.
        total: whether the last of ``cells`` is that.
        what: they are, above the patterns.
    """
    header, *rest = cells
    rows = [(what, *header)]
    blank = [""] * len(header)
    room = text.room(cells)
    for (heading, name), row in zip(headed(labels, room), rest):
        if heading is not None:
            rows.append((heading, *blank))
        rows.append((name, *row))
    if total:
        rows.append(("total", *rest[-1]))
    return text.table(rows, align, total=total)


def plan_table(made: Sequence[Group], *, with_elements: bool) -> html.Table:
    """A plan's groups, with what each is filled with."""
    labels = [group.pattern for group in made]
    cells = [["count", "elements", "distribution", "std"]]
    for group in made:
        elements = "" if group.elements is None else text.count(group.elements)
        std = "" if math.isnan(group.fill.std) else f"{group.fill.std:.4g}"
        cells.append([str(len(group.names)), elements, str(group.fill), std])
    if not with_elements:
        return table(labels, [[row[0], *row[2:]] for row in cells], "<><>")
    parameters, size = sum(len(g.names) for g in made), sum(g.elements or 0 for g in made)
    cells.append([str(parameters), text.count(size), "", ""])
    return table(labels, cells, "<>><>", total=True)


_Indices = tuple[int, ...]


def _indices(name: str) -> _Indices:
    return tuple(int(index) for index in _INDEX.findall(name))


def _boxes(points: Sequence[_Indices]) -> list[tuple[_Indices, ...]]:
    """Points as products of sets, each by its indices in every position."""
    if not points[0]:
        return [()]
    behind: dict[int, list[_Indices]] = {}
    for first, *others in points:
        behind.setdefault(first, []).append(tuple(others))
    alike: dict[tuple[tuple[_Indices, ...], ...], list[int]] = {}
    for first, rest in behind.items():
        alike.setdefault(tuple(_boxes(rest)), []).append(first)
    return [(tuple(firsts), *box) for boxes, firsts in alike.items() for box in boxes]


def _said(indices: _Indices, there: set[int]) -> str:
    """Some of the indices that there are.

    >>> _said((0, 1, 2, 5), set(range(9))), _said((1, 3, 5, 7), set(range(9))), _said((0, 1), {0, 1})
    ('0-2,5', '1,3,…,7', '*')
    """
    if len(indices) == 1:
        return str(indices[0])
    if there == set(indices):
        return "*"
    ordered = sorted(indices)
    steps = {b - a for a, b in pairwise(ordered)}
    if len(steps) == 1 and steps != {1} and len(ordered) > 3:
        return f"{ordered[0]},{ordered[1]},…,{ordered[-1]}"
    runs: list[list[int]] = []
    for index in ordered:
        if runs and runs[-1][-1] == index - 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    return ",".join("-".join(map(str, run)) for run in runs)
