"""Cores: the cycles that their ports need at least for a loop, and what of that it reaches on this one.

The bound of a loop is cycles per value at which the busiest ports of a core are always busy: llvm-mca's,
whose models are made of Arm's and AMD's optimisation guides and, for Intel, of measurements (uops.info),
or that of all vector pipes together, if this is more (`vpmulld` is two operations of Intel's). Of
Apple's M4 there is no model: it has four vector pipes (Apple Silicon CPU Optimization Guide 3.0), taken
to do everything. These are bounds, not predictions: what waits for what is not in them.

On a core that is in the table, what was built for it is run as well, on one thread and memory that fits
its caches: ``reached`` is the bound's share of the cycles that one more value takes, at the clock that a
chain of additions shows. Both are the least of many turns by the wall's clock, which other work can only
lengthen (a process's own time can come out too short, where a hypervisor takes some of it).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from fastinit.backends.choose import native
from fastinit.stream import laws


class Core(NamedTuple):
    """A core that some builds run on."""

    arch: str
    model: str  # of llvm-mca, if it has one
    builds: tuple[str, ...]
    pipes: (
        int  # that do vector arithmetic; of 512 bits it is two operations in a cycle on all of them
    )
    twice: tuple[str, ...] = ()  # instructions that are two such operations


CORES = {
    "neoverse_v2": Core("aarch64", "neoverse-v2", ("neon", "neon_sha3"), 4),
    "apple_m4": Core("aarch64", "", ("neon", "neon_sha3"), 4),
    "zen3": Core("x86_64", "znver3", ("avx2",), 4),
    "zen4": Core("x86_64", "znver4", ("avx2", "avx512"), 4),
    "golden_cove": Core("x86_64", "sapphirerapids", ("avx2", "avx512"), 3, ("vpmulld",)),
}


def analyser() -> str | None:
    """llvm-mca, the newest there is."""
    names = (*(f"llvm-mca-{n}" for n in range(30, 17, -1)), "llvm-mca")
    return next(filter(None, map(shutil.which, names)), None)


def bounds(build: str, loop: Sequence[str], values: int) -> tuple[float | None, ...]:
    """Cycles per value of a loop's instructions, for each core that runs the build."""
    return tuple(
        round(_cycles(core, loop) / values, 2) if build in core.builds else None
        for core in CORES.values()
    )


def _cycles(core: Core, loop: Sequence[str]) -> float:
    """Of one turn of a loop."""
    vector = [
        c for c in loop if re.search(r"\bv\d+\.|%[yz]mm", c) and not re.match(r"v?mov|vbroad", c)
    ]
    of_512 = [c for c in vector if "%zmm" in c]
    operations = len(vector) + sum(c.split()[0] in core.twice for c in vector)
    pipes = max(operations / core.pipes, len(of_512) / 2)
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
static double now() {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
int main() {  // 8 additions, each of the last one's sum: 8 cycles
  double best = 1;
  for (int round = 0; round < 100; ++round) {
    unsigned long x = 0, turns = 200000;
    const double start = now();
    __asm__ volatile("1: .rept 8\n add $1, %0\n .endr\n dec %1\n jnz 1b" : "+r"(x), "+r"(turns));
    const double took = now() - start;
    if (took < best) best = took;
  }
  printf("%f", 8 * 200000 / best);
}
"""


@cache
def here() -> int | None:
    """Which of CORES this machine has: its place."""
    said = subprocess.run([str(analyser()), "--version"], capture_output=True, text=True).stdout
    models = [core.model for core in CORES.values()]
    host = re.search(r"Host CPU: (\S+)", said)
    return models.index(host[1]) if host and host[1] in models else None


@cache
def hertz() -> float:
    """The clock of this machine (x86-64)."""
    with TemporaryDirectory() as at:
        command = ["c++", "-O1", "-x", "c++", "-", "-o", f"{at}/clock"]
        subprocess.run(command, input=CLOCK, text=True, check=True)
        return float(subprocess.run([f"{at}/clock"], capture_output=True, check=True).stdout)


def reached(build: str, law: str, dtype: str, bounds: tuple[float | None, ...]) -> float | None:
    """The share of its bound that a loop reaches on this machine, if it is one of CORES."""
    core = here()
    if core is None or (bound := bounds[core]) is None:
        return None
    return round(bound / (seconds(build, law, dtype) * hertz()), 2)


# Their loops are those that are counted: no value is clamped, none in the tail.
MEASURED = {
    "uniform": laws.uniform(),
    "normal": laws.normal(0.0, 0.02),
    "truncated_normal": laws.truncated_normal(0.0, 0.02, -0.04, 0.04),
}


def seconds(build: str, law: str, dtype_name: str, values: int = 1 << 15) -> float:
    """What one more value takes on this machine, without the call itself: so many, and twice as many,
    each at the least of many turns."""
    module, dtype = native.module, getattr(torch, dtype_name)
    assert module is not None
    tensor, raw = torch.zeros(2 * values, dtype=dtype), torch.empty(7, dtype=torch.float64)

    def call(n: int) -> None:
        if law == "moments":
            code = laws.DTYPES.index(dtype)
            module.moments_contiguous(code, tensor.data_ptr(), n, raw.data_ptr(), False, 1)
        else:
            module.fill_contiguous(prepared, tensor.data_ptr(), n, 1, 0, 1)

    prepared = None if law == "moments" else native.prepared(MEASURED[law], dtype)
    before, best = module.isa(), {values: float("inf"), 2 * values: float("inf")}
    module.force_isa(build)
    try:
        for _ in range(100):
            for n in best:
                start = time.perf_counter()
                for _ in range(10):
                    call(n)
                best[n] = min(best[n], time.perf_counter() - start)
    finally:
        module.force_isa(before)
    return (best[2 * values] - best[values]) / 10 / values
