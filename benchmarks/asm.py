"""``python -m benchmarks.asm``: the instructions that the CPU kernels execute for each value.

Read from object files, so it needs no machine that runs them: objdump disassembles what CMake has made
for this machine (``build/``), or a cross-compiler for AArch64, and the loop over whole groups is found
for each build, law and dtype. Counted is the path through it that meets no value in the tail of a
truncated normal.

Beside it stands what bounds it: cycles per value at which the busiest ports of a core are always busy.
They are llvm-mca's, whose models are made of Arm's and AMD's optimisation guides and, for Intel, of
measurements (uops.info), or those of all vector pipes together, if these are more. Of Apple's M4 there
is no model: it has four vector pipes (Apple Silicon CPU Optimization Guide 3.0), taken to do everything.
These are bounds, not predictions: what waits for what is not in them.

On a core that is in the table, what was built for it is run as well, on one thread and memory that fits
its caches: `reached` is the bound's share of the cycles that it takes, at the clock that a chain of
additions shows, by the process's own time.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from fastinit.backends.choose import native
from fastinit.base.text import table
from fastinit.stream import laws

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "benchmarks" / "results" / "asm.csv"
CROSS = "aarch64-linux-gnu-"

LAWS = ("uniform", "normal", "truncated_normal")
DTYPES = {
    "float": "float32",
    "double": "float64",
    "Float16": "float16",
    "Bfloat16": "bfloat16",
    "Float8<3, 7, false>": "float8_e4m3fn",
    "Float8<2, 15, false>": "float8_e5m2",
    "Float8<3, 8, true>": "float8_e4m3fnuz",
    "Float8<2, 16, true>": "float8_e5m2fnuz",
}
MULTIPLICATIONS = 18
"""Of Philox for each block of four values; csrc/stream.h makes two of the twenty once for all."""


class Core(NamedTuple):
    """A core that some builds run on."""

    arch: str
    model: str  # of llvm-mca, if it has one
    builds: tuple[str, ...]
    pipes: int  # that do vector arithmetic; of 512 bits two of the three


CORES = {
    "neoverse_v2": Core("aarch64", "neoverse-v2", ("neon", "neon_sha3"), 4),
    "apple_m4": Core("aarch64", "", ("neon", "neon_sha3"), 4),
    "zen3": Core("x86_64", "znver3", ("avx2",), 4),
    "golden_cove": Core("x86_64", "sapphirerapids", ("avx2", "avx512"), 3),
}


class Line(NamedTuple):
    """One loop: instructions per value, cycles per value that each core's ports need at least, and what
    share of the bound was reached where it was measured."""

    compiler: str
    build: str
    law: str  # or moments
    dtype: str
    instructions: float
    bounds: tuple[float | None, ...] = (None,) * len(CORES)
    reached: float | None = None

    @property
    def family(self) -> str:
        """The compiler, of any version: of two of them a loop's instructions are other ones."""
        return self.compiler.partition(" ")[0]


def missing() -> str:
    """Why nothing can be cross-compiled here; empty if it can."""
    there = {
        f"{CROSS}g++ (Debian's g++-aarch64-linux-gnu)": shutil.which(f"{CROSS}g++"),
        "cmake": tool("cmake"),
        "ninja": tool("ninja"),
    }
    return next((f"needs {what}" for what, path in there.items() if not path), "")


def tool(name: str) -> str | None:
    """CMake or Ninja: what the Python package of this name brings, else what is on PATH."""
    try:
        package = import_module(name)
    except ImportError:
        return shutil.which(name)
    folder = package.CMAKE_BIN_DIR if name == "cmake" else package.BIN_DIR
    return shutil.which(name, path=folder)


def cross_build(at: Path, compiler: str = f"{CROSS}g++") -> Path:
    """Makes ``at``/program of AArch64's kernels and tests/cpp/cpu_kernels.cpp; gives ``at``."""
    return build(
        configured(
            at,
            compiler,
            CMAKE_SYSTEM_NAME="Linux",
            CMAKE_SYSTEM_PROCESSOR="aarch64",
            CMAKE_CXX_COMPILER_TARGET="aarch64-linux-gnu",
        )
    )


def configured(at: Path, compiler: str, **system: str) -> Path:
    """A CMake folder for that program, on this machine unless CMake's variables say otherwise."""
    options = {
        "CMAKE_CXX_COMPILER": compiler,
        # GNU's library uses what it has deprecated, and clang says so.
        "CMAKE_CXX_FLAGS": "-Werror -Wno-deprecated-declarations",
        "CMAKE_EXE_LINKER_FLAGS": "-static",
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "FASTINIT_CUDA": "OFF",
        "FASTINIT_PROGRAM": ROOT / "tests" / "cpp" / "cpu_kernels.cpp",
        **system,
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    return _cmake(at, "-S", str(ROOT), "-B", str(at), "-G", "Ninja", *defines)


def build(at: Path) -> Path:
    """What is configured."""
    return _cmake(at, "--build", str(at))


def _cmake(at: Path, *arguments: str) -> Path:
    done = subprocess.run([str(tool("cmake")), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return at


def clang() -> str | None:
    """clang++, the newest there is."""
    names = (*(f"clang++-{n}" for n in range(30, 15, -1)), "clang++")
    return next(filter(None, map(shutil.which, names)), None)


def native_build() -> Path | None:
    """The folder in which setup.py has built the module for this Python, with its objects."""
    folders = (ROOT / "build").glob(f"cmake-{sys.implementation.cache_tag}-*")
    return next((at for at in folders if list(at.glob(OBJECTS.format("*")))), None)


OBJECTS = "CMakeFiles/kernels.dir/csrc/cpu/{}.cpp.o"


def ledger(folder: Path, laws: Sequence[str] = (*LAWS, "moments")) -> Iterator[Line]:
    """One line for each build, law and dtype of a CMake folder, without bounds."""
    for line, _ in loops(folder, laws):
        yield line


def loops(
    folder: Path, laws: Sequence[str] = (*LAWS, "moments")
) -> Iterator[tuple[Line, list[str]]]:
    """The lines, and the instructions of each loop."""
    arm = list(folder.glob(OBJECTS.format("fill_neon")))
    names = ("neon", "neon_sha3") if arm else ("avx2", "avx512")
    for name in names:
        of_fills = folder / OBJECTS.format(f"fill_{name}")
        of_moments = folder / OBJECTS.format("moments_baseline" if arm else f"moments_{name}")
        for path in (of_fills, *((of_moments,) if "moments" in laws else ())):
            found: dict[tuple[str, str], tuple[bool, int, list[str]]] = {}
            for symbol, code in functions(path, CROSS if arm else ""):
                if not (what := _what(symbol)) or what[0] not in laws:
                    continue
                by_hand = "sums_of" in symbol
                for loop in _loops(code):  # whole groups have the most values; GCC clones some
                    values = _values(loop, what[0] == "moments")
                    best = found.get(what, (False, 1, loop))
                    if (by_hand, values, -len(loop)) >= (*best[:2], -len(best[2])):
                        found[what] = by_hand, values, loop
            compiler = _compiler(path)
            for (law, dtype), (_, values, loop) in sorted(found.items()):
                yield Line(compiler, name, law, dtype, round(len(loop) / values, 2)), loop


def functions(path: Path, prefix: str) -> Iterator[tuple[str, dict[int, str]]]:
    """The functions of an object file, each as instructions by address."""
    command = [f"{prefix}objdump", "-dC", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in re.split(r"\n(?=[0-9a-f]+ <)", text):
        if head := re.match(r"[0-9a-f]+ <(.*)>:\n", part):
            lines = re.findall(r"^\s+([0-9a-f]+):\s+(.*?)\s*(?:(?:#|//) .*)?$", part, re.MULTILINE)
            yield head[1], {int(address, 16): code for address, code in lines}


def _what(symbol: str) -> tuple[str, str] | None:
    """Law and dtype of a function."""
    symbol = symbol.replace("(anonymous namespace)::", "")
    types = "|".join(map(re.escape, DTYPES))
    if fill := re.match(rf"(?:void )?Source<({types}), ([012])>::(?:run|wide(?:<\w+>)?)\(", symbol):
        return LAWS[int(fill[2])], DTYPES[fill[1]]
    summed = r"(?:float|double), double|B?[Ff]loat16, float"  # each in what it is summed in
    if moments := re.match(rf"void accumulate_some<true, (?:{summed})>\((\w+) const\*", symbol):
        return "moments", DTYPES[moments[1]]
    if moments := re.match(rf"(?:void )?sums_of(?:<\w+>)?\(({types}) const\*", symbol):
        return "moments", DTYPES[moments[1]]
    return None


def _target(code: str) -> int | None:
    """Where a branch leads."""
    branch = re.match(r"(?:b|b\.\w+|cbn?z|tbn?z|j\w+)\s+(?:\S+,\s*)*([0-9a-f]+) <", code)
    return int(branch[1], 16) if branch else None


def _loops(code: Mapping[int, str]) -> Iterator[list[str]]:
    """The shortest path through each loop that has no other in it."""
    addresses = list(code)
    place = {address: i for i, address in enumerate(addresses)}
    text = [code[address] for address in addresses]
    targets = [place.get(target) if (target := _target(t)) is not None else None for t in text]
    backward = [(t, i) for i, t in enumerate(targets) if t is not None and t < i]
    for start, end in backward:
        inner = any((s, e) != (start, end) and start <= s and e <= end for s, e in backward)
        if inner or end - start < 16:
            continue
        distance, before, queue = {start: 0}, {}, [(0, start)]
        while queue and queue[0][1] != end:
            length, at = heapq.heappop(queue)
            following = [] if re.match(r"(b|jmp)\s", text[at]) else [at + 1]
            if (target := targets[at]) is not None:
                following.append(target)
            for i in following:
                if start <= i <= end and length + 1 < distance.get(i, sys.maxsize):
                    distance[i], before[i] = length + 1, at
                    heapq.heappush(queue, (length + 1, i))
        path = [end]
        while path[-1] in before:
            path.append(before[path[-1]])
        yield [text[i] for i in reversed(path)]


def _values(loop: Sequence[str], moments: bool) -> int:
    """How many values one turn writes, or reads; 0: it is not such a loop."""
    width = 0
    if moments and not any(re.match(r"vf?m(ul|add)|fm(ul|la)", code) for code in loop):
        return 0  # it puts lanes together
    for code in loop:
        name = code.split()[0]
        bits = {"%y": 256, "%z": 512}.get(min(re.findall("%[yz]", code), default=""), 128)
        if moments and (least := re.match(r"vmin(p[sd])$|fminnm$", name)):
            double = least[1] == "pd" or ".2d" in code
            width += bits // (64 if double else 32)
        elif not moments and re.match(r"vpmuludq$|umull2?$", name):
            width += bits // 64
    return width if moments else 4 * (width // MULTIPLICATIONS)


def _compiler(path: Path) -> str:
    """As the object file says."""
    text = subprocess.run(
        ["readelf", "-p", ".comment", str(path)], capture_output=True, text=True, check=True
    ).stdout
    name = re.search(r"GCC|clang", text)
    version = re.search(r"(\d+\.\d+\.\d+)\s*$", text)
    return f"{name[0] if name else 'unknown'} {version[1] if version else ''}".strip()


# --- bounds ---------------------------------------------------------------------------------------


def analyser() -> str | None:
    """llvm-mca, the newest there is."""
    names = (*(f"llvm-mca-{n}" for n in range(30, 17, -1)), "llvm-mca")
    return next(filter(None, map(shutil.which, names)), None)


def bounds(line: Line, loop: Sequence[str]) -> tuple[float | None, ...]:
    """Cycles per value, for each core that runs the build."""
    values = round(len(loop) / line.instructions)
    return tuple(
        round(_cycles(core, loop) / values, 2) if line.build in core.builds else None
        for core in CORES.values()
    )


def _cycles(core: Core, loop: Sequence[str]) -> float:
    """Of one turn of a loop."""
    vector = [
        c for c in loop if re.search(r"\bv\d+\.|%[yz]mm", c) and not re.match(r"v?mov|vbroad", c)
    ]
    of_512 = [c for c in vector if "%zmm" in c]
    pipes = max(len(vector) / core.pipes, len(of_512) / 2)
    if not core.model:
        return pipes
    program = analyser()
    assert program
    body = [re.sub(r"[0-9a-f]+ <.*", "turn", code) for code in loop]
    command = [program, f"-mtriple={core.arch}", f"-mcpu={core.model}", "-iterations=1"]
    command += ["-mattr=+sha3"] if core.arch == "aarch64" else []
    said = subprocess.run(
        command, input="\n".join(("turn:", *body)), capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"Block RThroughput: ([\d.]+)", said)
    assert found, said
    return max(pipes, float(found[1]))


# --- what is reached --------------------------------------------------------------------------------

CLOCK = r"""
#include <stdio.h>
#include <time.h>
int main() {  // 8 additions, each of the last one's sum: 8 cycles
  double best = 1;
  for (int round = 0; round < 50; ++round) {
    unsigned long x = 0, turns = 500000;
    const clock_t start = clock();
    __asm__ volatile("1: .rept 8\n add $1, %0\n .endr\n dec %1\n jnz 1b" : "+r"(x), "+r"(turns));
    const double took = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (took < best) best = took;
  }
  printf("%f", 8 * 500000 / best);
}
"""


@cache
def here() -> int | None:
    """Which of CORES this machine has: its place."""
    said = subprocess.run([str(analyser()), "--version"], capture_output=True, text=True).stdout
    models = [core.model for core in CORES.values()]
    host = re.search(r"Host CPU: (\S+)", said)
    return models.index(host[1]) if host and host[1] in models else None


def hertz() -> float:
    """The clock of this machine (x86-64)."""
    with TemporaryDirectory() as at:
        command = ["c++", "-O1", "-x", "c++", "-", "-o", f"{at}/clock"]
        subprocess.run(command, input=CLOCK, text=True, check=True)
        return float(subprocess.run([f"{at}/clock"], capture_output=True, check=True).stdout)


def reached(line: Line) -> float | None:
    """The share of its bound that a loop reaches on this machine, if it is one of CORES."""
    core = here()
    if core is None or (bound := line.bounds[core]) is None:
        return None
    return round(bound / (seconds(line) * hertz()), 2)


MEASURED = {
    "uniform": laws.uniform(-0.1, 0.1),
    "normal": laws.normal(0.0, 0.02),
    "truncated_normal": laws.truncated_normal(0.0, 0.02, -2.0, 2.0),
}


def seconds(line: Line, values: int = 1 << 16) -> float:
    """What a value takes on this machine, at the least of some rounds."""
    module, dtype = native.module, getattr(torch, line.dtype)
    assert module is not None
    tensor, raw = torch.zeros(values, dtype=dtype), torch.empty(7, dtype=torch.float64)
    if line.law == "moments":
        to, code = raw.data_ptr(), laws.DTYPES.index(dtype)
        given = code, tensor.data_ptr(), values, to, False, 1
        run = partial(module.moments_contiguous, *given)
    else:
        prepared = native.prepared(MEASURED[line.law], dtype)
        run = partial(module.fill_contiguous, prepared, tensor.data_ptr(), values, 1, 0, 1)
    before, best = module.isa(), float("inf")
    module.force_isa(line.build)
    try:
        for _ in range(25):
            start = time.process_time()
            for _ in range(20):
                run()
            best = min(best, time.process_time() - start)
    finally:
        module.force_isa(before)
    return best / 20 / values


# --- the table --------------------------------------------------------------------------------------


def recorded() -> list[Line]:
    """The committed ledger."""
    lines = []
    for row in csv.DictReader(LEDGER.open()):
        of_cores = tuple(float(row[name]) if row[name] else None for name in CORES)
        count = float(row["instructions"])
        reached = float(row["reached"]) if row["reached"] else None
        which = row["compiler"], row["build"], row["law"], row["dtype"]
        lines.append(Line(*which, count, of_cores, reached))
    return lines


def strangers(lines: Sequence[Line]) -> set[str]:
    """Compilers with which the ledger was never made: nothing was before that could have risen."""
    known = {(line.family, line.build) for line in recorded()}
    return {line.compiler for line in lines if (line.family, line.build) not in known}


def risen(lines: Sequence[Line]) -> list[str]:
    """What takes more instructions than the ledger has; of another version of the compiler, a tenth."""
    kept = {(line.family, *line[1:4]): line for line in recorded()}
    found = []
    for line in lines:
        before = kept.get((line.family, *line[1:4]))
        more = 1.0 if before and before.compiler == line.compiler else 1.1
        if before is None or line.instructions > more * before.instructions:
            found.append(f"{line}, before: {before}")
    return found


def save(lines: Sequence[Line]) -> None:
    """Write the ledger; what it has of other compilers stays."""
    made = {(line.family, line.build) for line in lines}
    others = [line for line in recorded() if (line.family, line.build) not in made]
    with LEDGER.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Line._fields[:5], *CORES, "reached"])
        writer.writerows([*line[:5], *line.bounds, line.reached] for line in [*lines, *others])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asm", description=__doc__)
    parser.add_argument("--save", action="store_true", help="write the ledger, which a test reads")
    options = parser.parse_args()
    if analyser() is None:
        raise SystemExit("needs llvm-mca, 18 or newer (Debian's llvm-19)")
    lines = []
    with TemporaryDirectory() as at:
        folders = [native_build(), None if missing() else cross_build(Path(at))]
        for folder in filter(None, folders):
            for line, loop in loops(folder):
                line = line._replace(bounds=bounds(line, loop))
                lines.append(line._replace(reached=reached(line)))
    header = (
        "build",
        "law",
        "dtype",
        "instr/value",
        *(f"{name}, cycles" for name in CORES),
        "reached",
    )
    rows = [list(header)]
    for line in lines:
        of_cores = ("" if bound is None else f"{bound:.2f}" for bound in line.bounds)
        share = "" if line.reached is None else f"{line.reached:.0%}"
        rows.append([*line[1:4], f"{line.instructions:.2f}", *of_cores, share])
    print(table(rows, "<<<" + ">" * (2 + len(CORES))))
    if reason := missing():
        print(f"\nwithout AArch64: {reason}")
    if options.save:
        save(lines)
        print(f"\nsaved as {LEDGER}")


if __name__ == "__main__":
    main()
