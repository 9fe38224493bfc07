"""Reports: what was asked of a model beside what is in it, and how long it took, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from fastinit import text
from fastinit.moments import Moments, moments_many
from fastinit.parameters import distinct_parameters
from fastinit.plan import Group, Plan
from fastinit.writing import Progress


class Timing(NamedTuple):
    """One line of the time table; ``elements`` and ``bytes`` are 0 where nothing was written."""

    name: str
    seconds: float
    elements: int = 0
    bytes: int = 0


def measure(
    model: nn.Module, plan: Plan, *, progress: Progress | None = None
) -> list[tuple[Group, Moments]]:
    """The moments of every element of ``model``, by group of ``plan``.

    Raises:
        ValueError: the model lacks parameters of the plan.
    """
    groups = plan.groups(model)
    tensors = {n: p.detach() for names, _, p in distinct_parameters(model) for n in names}
    total = sum(group.elements or 0 for group in groups)
    read = 0
    measured = []
    for group in groups:
        first, *others = moments_many([tensors[name] for name in group.names], correction=0)
        measured.append((group, first.merge(*others)))
        if progress is not None:
            read += group.elements or 0
            progress(read, total)
    return measured


def init_table(measured: Sequence[tuple[Group, Moments]]) -> str:
    """The std asked for beside the std measured, by group, in 80 columns.

    Layers are a heading above their parameters, so that the names fit.
    """
    rows = [("parameter", "count", "elements", "distribution", "std asked", "measured")]
    heading = ""
    for group, moments in measured:
        layers, star, rest = group.pattern.rpartition("*.")
        if star and heading != layers:
            rows.append((layers + "*", "", "", "", "", ""))
        heading = layers if star else ""
        name = "  " + rest if star else group.pattern
        numbers = (str(len(group.names)), text.count(group.elements or 0))
        rows.append(
            (name, *numbers, str(group.fill), _std(group.fill.std), _std(float(moments.std)))
        )
    parameters = sum(len(group.names) for group, _ in measured)
    elements = sum(group.elements or 0 for group, _ in measured)
    rows.append(("total", str(parameters), text.count(elements), "", "", ""))
    return text.table(rows, "<>><>>", total=True)


def time_table(timings: Sequence[Timing]) -> str:
    """Seconds, and where elements were written GB/s (10^9 bytes) and nanoseconds per element."""
    rows = [("time", "seconds", "GB/s", "ns/element")]
    for name, seconds, elements, size in timings:
        rate = f"{size / seconds / 1e9:.2f}" if elements else ""
        each = f"{seconds / elements * 1e9:.3f}" if elements else ""
        rows.append((name, f"{seconds:.3f}", rate, each))
    return text.table(rows, "<>>>")


def info(values: dict[str, object]) -> str:
    """What ``fastinit.info()`` says, as lines."""
    return text.pairs(values)


def _std(value: float) -> str:
    return f"{value:#.4g}" if value else "0"
