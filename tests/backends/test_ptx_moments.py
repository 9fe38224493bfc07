"""The PTX of the moments kernels gives the bits of tests/gpu_moments.py, run without a GPU.

In one warp for each chunk and one thread block for each task, as on a GPU; and mistakes are seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from os import cpu_count
from typing import NamedTuple

import nvcc_ptx
import pytest
import torch
from gpu_moments import of_reading, raw_moments, tree
from ptx_memory import Memory
from ptx_moments import Host, MomentKernels, mutant
from ptx_operations import Fault
from same_bits import drawn
from selection import asked, cases
from torch import Tensor

from fastinit.backends.choose import native
from fastinit.backends.contract import Reading
from fastinit.statistics.reading import readings_of
from fastinit.statistics.tensor import moments
from fastinit.stream import laws
from fastinit.stream.reference_moments import FIELDS

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        not (nvcc_ptx.NVCC and native.module), reason="no nvcc, or no native module"
    ),
]


class Asked(NamedTuple):
    """A tensor to measure, the dimension of its channels, and how far its rows lie apart.

    If at all, that is further than memory reaches: each is a buffer of its own.
    """

    tensor: Tensor
    dim: int | None = None
    apart: int = 0

    def readings(self) -> list[Reading]:
        """With the moments of tests/gpu_moments.py written."""
        channels = () if self.dim is None else (self.tensor.shape[self.dim],)
        raw = torch.empty(*channels, FIELDS, dtype=torch.float64)
        if self.apart:
            raw.copy_(raw_moments(self.tensor, False))
            return [Reading(self.tensor, self.tensor.shape, (self.apart, 1), False, raw)]
        readings = list(readings_of(self.tensor, self.dim, raw, []))
        for reading in readings:
            reading.raw.copy_(of_reading(reading))
        return readings


def values(dtype: torch.dtype) -> dict[str, Asked]:
    x = drawn(9_000, 2, seed=0, reach=12).add_(0.5).to(dtype)
    broken = x[:150].clone()
    broken[17, 1], broken[80, 0], broken[149, 1] = math.nan, math.inf, -math.inf
    columns = drawn(530, 35, seed=1).to(dtype)
    columns[520, 4], columns[:, 5] = math.inf, 1e4
    signs = torch.tensor([0.0, -0.0, -0.0, 0.0]).repeat(20).to(dtype)
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 4
    faded = x[:200].double() * (2.0**-60 if dtype.itemsize < 8 else 2.0**-515)
    return {
        "two chunks": Asked(x),
        "nothing": Asked(x[:0]),
        "zeros of both signs": Asked(signs[:77]),
        "negative zeros": Asked(signs[1:3]),
        "not finite": Asked(broken),
        "all is NaN": Asked(torch.full((70,), math.nan, dtype=dtype)),
        "subnormal": Asked(torch.tensor([least, -least, 2 * least]).to(dtype).repeat(30)),
        "its squares overflow": Asked(torch.full((100,), largest, dtype=dtype)[:97]),
        "and of both signs": Asked(torch.tensor([largest, -largest], dtype=dtype).repeat(40)),
        "faded": Asked(faded.to(dtype)),
        "faded columns": Asked(faded.to(dtype)[:40], 1),
        "far from zero": Asked((x[:1500] + 300).contiguous()),
        "every sixth": Asked(x[::3, :1]),
        "strided, 3-D": Asked(x.view(30, 20, 30)[::2, 3:17, 1:9]),
        "strided, 5-D": Asked(x.view(3, 10, 3, 10, 20)[::2, 1:8, 1:, ::3, 1:9]),
        "misaligned": Asked(x.flatten()[1:2400]),
        "rows far apart": Asked(x[:90].reshape(2, 90), apart=2**33 + 4),
        "columns": Asked(columns, 1),
        "aligned columns": Asked(x[:8000].view(-1, 32)[:515], 1),
        "columns of planes": Asked(columns.view(5, 106, 35)[:, 2:100], 2),
        "columns of a slice": Asked(columns[:7, 1:4], 1),
        "two columns": Asked(x[:50].t(), 0),
        "rows": Asked(x[:45].reshape(3, 30), 0),
    }


def whole_tasks() -> list[Asked]:
    """A tensor of four tasks, the last of them short; and columns of two tasks."""
    x = drawn(3 * 2**18 + 5000, seed=1, reach=12)
    return [Asked(x), Asked(x[: 3 * 8200].view(-1, 3), 1)]


def place(i: int) -> int:
    """Where the i-th buffer lies: high words that are not alike."""
    return 0x1000_0000_0000 + (i << 39)


def differing(kernels: MomentKernels, host: Host, cases: Sequence[Asked]) -> list[int]:
    """Measures all in one launch: the numbers of those whose moments are others, to the bit."""
    memory = Memory()
    all_readings: list[tuple[int, Reading]] = []
    data: list[int] = []
    results: list[int] = []
    for i, case in enumerate(cases):
        tensor, readings = case.tensor, case.readings()
        storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        if case.apart:
            for row, part in enumerate(tensor):
                memory.add(place(i) + row * case.apart * tensor.itemsize, raw_bytes(part))
        else:
            memory.add(place(i), storage.numpy().tobytes())
        for reading in readings:
            offset = 0 if case.apart else int(reading.tensor.storage_offset())
            data.append(place(i) + offset * tensor.itemsize)
            results.append(0x7000_0000_0000 + (len(results) << 33))
            memory.add(results[-1], reading.raw.nbytes)
            all_readings.append((i, reading))
    kernels.run(memory, host.numbered([r for _, r in all_readings], data, results))
    got = zip(all_readings, results)
    return [i for (i, reading), at in got if memory[at] != raw_bytes(reading.raw)]


def raw_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


# --- compiling -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(cpu_count()) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def texts(request: pytest.FixtureRequest, pool: ThreadPoolExecutor) -> dict[int, Future[str]]:
    return nvcc_ptx.texts(request, pool, "moments.cuh")


@cache
def decoded(text: str) -> MomentKernels:
    return MomentKernels(text)


@pytest.fixture(scope="module")
def kernels(texts: dict[int, Future[str]]) -> MomentKernels:
    return decoded(next(iter(texts.values())).result())


# --- the kernels -----------------------------------------------------------------------------------


@nvcc_ptx.each_arch
def test_each_operation_rounds_once(texts: dict[int, Future[str]], arch: int) -> None:
    ptx = texts[arch].result()
    operations = re.findall(r"\b(?:add|sub|mul|mad|fma|div|rcp|sqrt)\.[\w.]*f(?:32x2|32|64)\b", ptx)
    assert len(operations) > 1000
    assert ("fma.rn.f32x2" in operations) == (arch >= 100)
    assert {o for o in operations if ".rn" not in o or o == "fma.rn.f64"} == set()
    assert not re.search(r"\.(approx|ftz|full|sat|local)\b|\bcall\b", ptx)


@cache
def wrong_in_one_launch(text: str, host: Host) -> list[tuple[torch.dtype, str]]:
    cases = {(dtype, name): a for dtype in laws.DTYPES for name, a in values(dtype).items()}
    names = list(cases)
    return [names[i] for i in differing(decoded(text), host, list(cases.values()))]


@pytest.mark.parametrize("arch", cases(nvcc_ptx.ARCHS, {90} & set(nvcc_ptx.ARCHS)))
def test_all_in_one_launch(texts: dict[int, Future[str]], host: Host, arch: int) -> None:
    """More readings than a launch carries as parameters; once for each PTX that is another one."""
    text = re.sub(r"(?m)^\.target .*", "", texts[arch].result())
    assert wrong_in_one_launch(text, host) == []


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_readings_among_the_parameters(
    kernels: MomentKernels, host: Host, dtype: torch.dtype
) -> None:
    cases = list(values(dtype).values())[:5]
    assert len(cases) <= host.library.few_readings()
    assert differing(kernels, host, cases) == []


def test_tensors_of_several_tasks(kernels: MomentKernels, host: Host) -> None:
    assert differing(kernels, host, whole_tasks()) == []


def parts_are_merged(kernels: MomentKernels, host: Host, count: int = 300) -> bool:
    """Whether parts, more than twice the threads that merge, come together pairwise in their order."""
    parts = [moments(nine).raw for nine in drawn(count, 9, seed=2)]
    given = b"".join(raw_bytes(part) for part in parts)
    merged = tree(torch.stack(parts))
    large = torch.empty(count * 2**18, dtype=torch.float32, device="meta")
    memory = Memory()
    memory.add(place(0), merged.nbytes)
    told = host.numbered([Reading(large, large.shape, (1,), False, merged)], [0], [place(0)])
    assert told.tasks == told.parts == count
    kernels.run(memory, told, given)
    return memory[place(0)] == raw_bytes(merged)


def test_many_parts_merge(kernels: MomentKernels, host: Host) -> None:
    assert parts_are_merged(kernels, host)


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


@pytest.fixture(scope="module")
def mutants(
    request: pytest.FixtureRequest,
    pool: ThreadPoolExecutor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Future[str]]:
    return {
        name: pool.submit(mutant, tmp_path_factory.mktemp("mutant"), m.only, m.edits, *m.flags)
        for name, m in MISTAKES.items()
        if name in asked(request, "name")
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
