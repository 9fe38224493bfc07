"""``python -m benchmarks.sass``: the instructions that the GPU kernels execute for each value.

Read from the machine code in the native module, so it needs no GPU: cuobjdump (which triton's wheel
brings) disassembles it for each architecture, and the loop over whole tiles is found for each law
and dtype. Counted is the path through it that takes no square root's slow way and no value in the
tail of a truncated normal; of the four formats of float8, which have one loop, that of the fewest
instructions.

Fills are bound by issuing instructions or by writing memory. What the count implies for an H200 is
shown beside what it can write; both are estimates, not measurements. So is what moments
(sass_moments.py) are said to read of each GPU's bandwidth (gpus.py).
"""

from __future__ import annotations

import argparse
import csv
import heapq
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastinit.backends import choose as backends
from fastinit.base.text import table

if TYPE_CHECKING:
    from benchmarks.sass_counts import Counts
    from benchmarks.sass_moments import Moments

LEDGER = Path(__file__).parent / "results" / "sass.csv"

H200_ISSUES = 132 * 4 * 32 * 1.98e9
"""Thread instructions per second: SMs, schedulers of each, lanes, clock."""
H200_WRITES = 4.3e12
"""Bytes per second."""

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "float8": 1}
VALUES = 4 * backends.native.module.SLOTS if backends.native.module else 0
"""Of one thread in a tile."""
CONDITIONAL = ("BRA.DIV", "BRA.U")
"""Branches without a predicate before them: where lanes have come apart, or if a uniform one says so."""
UNLIKELY = 1000  # what a call, as the square root's slow way is, counts for when paths are compared


class Line(NamedTuple):
    """One loop: instructions per value, and registers of the kernel."""

    nvcc: str
    arch: str
    law: str
    dtype: str
    instructions: float
    registers: int


class Instruction(NamedTuple):
    address: int
    text: str

    @property
    def name(self) -> str:
        return self.text.split(" ", 2)[1 if self.text.startswith("@") else 0]

    @property
    def target(self) -> int | None:
        """Where a branch leads."""
        match = re.search(r"\bBRA\b.*?\b(0x[0-9a-f]+)", self.text)
        return int(match[1], 16) if match else None


def cuobjdump() -> str | None:
    """The disassembler: triton's, or the CUDA toolkit's."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else shutil.which("cuobjdump")


def missing() -> str | None:
    """Why there is nothing to read here, or None."""
    if backends.native.module is None or not backends.native.module.cuda_archs:
        return "the native module has no CUDA kernels"
    return None if cuobjdump() else "cuobjdump is not there (pip install triton)"


def ledger() -> Iterator[Line]:
    """One line for each architecture, law and dtype of the native module."""
    for arch in backends.native.module.cuda_archs.split(","):
        usage = dump("-res-usage", "-arch", f"sm_{arch}")
        registers = int(re.search(r"Function \w*fill_many.*\n\s*REG:(\d+)", usage)[1])
        code = dump("-sass", "-arch", f"sm_{arch}").split("Function : ")
        kernel = next(part for part in code if "fill_many" in part.split("\n", 1)[0])
        nvcc = backends.native.module.nvcc
        for path in _loops(instructions_of(kernel)):
            per_value = round(len(path) / VALUES, 2)
            yield Line(nvcc, arch, _law(path), _dtype(path), per_value, registers)


def instructions_of(kernel: str) -> list[Instruction]:
    """Of a kernel as cuobjdump writes it."""
    return [
        Instruction(int(address, 16), text.strip())
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", kernel)
    ]


def memory(arch: str) -> dict[str, int]:
    """Bytes of stack and local memory of each kernel: what is spilled."""
    usage = dump("-res-usage", "-arch", f"sm_{arch}")
    found = re.findall(r"Function _Z\d+([a-z_]+).*\n.*STACK:(\d+).*LOCAL:(\d+)", usage)
    return {name: int(stack) + int(local) for name, stack, local in found}


def dump(*options: str) -> str:
    """What cuobjdump says of the native module."""
    program = cuobjdump()
    assert program
    command = [program, *options, backends.native.module.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _loops(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """The likely path through each loop that draws and stores whole tiles."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    for end, instruction in enumerate(code):
        target = instruction.target
        if target is None or not VALUES < end - place[target] < 6000:
            continue
        path = shortest(code, place, place[target], end)
        stored = sum(".E.128" in i.text for i in path)
        draws = sum(i.name.startswith("IMAD.WIDE") for i in path) > VALUES  # constants do not
        if draws and stored * 16 in {VALUES * size for size in BYTES.values()}:
            yield path


def shortest(
    code: list[Instruction], place: dict[int, int], start: int, end: int
) -> list[Instruction]:
    """From the first to the last instruction of a loop (Dijkstra)."""
    distance, before = {start: 0}, {}
    queue = [(0, start)]
    while queue:
        length, at = heapq.heappop(queue)
        if at == end:
            break
        target = code[at].target
        falls_through = code[at].text.startswith("@") or code[at].name in CONDITIONAL
        following = [place[target]] if target is not None else []
        if target is None or falls_through:
            following.append(at + 1)
        for i in following:
            longer = length + (UNLIKELY if code[i].name.startswith("CALL") else 1)
            if start <= i <= end and longer < distance.get(i, sys.maxsize):
                distance[i], before[i] = longer, at
                heapq.heappush(queue, (longer, i))
    path = [end]
    while path[-1] in before:
        path.append(before[path[-1]])
    return [code[i] for i in reversed(path)]


def _law(path: list[Instruction]) -> str:
    """By what only that law does."""
    if any(i.name == "MUFU.RSQ" for i in path):
        return "normal"
    polynomials = sum(i.name.startswith("FFMA") for i in path)
    return "truncated_normal" if polynomials > 4 * VALUES else "uniform"


def _dtype(path: list[Instruction]) -> str:
    if sum(".E.128" in i.text for i in path) * 16 == VALUES:
        return "float8"
    names = {i.name for i in path}
    if any(name.startswith("F2FP.BF16") for name in names):
        return "bfloat16"
    if any(name.startswith("F2FP") for name in names):
        return "float16"
    return "float64" if any(name.startswith("F2F.F64") for name in names) else "float32"


def as_csv(lines: Sequence[Line | Moments | Counts]) -> str:
    """A ledger of lines of one kind."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(lines[0]._fields)
    writer.writerows(lines)
    return text.getvalue()


def recorded() -> list[Line]:
    """The committed ledger."""
    rows = list(csv.DictReader(LEDGER.open()))
    return [
        Line(
            r["nvcc"],
            r["arch"],
            r["law"],
            r["dtype"],
            float(r["instructions"]),
            int(r["registers"]),
        )
        for r in rows
    ]


def main() -> None:
    from benchmarks import (  # which read the code as this does
        sass_counts,
        sass_moments,
        sass_triton,
    )
    from benchmarks.gpus import GPUS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.sass", description=__doc__)
    parser.add_argument(
        "--save",
        action="store_true",
        help="write the ledgers, which a test reads",
    )
    options = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    lines = sorted(ledger(), key=lambda line: (int(line.arch), line.law, line.dtype))
    rows = [
        ["sm", "law", "dtype", "instr/value", "registers", "Gvalues/s", "GB/s", "of its writes"]
    ]
    for line in lines:
        values = H200_ISSUES / line.instructions
        implied = values * BYTES[line.dtype]
        rows.append(
            [
                line.arch,
                line.law,
                line.dtype,
                f"{line.instructions:.2f}",
                str(line.registers),
                f"{values / 1e9:.0f}",
                f"{implied / 1e9:.0f}",
                f"{implied / H200_WRITES:.0%}",
            ]
        )
    print(table(rows, "<<<>>>>>"))
    moments = [*sass_moments.lines(), *sass_triton.lines(sass_triton.CASES)]
    moments.sort(key=lambda line: (line.compiler, int(line.arch), line.dtype))
    print("\nmoments, and the share of each GPU's bandwidth that they are predicted to read\n")
    print(table(sass_moments.rows(moments), "<<<" + ">" * (4 + len(GPUS))))
    counts = sorted(sass_counts.lines(), key=lambda line: (int(line.arch), line.dtype))
    print(
        "\nwhat counting adds, and the share of bandwidth with",
        ", ".join(sass_counts.OPTIONS),
        "\n",
    )
    print(table(sass_counts.rows(counts), "<<" + ">" * (5 + len(GPUS))))
    if options.save:
        LEDGER.write_text(as_csv(lines))
        sass_moments.LEDGER.write_text(as_csv(moments))
        sass_counts.LEDGER.write_text(as_csv(counts))
        print(f"\nsaved as {LEDGER}, {sass_moments.LEDGER} and {sass_counts.LEDGER}")


if __name__ == "__main__":
    main()
