"""Reports: what was asked of a model beside what is in it, and how long it took, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from fastinit.base import number, text
from fastinit.plan import groups
from fastinit.plan.groups import Group
from fastinit.plan.parameters import distinct_parameters
from fastinit.plan.plan import Plan
from fastinit.plan.write import Progress
from fastinit.statistics.tensor import Moments, moments_many

if TYPE_CHECKING:
    from fastinit.checkpoint.planning import Layout
    from fastinit.checkpoint.safetensors import Shard
    from fastinit.checkpoint.writing import Rates, Written


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
    made = plan.groups(model)
    tensors = {n: p.detach() for names, _, p in distinct_parameters(model) for n in names}
    total = sum(group.elements or 0 for group in made)
    read = 0
    measured = []
    for group in made:
        first, *others = moments_many([tensors[name] for name in group.names], correction=0)
        measured.append((group, first.merge(*others)))
        if progress is not None:
            read += group.elements or 0
            progress(read, total)
    return measured


def init_table(measured: Sequence[tuple[Group, Moments]]) -> str:
    """The std asked for beside the std measured, by group, in 80 columns."""
    made = [group for group, _ in measured]
    cells = [["count", "elements", "distribution", "std asked", "measured"]]
    for group, moments in measured:
        numbers = (str(len(group.names)), text.count(group.elements or 0))
        stds = (_std(group.fill.std), _std(moments.std))
        cells.append([*numbers, text.shorten(str(group.fill), 20), *stds])
    parameters = sum(len(group.names) for group in made)
    elements = sum(group.elements or 0 for group in made)
    cells.append([str(parameters), text.count(elements), "", "", ""])
    return groups.table([group.pattern for group in made], cells, "<>><>>", total=True)


def init_data(measured: Sequence[tuple[Group, Moments]]) -> list[dict[str, Any]]:
    """The same for programs: a group's names, its law, and the moments of all its elements."""
    return [
        {
            "pattern": group.pattern,
            "names": group.names,
            "elements": group.elements,
            "fill": str(group.fill),
            "std": group.fill.std,
            "measured": {"mean": float(of.mean), "std": float(of.std)},
        }
        for group, of in measured
    ]


def time_table(timings: Sequence[Timing]) -> str:
    """Seconds, and where elements were written GB/s (10^9 bytes) and nanoseconds per element."""
    rows = [("time", "seconds", "GB/s", "ns/element")]
    for name, seconds, elements, size in timings:
        rate = f"{size / seconds / 1e9:.2f}" if elements else ""
        each = f"{seconds / elements * 1e9:.3f}" if elements else ""
        rows.append((name, f"{seconds:.3f}", rate, each))
    return text.table(rows, "<>>>")


def comparison(ratios: Mapping[str, float]) -> str:
    """How many times as fast as torch.nn.init fastinit is, by where that was: "fresh memory"..."""
    (where, ratio), *others = ratios.items()
    said = f"fastinit is {ratio:.1f} times as fast as torch.nn.init in {where}"
    return said + "".join(f", {ratio:.1f} in {where.split()[0]}" for where, ratio in others)


def info(values: dict[str, object]) -> str:
    """What ``fastinit.info()`` says, as lines."""
    return text.pairs(values)


def shard_table(shards: Sequence[Shard]) -> str:
    """The files of a checkpoint with the number of their tensors and elements, and their bytes."""
    rows = [("file", "tensors", "elements", "bytes")]
    for shard in shards:
        elements = sum(tensor.values for tensor in shard.tensors)
        rows.append((shard.file, str(len(shard.tensors)), text.count(elements), f"{shard.size:,}"))
    totals = [
        sum(len(shard.tensors) for shard in shards),
        sum(tensor.values for shard in shards for tensor in shard.tensors),
        sum(shard.size for shard in shards),
    ]
    rows.append(("total", str(totals[0]), text.count(totals[1]), f"{totals[2]:,}"))
    return text.table(rows, "<>>>", total=True)


def size(planned: Layout) -> str:
    """How large a checkpoint is."""
    return f"{planned.elements:,} elements, {planned.size / 1e9:.2f} GB"


def layout_data(planned: Layout) -> dict[str, Any]:
    """A checkpoint's files, for programs."""
    files = [
        {"file": shard.file, "tensors": len(shard.tensors), "bytes": shard.size}
        for shard in planned.shards
    ]
    whole = {"elements": planned.elements, "bytes": planned.size}
    return {"seed": planned.seed, **whole, "files": files}


def dry_run(about: str, planned: Layout, seconds: float, measured: Rates, free: int) -> str:
    """What would be written, and for how long.

    Args:
        about: the model.
        seconds: that planning took.
        free: bytes on the disk.
    """
    return "\n".join(
        [
            f"{about}\n{size(planned)}\n",
            shard_table(planned.shards),
            f"\nplanned in {seconds:.1f} s; nothing was written",
            rates(measured, planned.size),
            f"{free / 1e9:.2f} GB are free{', too few' * (free < planned.size)}",
        ]
    )


def written_dcp(directory: Path, seconds: float) -> str:
    """What is there of a checkpoint of DCP."""
    sizes = [path.stat().st_size for path in directory.glob("*.distcp")]
    files, total = text.counted("file", len(sizes)), sum(sizes)
    took = f"{_duration(seconds)}: {total / seconds / 1e9:.2f} GB/s"
    return f"{directory}: {files} and .metadata, {total:,} bytes written in {took}"


def rates(measured: Rates, size: int) -> str:
    """How long a number of bytes will take, by rates that were measured on a sample."""
    size = number.integer("size", size, least=0)
    making, disk = size / measured.made, size / measured.disk
    return (
        f"making the values: {_duration(making)} at {measured.made / 1e9:.2f} GB/s\n"
        f"writing to disk:   {_duration(disk)} at {measured.disk / 1e9:.2f} GB/s\n"
        f"both at once:      about {_duration(measured.seconds(size))} (measured on a sample)"
    )


def written(done: Written, directory: str) -> str:
    """What a checkpoint's writing did, in a few lines."""
    shards = len(done.layout.shards)
    lines = [f"{directory}: {shards} shard{'s' * (shards > 1)}, {done.layout.size:,} bytes"]
    if done.kept:
        were = "was" if done.kept == 1 else "were"
        how = ", every byte verified" if done.verified else ""
        lines.append(f"{done.kept} of them {were} whole before and kept{how}")
    if done.bytes:
        rate = done.bytes / done.seconds / 1e9
        lines.append(
            f"{done.bytes / 1e9:.2f} GB written in {_duration(done.seconds)}: {rate:.2f} GB/s; "
            f"{done.disk_share:.0%} of it writing to disk"
        )
    return "\n".join(lines)


def _std(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:#.4g}" if value else "0"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
