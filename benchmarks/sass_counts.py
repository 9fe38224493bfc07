"""What counting adds for each value that is measured (csrc/cuda/counts.cuh), of the CUDA kernel.

Read from the machine code as sass_moments.py reads the moments alone: the loop over whole rows of
``measure_and_count``, in which each format is a loop of its own. Counted are the paths through both.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import sass, sass_moments
from benchmarks.gpus import GPU, GPUS
from fastinit.backends import choose as backends

LEDGER = Path(__file__).parent / "results" / "sass_counts.csv"
LOADS = 4
"""Of 16 bytes, of a thread at once: ROWS_AT_ONCE in csrc/cuda/counts.cuh."""
OPTIONS = ("unscaled", "in_blocks", "histogram")


class Counts(NamedTuple):
    """One loop: instructions for each value of the moments there, and what each option adds."""

    compiler: str
    arch: str
    dtype: str
    moments: float
    unscaled: float
    """One format, as e4m3."""
    in_blocks: float
    """One format, as mxfp8."""
    histogram: float
    in_flight: int
    registers: int
    spilled: int
    """Loads and stores of local memory in the loop, and in the one of runs around it."""

    def share(self, gpu: GPU, option: str) -> float:
        """Of the GPU's bandwidth that the moments with one option read, if nothing but issuing binds."""
        values = gpu.bandwidth / sass_moments.DTYPES[self.dtype]
        asked = self.moments + getattr(self, option)
        return min(1.0, gpu.processors * gpu.clock * gpu.issued / (asked * values))


def lines() -> Iterator[Counts]:
    """Of the native module's kernel."""
    for arch in backends.native.module.cuda_archs.split(","):
        options = "-sass", "-res-usage", "-arch", f"sm_{arch}"
        yield from of(backends.native.module.nvcc, arch, sass.dump(*options))


def of(compiler: str, arch: str, text: str) -> Iterator[Counts]:
    """Of what cuobjdump says of the kernels."""
    name = "measure_and_count"
    registers = int(re.search(rf"Function \w*{name}\w*:\s*\n\s*REG:(\d+)", text)[1])
    kernel = next(part for part in text.split("Function : ")[1:] if name in part.split("\n")[0])
    code = sass.instructions_of(kernel)
    place = {instruction.address: i for i, instruction in enumerate(code)}
    loops = [
        sass_moments.Loop(place[i.target], end)
        for end, i in enumerate(code)
        if i.target in place and place[i.target] < end
    ]
    resident = sass_moments.REGISTERS // (-(-registers // 8) * 8) // sass_moments.THREADS
    for loop in loops:
        body = code[loop.start : loop.end + 1]
        formats = [one for one in loops if sass_moments.within(one, loop)]
        if sass_moments.loads(body, "128") != LOADS or not formats:
            continue
        dtype = sass_moments.dtype_of(body)
        around = min(
            (one for one in loops if sass_moments.within(loop, one)), key=lambda o: o.end - o.start
        )
        values = LOADS * 16 // sass_moments.DTYPES[dtype]
        path = sass.shortest(code, place, loop.start, loop.end)
        each = [sass.shortest(code, place, *one) for one in formats]
        through = [_through_shuffles(code, place, *one) for one in formats]
        yield Counts(
            compiler,
            arch,
            dtype,
            round(len(path) / values, 2),
            *(round(sum(map(len, some)) / values, 2) for some in (each, through)),
            round(_skipped(code, place, loop, formats) / values, 2),
            resident * sass_moments.THREADS * 16 * LOADS,
            registers,
            sum(bool(re.match("LDL|STL", i.name)) for i in code[around.start : around.end + 1]),
        )


def _through_shuffles(
    code: list[sass.Instruction], place: dict[int, int], start: int, end: int
) -> list[sass.Instruction]:
    """The path on which lanes look for a block's largest value."""
    there = next(i for i in range(start, end) if code[i].name.startswith("SHFL"))
    first, rest = (sass.shortest(code, place, *way) for way in ((start, there), (there, end)))
    assert (first[0], rest[0]) == (code[start], code[there]), "no path through the shuffles"
    return first + rest[1:]


def _skipped(
    code: list[sass.Instruction],
    place: dict[int, int],
    loop: sass_moments.Loop,
    formats: list[sass_moments.Loop],
) -> int:
    """Instructions that a branch passes over where there is no histogram."""
    total = 0
    for at in range(loop.start, loop.end):
        to = place.get(code[at].target or -1, 0)
        if not at < to <= loop.end:
            continue
        passed = range(at + 1, to)
        inside = any(one.start in passed or one.start <= at <= one.end for one in formats)
        if not inside and any(code[i].name.startswith("ATOMS") for i in passed):
            total += len(passed)
    return total


def recorded() -> list[Counts]:
    """The committed ledger."""
    kinds: list[Any] = [str] * 3 + [float] * 4 + [int] * 3
    return [
        Counts(*(kind(row[field]) for kind, field in zip(kinds, Counts._fields)))
        for row in csv.DictReader(LEDGER.open())
    ]


def rows(some: list[Counts]) -> list[list[str]]:
    """For a table: what was counted, and the share of each GPU's bandwidth with each option."""
    table = [["sm", "dtype", "moments", *OPTIONS, "KiB in flight", *(gpu.name for gpu in GPUS)]]
    for line in some:
        shares = [
            "/".join(f"{line.share(gpu, o):.2f}" for o in OPTIONS) if gpu.code == line.arch else ""
            for gpu in GPUS
        ]
        counted = [f"{n:.2f}" for n in (line.moments, *(getattr(line, o) for o in OPTIONS))]
        table.append([line.arch, line.dtype, *counted, str(line.in_flight >> 10), *shares])
    return table
