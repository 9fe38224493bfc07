"""Reports: what was asked of a model beside what is in it, and how long it took, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastinit import text
from fastinit.parameters import distinct_parameters
from fastinit.plan import Group, Plan, Progress

# Elements that are read at once: small enough that their float32 copy (1 MiB) stays in cache, and
# that float32 sums of one chunk are good to the 4 digits shown; chunks are merged in doubles.
_CHUNK = 1 << 18


class Moments(NamedTuple):
    """Of the elements of one or several tensors: how many, mean, sum of squared deviations."""

    elements: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def std(self) -> float:
        """The standard deviation, divided by the count (the mean is not an estimate: all are read)."""
        return math.sqrt(self.m2 / self.elements) if self.elements else math.nan

    def merged(self, other: Moments) -> Moments:
        """The moments of both together (Chan, Golub & LeVeque 1983, equation 2.1)."""
        elements = self.elements + other.elements
        if not elements:
            return self
        step = other.mean - self.mean
        share = other.elements / elements
        m2 = self.m2 + other.m2 + step * step * self.elements * share
        return Moments(elements, self.mean + step * share, m2)


class Timing(NamedTuple):
    """One line of the time table; ``elements`` and ``bytes`` are 0 where nothing was written."""

    name: str
    seconds: float
    elements: int = 0
    bytes: int = 0


def measure(
    model: nn.Module, plan: Plan, *, progress: Progress | None = None
) -> list[tuple[Group, Moments]]:
    """The moments of every element of ``model``, by group of ``plan``, in small chunks.

    Raises:
        ValueError: the model lacks parameters of the plan.
    """
    groups = plan.groups(model)
    tensors = {n: p.detach() for names, _, p in distinct_parameters(model) for n in names}
    total = sum(group.elements or 0 for group in groups)
    read = 0
    measured = []
    for group in groups:
        moments = Moments()
        for name in group.names:
            double = tensors[name].dtype == torch.float64
            # One place for all chunks of a tensor: fresh memory for each would cost more than the sums.
            scratch = torch.empty(_CHUNK, dtype=torch.float64 if double else torch.float32)
            for chunk in _chunks(tensors[name]):
                count = chunk.numel()
                moments = moments.merged(_moments(chunk, scratch))
                if progress is not None:
                    read += count
                    progress(read, total)
        measured.append((group, moments))
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
        numbers = (str(len(group.names)), text.count(moments.elements))
        rows.append((name, *numbers, str(group.fill), _std(group.fill.std), _std(moments.std)))
    parameters = sum(len(group.names) for group, _ in measured)
    elements = sum(moments.elements for _, moments in measured)
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


def _moments(chunk: Tensor, scratch: Tensor) -> Moments:
    values = scratch[: chunk.numel()].copy_(chunk)
    mean = values.mean()
    values -= mean
    return Moments(chunk.numel(), mean.item(), torch.dot(values, values).item())


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """All elements in 1-D pieces; views of the tensor wherever its memory is dense."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    flat = tensor.permute(order).reshape(-1)
    yield from flat.split(_CHUNK) if flat.numel() else ()
