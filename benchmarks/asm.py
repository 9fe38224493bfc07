"""``python -m benchmarks.asm``: the instructions that the CPU kernels execute for each value.

Read from object files, so it needs no machine that runs them: objdump disassembles what CMake has made
for this machine (``build/``), or a cross-compiler for AArch64, and the loop over whole groups is found
for each build, law and dtype. Counted is the path through it that meets no value in the tail of a
truncated normal; where there are loops for parameters that ask less of a law, the one that asks least.

Beside it stands what bounds it on some cores, and what share of that is reached here
(``benchmarks.cores``).
"""

from __future__ import annotations

import argparse
import csv
import heapq
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks import cores
from benchmarks.cores import CORES
from fastinit.base.text import table

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
MULTIPLICATIONS = (18, 17)
"""Of Philox for each block of four values; csrc/stream.h makes two of the twenty once for all, and
a loop that adds up the first one's products one more."""


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
    if fill := re.match(
        rf"(?:void )?Source<({types}), ([012])>::(?:run|wide_as<[\w, ]+>)\(", symbol
    ):
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
    if moments:
        return width
    whole = (width // n for n in MULTIPLICATIONS if width % n == 0)
    return 4 * next(whole, width // max(MULTIPLICATIONS))


def _compiler(path: Path) -> str:
    """As the object file says."""
    text = subprocess.run(
        ["readelf", "-p", ".comment", str(path)], capture_output=True, text=True, check=True
    ).stdout
    said = re.search(r"(clang) version (\d+\.\d+\.\d+)", text) or re.search(
        r"(GCC): .*?(\d+\.\d+\.\d+)\s*$", text, re.MULTILINE
    )
    return " ".join(said.groups()) if said else "unknown"


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
    parser.add_argument("--clang", action="store_true", help="clang's instructions as well")
    options = parser.parse_args()
    if options.clang and not clang():
        raise SystemExit("needs clang++ (Debian's clang-19)")
    if cores.analyser() is None:
        raise SystemExit("needs llvm-mca, 18 or newer (Debian's llvm-19)")
    lines = []
    with TemporaryDirectory() as at:
        here = native_build()
        folders = [here, None if missing() else cross_build(Path(at, "gcc_arm"))]
        if options.clang:
            folders.append(build(configured(Path(at, "clang"), str(clang()))))
            folders.append(None if missing() else cross_build(Path(at, "clang_arm"), str(clang())))
        for folder in filter(None, folders):
            for line, loop in loops(folder):
                bounds = cores.bounds(line.build, loop, round(len(loop) / line.instructions))
                line = line._replace(bounds=bounds)
                if folder == here:  # what is loaded
                    reached = cores.reached(line.build, line.law, line.dtype, bounds)
                    line = line._replace(reached=reached)
                lines.append(line)
    header = (
        "compiler",
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
        rows.append([*line[:4], f"{line.instructions:.2f}", *of_cores, share])
    print(table(rows, "<<<<" + ">" * (2 + len(CORES))))
    if reason := missing():
        print(f"\nwithout AArch64: {reason}")
    if options.save:
        save(lines)
        print(f"\nsaved as {LEDGER}")


if __name__ == "__main__":
    main()
