"""Mistakes in the text of the moments kernels are seen where their PTX is run."""

from __future__ import annotations

import re
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import nvcc_ptx
import pytest
import torch
from nvcc_ptx import mutants, pool
from ptx_moments import Host, MomentKernels, host, mutant
from ptx_operations import Fault
from ptx_readings import differing, parts_are_merged, values, whole_tasks
from selection import cases

from fastinit.backends.choose import native

__all__ = ["host", "mutants", "pool"]  # fixtures

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        not (nvcc_ptx.NVCC and native.module), reason="no nvcc, or no native module"
    ),
]


# --- mistakes --------------------------------------------------------------------------------------

KERNEL, ROWS, RUNS, WALK = (f"cuda/{name}.cuh" for name in ("measuring", "rows", "runs", "walk"))
MERGES = "cuda/moments.cuh"
TEXT = "moments.h"
OTHER = "other bits"
TASKS, PARTS = "tensors of several tasks", "parts"
ALONE = r"no barrier between|before it is written"
ELSEWHERE = r"in no buffer|before it is written"


class Mistake(NamedTuple):
    """An edit of the kernels, what is measured with it, and how it comes out."""

    edits: tuple[tuple[str, str, str], ...]
    what: tuple[str, ...]  # names of values(), TASKS, or PARTS
    seen: str  # a fault's text, or OTHER, or nothing
    only: str = "float"
    flags: tuple[str, ...] = ()

    def compiled(self, folder: Path) -> str:
        return mutant(folder, self.only, self.edits, *self.flags)


def mistake(
    old: str, new: str, what: str, seen: str = OTHER, file: str = KERNEL, only: str = "float"
) -> Mistake:
    return Mistake(((file, old, new),), (what,), seen, only)


SYNC = "    __syncthreads();\n"
UNSCALED = "(V)power_of_two(-exponent)", "(V)1"
MISTAKES = {
    "no mistake": Mistake((), ("two chunks", TASKS), ""),
    "no mistake, in all": Mistake((), (*values(torch.float32), TASKS, PARTS), ""),
    "contraction is allowed": Mistake(
        (), (), r"\.f64 .*unknown instruction", flags=("--fmad=true",)
    ),
    "sums are taken before they are there": mistake(
        "parts_here = all, __syncthreads();",
        "parts_here = all;",
        "two chunks",
        rf"\.shared.*({ALONE})",
    ),
    "chunks are merged before they are there": mistake(
        SYNC + "    if (have", "    if (have", TASKS, rf"\.shared.*({ALONE})"
    ),
    "parts are merged before they are there": mistake(
        "apart]);\n" + SYNC, "apart]);\n", TASKS, r"\.global.*no barrier between", MERGES
    ),
    "half the lanes are summed": mistake(
        "apart = LANES / 2; apart", "apart = LANES / 4; apart", "two chunks"
    ),
    "half the lanes are named": mistake(
        "ALL_LANES = 0xffffffffu", "ALL_LANES = 0xffffu", "two chunks", "not in its mask", ROWS
    ),
    "lanes without a rest stay away": mistake(
        "if (lane < rest) {",
        "if (lane >= rest && rest) return {};\n      if (rest) {",
        "two chunks",
        "do not come along",
    ),
    "lanes in another order": Mistake(
        ((ROWS, "thread % GROUP<T> * V_OF<T> + thread / GROUP<T>", "thread"),),
        ("two chunks", "far from zero", "strided, 3-D", "misaligned"),
        OTHER,
        "double",
    ),
    "groups in another order": mistake(
        "upper ? x[i] : x[i | apart]", "upper ? x[i | apart] : x[i]", "two chunks", file=ROWS
    ),
    "a value behind the last": mistake("lane < rest", "lane <= rest", "two chunks", "in no buffer"),
    "a whole chunk at the end": mistake(
        "(int)(behind < unit ? behind : unit)", "(int)unit", "two chunks", "in no buffer"
    ),
    "a row behind the last": mistake(
        "step < left - group", "step <= left - group", "aligned columns", file=ROWS
    ),
    "vectors anywhere": mistake(
        "% 16 == 0)", "% 1 == 0)", "misaligned", "not aligned", only="Bfloat16"
    ),
    "chunks in another order": mistake(
        "merge(chunks[slot], chunks[slot + width * each])",
        "merge(chunks[slot + width * each], chunks[slot])",
        TASKS,
    ),
    "what was left out is lost": mistake(
        "run.sum_low = add(run.sum_low,", "run.sum_low = add(run.sum,", "two chunks", file=RUNS
    ),
    "a product without its error": mistake(
        "add(two_sum(run.squares, square), error)",
        "two_sum(run.squares, square)",
        "two chunks",
        file=RUNS,
    ),
    "a distance without its error": mistake(
        "pivoted ? add(left_out, low) : left_out", "left_out", "faded", file=RUNS
    ),
    "one look only": mistake("LOOKS = 3", "LOOKS = 0", "not finite"),
    "faded squares in float32, in columns": mistake(
        "{0x1p-48, 0x1p58", "{0, 0x1p58", "faded columns", file=TEXT, only="Bfloat16"
    ),
    "values as they are": mistake(*UNSCALED, "faded"),
    "float64 as it is": mistake(*UNSCALED, "faded", only="double"),
    "longer sums in float32": mistake(
        "SHORT = 32", "SHORT = 64", "two chunks", file=TEXT, only="Bfloat16"
    ),
    "zeros of one half": mistake(
        "set.eq.f16x2.f16x2 e, %1", "set.eq.f16x2.f16x2 e, e", "two chunks", ".", ROWS, "Bfloat16"
    ),
    "a place of 32 bits": mistake(
        "walk.index[1] * r.stride[1]",
        "(int)(walk.index[1] * r.stride[1])",
        "rows far apart",
        "in no buffer",
        WALK,
    ),
    "a dimension's end is passed": mistake(
        "if (walk.index[1] >= r.size[1])",
        "if (walk.index[1] > r.size[1])",
        "strided, 3-D",
        ".",
        WALK,
    ),
    "the sign of zero": mistake("met.min + 0.0;", "met.min;", "negative zeros"),
    "infinity is a value": mistake(
        "finite = v - v == 0", "finite = v < INFINITY", "not finite", file=WALK
    ),
    "tasks of the first reading": mistake(
        "blockIdx.x - r.first_task", "blockIdx.x", "rows", ELSEWHERE, MERGES
    ),
    "the reading before": mistake("*first <= i", "*first < i", "rows", ELSEWHERE),
    "one result for all columns": mistake(
        "r.results[column]", "r.results[0]", "columns", "written twice", MERGES
    ),
    "another column's part": mistake(
        "column / each * each", "column / each", "columns", file=MERGES
    ),
    "parts merged twice": mistake(
        "i += 2 * width * MERGING", "i += width * MERGING", PARTS, "no barrier between", MERGES
    ),
}


# One for each way in which a mistake comes out, but those that test_ptxrun.py shows of instructions.
ALWAYS = {
    "no mistake",
    "sums are taken before they are there",
    "lanes without a rest stay away",
    "a product without its error",
}


def outcome(text: str, mistake: Mistake, host: Host) -> str:
    """A fault's text, OTHER, or nothing."""
    names = {"float": torch.float32, "Bfloat16": torch.bfloat16, "double": torch.float64}
    dtype = names[mistake.only]
    cases = [case for name, case in values(dtype).items() if name in mistake.what]
    cases += whole_tasks() if TASKS in mistake.what else []
    try:
        kernels = MomentKernels(text)
        if cases and differing(kernels, host, cases):
            return OTHER
        return "" if PARTS not in mistake.what or parts_are_merged(kernels, host) else OTHER
    except Fault as fault:
        return str(fault)


@pytest.mark.parametrize("name", cases(MISTAKES, ALWAYS))
def test_a_mistake_is_seen(mutants: dict[str, Future[str]], host: Host, name: str) -> None:
    seen = outcome(mutants[name].result(), MISTAKES[name], host)
    assert re.search(MISTAKES[name].seen, seen) if MISTAKES[name].seen else seen == ""
