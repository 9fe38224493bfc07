"""Launches the moments kernels of a PTX text in ptxrun, as moments_many_cuda in csrc/cuda does."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ptxrun
import pytest
from nvcc_ptx import CSRC, NVCC, edited, ptx, without_switch
from ptx_memory import Memory
from ptx_text import Program

from fastinit.backends.contract import Reading
from fastinit.stream.laws import DTYPES
from fastinit.stream.reference_moments import FIELDS

SCRATCH = 0x6EEE_0000_0000
MOMENTS, POWERS = FIELDS * 8, 5 * 8  # bytes
STEPS = 100_000  # a walk takes several for each value

# Read in csrc/moments.h as C++ lays it out.
READ = np.dtype(
    [
        ("data", "u8"),
        ("dtype", "i4"),
        ("by_column", "?"),
        ("dims", "i4"),
        *((name, "i8", 8) for name in ("size", "stride")),
    ],
    align=True,
)

# The host's side, which is C++: the readings' bytes, and how many tasks, results and parts there are.
NUMBERED = """
#include <algorithm>
#include "{csrc}/cuda/readings.cpp"

extern "C" int64_t few_readings() {{ return FEW_READINGS; }}
extern "C" int64_t read_bytes() {{ return sizeof(Read); }}
extern "C" int64_t reading_bytes() {{ return sizeof(Reading); }}
static void tell(const std::vector<Reading>& all, Reading* to, int64_t* totals) {{
  std::copy(all.begin(), all.end(), to);
  const Reading& last = all.back();
  totals[0] = last.first_task + last.work.tasks;
  totals[1] = last.first_result + last.work.columns;
  totals[2] = last.first_part + last.work.parts;
}}
extern "C" void numbered(const Read* reads, Moments* const* results, int64_t count, Reading* to,
                         int64_t* totals) {{
  tell(number(reads, results, count), to, totals);
}}
extern "C" void numbered_counts(const Read* reads, Moments* const* moments, int64_t count,
                                Reading* to, int64_t* totals, int64_t* const* counts,
                                const Counting* how, bool behind) {{
  std::vector<Counted> counted;
  for (int64_t i = 0; i < count; ++i) counted.push_back({{reads[i], moments[i], counts[i]}});
  tell(number(*how, counted.data(), count, behind), to, totals);
}}
"""


class Numbered(NamedTuple):
    """Readings as the kernels get them."""

    data: bytes
    readings: int
    few: int  # that travel as parameters
    tasks: int
    results: int
    parts: int


class Host:
    """number() in readings.cpp, compiled in an empty folder."""

    def __init__(self, folder: Path) -> None:
        source, library = folder / "numbered.cpp", folder / "numbered.so"
        source.write_text(NUMBERED.format(csrc=CSRC))
        command = [str(NVCC), "-std=c++17", "-shared", "-cudart=none", "-Xcompiler=-fPIC"]
        done = subprocess.run([*command, source, "-o", library], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.library: Any = ctypes.CDLL(str(library))
        assert self.library.read_bytes() == READ.itemsize

    def numbered(
        self,
        readings: Sequence[Reading],
        data: Sequence[int],
        results: Sequence[int],
        counts: tuple[Sequence[int], bytes, bool] | None = None,
    ) -> Numbered:
        """Readings of tensors whose first elements, and of whose results the first, are there.

        Args:
            counts: where they go, what is counted, and whether when the results are there.
        """
        count = len(readings)
        reads, totals = np.zeros(count, READ), np.zeros(3, np.int64)
        for read, reading, address in zip(reads, readings, data):
            read["data"], read["dtype"] = address, DTYPES.index(reading.tensor.dtype)
            read["by_column"], read["dims"] = reading.by_column, len(reading.shape)
            for name, values in ("size", reading.shape), ("stride", reading.strides):
                read[name][: len(values)] = values
        to = np.zeros(count * self.library.reading_bytes(), np.uint8)
        places = np.array(results, np.uint64)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (reads, places, to, totals)]
        arguments = (*pointers[:2], ctypes.c_int64(count), *pointers[2:])
        if counts is None:
            self.library.numbered(*arguments)
        else:
            counted = np.array(counts[0], np.uint64)
            here = ctypes.c_void_p(counted.ctypes.data)
            self.library.numbered_counts(*arguments, here, counts[1], ctypes.c_bool(counts[2]))
        few = self.library.few_readings()
        return Numbered(to.tobytes(), count, few, *(int(total) for total in totals))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host"))


class MomentKernels:
    """measure and merge_parts of one PTX text."""

    def __init__(self, text: str) -> None:
        self.measure, self.merge = (Program(text, e) for e in ("measure", "merge_parts"))

    def run(self, memory: Memory, told: Numbered, parts: bytes = b"") -> None:
        """Measures and merges; or, where there are parts, only merges these."""
        run(self, memory, told, MOMENTS, parts)


class PowerKernels(NamedTuple):
    """sum_powers and merge_powers of one PTX text."""

    measure: Program
    merge: Program

    @classmethod
    def of(cls, text: str) -> PowerKernels:
        return cls(Program(text, "sum_powers"), Program(text, "merge_powers"))

    def run(self, memory: Memory, told: Numbered, found: int) -> None:
        """Where ``found`` says, there are the moments of all results, one after another."""
        run(self, memory, told, POWERS, known=(found,))


class CountKernels:
    """measure_and_count with merge_parts, and count_values, of one PTX text."""

    def __init__(self, text: str) -> None:
        self.measure, self.merge, self.count = (
            Program(text, e) for e in ("measure_and_count", "merge_parts", "count_values")
        )

    def run(self, memory: Memory, told: Numbered, how: bytes, behind: bool) -> None:
        if not behind:
            run(self, memory, told, MOMENTS, last=(how,))
            return
        few, many, _ = _carried(memory, told)
        arguments = few, many, told.readings, how
        threads = self.count.most_threads
        ptxrun.launch(self.count, memory, arguments, told.tasks, threads, steps=STEPS)


def _carried(memory: Memory, told: Numbered) -> tuple[bytes, int, int]:
    """Readings as parameters, or where they are staged, and where the memory behind begins."""
    if told.readings > told.few:
        memory.add(SCRATCH, told.data)  # what the stage kernel does: test_ptx.py
    size = told.few * (len(told.data) // told.readings)
    if told.readings <= told.few:
        return told.data.ljust(size, b"\0"), 0, SCRATCH
    return bytes(size), SCRATCH, SCRATCH + len(told.data)


def run(
    kernels: MomentKernels | PowerKernels | CountKernels,
    memory: Memory,
    told: Numbered,
    part: int,
    parts: bytes = b"",
    known: tuple[int, ...] = (),
    last: tuple[bytes, ...] = (),
) -> None:
    """Measures and merges parts of so many bytes; or, where there are parts, only merges these."""
    few, many, at = _carried(memory, told)
    memory.add_scratch(at, told.parts * part, parts)
    arguments = few, many, told.readings, *known, at
    for program, grid in (kernels.measure, told.tasks), (kernels.merge, told.results):
        if grid and not (parts and program is kernels.measure):
            threads = program.most_threads
            more = last if program is kernels.measure else ()
            ptxrun.launch(program, memory, (*arguments, *more), grid, threads, steps=STEPS)


def mutant(folder: Path, only: str, edits: Sequence[tuple[str, str, str]], *more: str) -> str:
    """The PTX for compute_90 with edits, and cut down to one type."""
    csrc = edited(folder, edits)
    call = f"measure_task<{only}>(r, task, mets, chunks, parts + r.first_part)"
    without_switch(csrc / "cuda/moments.cuh", "r.dtype", call)
    return ptx(folder, 90, "moments.cuh", csrc, *more)
