"""What the kernels of moments execute for each value, and which share of a GPU's memory that reads.

Read from the machine code, as sass.py reads fills: the loop over whole rows of each dtype
(csrc/cuda/rows.cuh, fastinit/backends/triton/moments.py), and the end of a run around it. The end of a
chunk is in float64; its instructions are counted once for all, by hand. Triton's lines are those of
sass_triton.py.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import sass
from benchmarks.gpus import GPU, GPUS
from fastinit.backends import choose as backends

LEDGER = Path(__file__).parent / "results" / "sass_moments.csv"

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Read in rows, and their bytes; float64 is measured in float64."""
RUN, LANES, CHUNK = 32, 32, 1 << 14
LOADS = 8
"""Of 16 bytes, of a thread at once."""
REGISTERS = 65_536
"""Of a multiprocessor."""

FLOAT64_OF_A_CHUNK = 64
"""Instructions of its warp: 6 make a lane's pairs float64, 10 sum lanes, about 12 ask whether the sums
tell; the 16 chunks of a task become moments and are merged four times, in one warp: 500."""

TWICE = {"FADD2", "FMUL2", "FFMA2"}
FLOATS = {*TWICE, "FADD", "FMUL", "FFMA", "IMAD", "HADD2", "HFMA2", "HMUL2", "CS2R"}
INTEGERS = {
    *(
        "FMNMX",
        "FMNMX3",
        "HMNMX2",
        "VHMNMX",
        "FSETP",
        "HSET2",
        "HSETP2",
        "FSEL",
        "SEL",
        "LOP3",
        "SHF",
    ),
    *(
        "PRMT",
        "IADD3",
        "VIADD",
        "ISETP",
        "LEA",
        "MOV",
        "IADD",
        "VIADDMNMX",
        "IMNMX",
        "FSET",
        "PLOP3",
    ),
}
DOUBLES = {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "F2F"}


class Moments(NamedTuple):
    """One loop: instructions per value there, and with the end of a run; bytes in flight."""

    compiler: str
    """nvcc's version, or "triton" and its version."""
    arch: str
    dtype: str
    instructions: float
    with_runs: float
    floats: float
    integers: float
    doubles: float
    narrow: int
    """Loads of less than 16 bytes."""
    in_flight: int
    """Bytes that the loads of an iteration ask for, of a multiprocessor at the occupancy that registers
    allow. The compiler may put some of them behind the first use: Triton's on sm_80 and sm_90 most."""
    registers: int

    @property
    def family(self) -> str:
        return "triton" if self.compiler.startswith("triton") else "nvcc"

    def share(self, gpu: GPU) -> float:
        """Of the GPU's bandwidth, as far as units are asked for no more than they have."""
        values = gpu.bandwidth / DTYPES[self.dtype]
        clocks = gpu.processors * gpu.clock
        float64 = FLOAT64_OF_A_CHUNK * LANES / CHUNK + self.doubles
        asked = (
            (self.with_runs, gpu.issued),
            (self.floats, gpu.floats),
            (self.integers, gpu.integers),
            (float64, gpu.doubles),
        )
        return min(1.0, *(clocks * lanes / (of_a_value * values) for of_a_value, lanes in asked))


class Loop(NamedTuple):
    start: int
    end: int


def lines() -> Iterator[Moments]:
    """Of the native module's kernel."""
    for arch in backends.native.module.cuda_archs.split(","):
        options = "-sass", "-res-usage", "-arch", f"sm_{arch}"
        yield from of(backends.native.module.nvcc, arch, sass.dump(*options), THREADS)


def of(
    compiler: str, arch: str, text: str, threads: int, dtype: str | None = None
) -> Iterator[Moments]:
    """Of what cuobjdump says of a kernel ``measure``.

    Args:
        threads: of a block.
        dtype: what it is for, if that is one.
    """
    name = r"(?:_Z\d+)?measure(?!_)"  # as C++ or Triton has it
    registers = int(re.search(rf"Function {name}\w*:\s*\n\s*REG:(\d+)", text)[1])
    kernel = next(part for part in text.split("Function : ")[1:] if re.match(name, part))
    code = sass.instructions_of(kernel)
    resident = REGISTERS // (-(-registers // 8) * 8) // threads
    place = {instruction.address: i for i, instruction in enumerate(code)}
    loops = [
        Loop(place[i.target], end)
        for end, i in enumerate(code)
        if i.target in place and place[i.target] < end
    ]
    found: dict[str, Moments] = {}
    for loop in loops:
        body = code[loop.start : loop.end + 1]
        if loads(body, "128") != LOADS or any(within(other, loop) for other in loops):
            continue
        read = dtype or dtype_of(body)
        around = min(
            (other for other in loops if within(loop, other)), key=lambda o: o.end - o.start
        )
        inside = [other for other in loops if within(other, around)]
        end_of_run = [
            instruction
            for at, instruction in enumerate(code[around.start : around.end + 1], around.start)
            if not any(o.start <= at <= o.end for o in inside)
        ]
        per_value = partial(_per_value, body, end_of_run, DTYPES[read])
        line = Moments(
            compiler,
            arch,
            read,
            round(len(body) / (LOADS * 16 // DTYPES[read]), 2),
            per_value(None),
            per_value(FLOATS),
            per_value(INTEGERS),
            per_value(DOUBLES),
            loads(body, "") - LOADS,
            min(resident, BLOCKS) * threads * 16 * LOADS,
            registers,
        )
        # Another loop is for the rows of a chunk that has no more.
        found[read] = min(line, found.get(read, line), key=lambda line: line.instructions)
    yield from found.values()


def _per_value(
    body: list[sass.Instruction],
    end_of_run: list[sass.Instruction],
    size: int,
    units: set[str] | None,
) -> float:
    each, run = _count(body, units) / (LOADS * 16 // size), _count(end_of_run, units)
    return round(each + run / (RUN * 16 // size), 2)


THREADS = 256
"""Of a block: MEASURING in csrc/cuda/moments.cuh."""
BLOCKS = 24
"""Of a multiprocessor, at most: 32 on A100, H100, H200, B200 and B300."""


def within(inner: Loop, outer: Loop) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end and inner != outer


def loads(code: list[sass.Instruction], width: str) -> int:
    return sum(bool(re.match(rf"(LDG|LD)\..*{width}", i.name)) for i in code)


def _count(code: list[sass.Instruction], units: set[str] | None) -> int:
    names = Counter(i.name.split(".")[0] for i in code)
    if units is None:
        return sum(names.values())
    return sum((1 + (name in TWICE)) * n for name, n in names.items() if name in units)


def dtype_of(code: list[sass.Instruction]) -> str:
    names = " ".join(i.name for i in code)
    if "FMNMX" in names:
        return "float32"
    return "bfloat16" if "BF16" in names else "float16"


def recorded() -> list[Moments]:
    """The committed ledger."""
    return from_csv(LEDGER.read_text())


def from_csv(text: str) -> list[Moments]:
    kinds: list[Any] = [str] * 3 + [float] * 5 + [int] * 3
    return [
        Moments(*(kind(row[field]) for kind, field in zip(kinds, Moments._fields)))
        for row in csv.DictReader(text.splitlines())
    ]


def rows(some: list[Moments]) -> list[list[str]]:
    """For a table: what was counted, and the share of each GPU's bandwidth that runs that code."""
    names = [gpu.name for gpu in GPUS]
    table = [
        [
            "compiler",
            "sm",
            "dtype",
            "instr/value",
            "with runs",
            "KiB in flight",
            "registers",
            *names,
        ]
    ]
    for line in some:
        shares = [f"{line.share(gpu):.2f}" if gpu.code == line.arch else "" for gpu in GPUS]
        counted = [f"{line.instructions:.2f}", f"{line.with_runs:.2f}", str(line.in_flight >> 10)]
        table.append([line.compiler, line.arch, line.dtype, *counted, str(line.registers), *shares])
    return table
