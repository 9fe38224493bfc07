"""The PTX that nvcc and Triton make gives the reference's bits, run by tests/ptxrun.py without a GPU.

And the runs find what they are there to find: mistakes put into the kernels are seen.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import nvcc_ptx
import ptxrun
import pytest
import torch
from nvcc_ptx import Kernels, each_arch
from ptx_memory import Memory
from ptx_operations import Fault
from ptx_text import Program
from same_bits import TRITON, bits, sentinel
from same_bits import reference as by_reference
from selection import asked, cases

from fastinit import laws, reference
from fastinit.backends import native
from fastinit.laws import Law

pytestmark = pytest.mark.compiler
needs_nvcc = pytest.mark.skipif(
    not (nvcc_ptx.NVCC and native.module), reason="no nvcc, or no native module"
)
needs_triton = pytest.mark.skipif(not TRITON, reason="no triton, or no interpreter")

LAWS = (
    laws.uniform(-0.3, 0.7),
    laws.normal(0.5, 2.0),
    laws.truncated_normal(0.1, 0.5, -3.0, 3.0),  # about one in 250 values from the tails
    laws.constant(0.1),
)
SEED, STREAM = 0x9ABC_DEF0_1234_5678, 0xFEDC_BA98_7654_3210


class Window(NamedTuple):
    """A window into a buffer of one tensor's elements.

    Rows of dimension 0 lie ``apart``, further than memory reaches: each is a buffer of its own.
    """

    size: tuple[int, ...]
    local: tuple[int, ...]
    start: int  # elements before it in the buffer
    strides: tuple[int, ...]
    offset: int = 0
    apart: int = 0

    @property
    def elements(self) -> int:
        """Of the buffer: three behind the window."""
        return 4 + self.start + sum((n - 1) * step for n, step in zip(self.size, self.local))

    def buffers(self) -> list[tuple[int, int, int]]:
        """For each buffer its place, and where in the compact tensor it begins and ends."""
        if not self.apart:
            return [(0, 0, self.elements)]
        step = self.local[0]
        return [(i * self.apart, i * step, (i + 1) * step) for i in range(self.size[0])]


WINDOWS = {
    "whole tiles": Window((3 * 4096,), (1,), 0, (1,)),
    "head, whole tiles, tail": Window((9001,), (1,), 15, (1,), 3),
    "whole tiles before and behind a carry": Window((11_000,), (1,), 0, (1,), 2**34 - 5000),
    "odd start and length": Window((1001,), (1,), 3, (1,), 5),
    "misaligned": Window((203,), (1,), 1, (1,), 8),
    "every third place": Window((205,), (3,), 2, (1,), 1),
    "rows of 30 in 33": Window((11, 30), (33, 1), 1, (30, 1)),
    "transposed": Window((53, 37), (1, 53), 0, (37, 1)),
    "column shard": Window((41, 5), (5, 1), 0, (64, 1), (1 << 40) + 7),
    "aligned column shard": Window((9, 7), (8, 1), 0, (64, 1), 16),
    "3-D": Window((5, 7, 11), (11, 55, 1), 0, (200, 20, 1), 6),
    "4-D, reversed": Window((2, 3, 4, 5), (1, 2, 6, 24), 3, (60, 20, 5, 1)),
    "no neighbours": Window((9, 21), (21, 1), 0, (100, 3), 11),
    "a carry": Window((300,), (1,), 0, (1,), 2**34 - 150),
    "the last elements": Window((300,), (1,), 0, (1,), 2**63 - 300),
    "rows far apart in the stream": Window((7, 30), (30, 1), 0, (1 << 33, 1), (1 << 39) + 12345),
    "rows far apart in memory": Window((3, 30), (34, 1), 2, (30, 1), 0, 2**33 + 4),
    "an element": Window((), (), 2, (), 77),
}
LARGE = Window((2**32 + 4096,), (1,), 0, (1,), 4)


class Fill(NamedTuple):
    window: str
    law: Law
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def shape(self) -> Window:
        return LARGE if self.window == "large" else WINDOWS[self.window]

    def local(self) -> tuple[int, ...]:
        w = self.shape
        return (w.apart, *w.local[1:]) if w.apart else w.local

    def address(self, index: int) -> int:
        """Where the buffer of the ``index``-th fill lies: high words that are not alike."""
        return 0x1000_0000_0000 + (index << 39)

    def request(self, index: int) -> tuple[Any, ...]:
        """As backends.Native makes it."""
        w = self.shape
        place = self.address(index) + w.start * self.bytes
        fill = native.fill(self.law, self.dtype)
        return (fill, place, SEED, STREAM, w.offset, w.size, self.local(), w.strides)


END = ("large", LAWS[0], torch.float32)


@cache
def expected(fill: Fill) -> bytes:
    """The compact buffer as the reference leaves it."""
    window = fill.shape
    base = sentinel(window.elements, fill.dtype)
    view = base.as_strided(window.size, window.local, window.start)
    params = laws.kernel_params(fill.law, fill.dtype)
    with by_reference():
        reference.fill(view, fill.law.kind, params, SEED, STREAM, window.strides, window.offset)
    return bits(base).numpy().tobytes()


def every_fill(windows: Sequence[str] = tuple(WINDOWS)) -> list[Fill]:
    return [Fill(w, law, dtype) for w in windows for law in LAWS for dtype in laws.DTYPES]


def add_buffers(memory: Memory, fills: Sequence[Fill]) -> None:
    for i, fill in enumerate(fills):
        for place, begin, end in fill.shape.buffers():
            memory.add(fill.address(i) + place * fill.bytes, (end - begin) * fill.bytes)


def differing(memory: Memory, fills: Sequence[Fill]) -> list[Fill]:
    """The fills whose buffers are not what the reference makes of them, to the byte."""
    wrong = []
    for i, fill in enumerate(fills):
        for place, begin, end in fill.shape.buffers():
            got = memory[fill.address(i) + place * fill.bytes]
            if got != expected(fill)[begin * fill.bytes : end * fill.bytes]:
                wrong.append(fill)
    return wrong


def run(kernels: Kernels, fills: Sequence[Fill], grid: int) -> Memory:
    memory = Memory()
    add_buffers(memory, fills)
    tiles = kernels.fill_many(memory, [f.request(i) for i, f in enumerate(fills)], grid)
    assert tiles
    return memory


# --- compiling, on all cores -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def texts(request: pytest.FixtureRequest, pool: ThreadPoolExecutor) -> dict[int, Future[str]]:
    return nvcc_ptx.texts(request, pool, "fill.cuh")


@cache
def kernels_of(text: str) -> Kernels:
    return Kernels(text)


def kernels_for(texts: dict[int, Future[str]], arch: int) -> Kernels:
    """Decoded once for the architectures whose PTX is the same."""
    return kernels_of(re.sub(r"(?m)^\.target .*", "", texts[arch].result()))


# --- nvcc ------------------------------------------------------------------------------------------


@needs_nvcc
@each_arch
def test_nvcc_rounds_once_and_keeps_to_registers(texts: dict[int, Future[str]], arch: int) -> None:
    ptx = texts[arch].result()
    operations = re.findall(
        r"\b(?:add|sub|mul|mad|fma|div|rcp|sqrt|rsqrt|ex2|lg2)\.[\w.]*f32x?2?", ptx
    )
    assert len(operations) > 4000
    assert {o for o in operations if ".rn" not in o} == set()
    assert not re.search(r"\.(approx|ftz|full|sat|local)\b", ptx)
    assert "call" not in ptx
    assert ("fma.rn.f32x2" in ptx) == (arch >= 100)  # the pairs of lanes_cuda.h


@needs_nvcc
@each_arch
def test_nvcc(texts: dict[int, Future[str]], arch: int) -> None:
    """All laws, dtypes and windows in one launch, with fewer thread blocks than tiles."""
    kernels = kernels_for(texts, arch)
    fills = every_fill()
    memory = run(kernels, fills, grid=150)
    assert differing(memory, fills) == []
    for i, fill in enumerate(fills):
        if fill.window == "whole tiles":
            widths = memory.widths(fill.address(i))[: 3 * 4096 * fill.bytes]
            assert set(widths) == {16}, fill


@needs_nvcc
@each_arch
def test_nvcc_with_pieces_among_the_parameters(texts: dict[int, Future[str]], arch: int) -> None:
    kernels = kernels_for(texts, arch)
    fills = [Fill("head, whole tiles, tail", LAWS[1], torch.bfloat16), *every_fill(["3-D"])[4:9]]
    assert len(native.module.Pieces([f.request(0) for f in fills])) == native.module.FEW
    assert differing(run(kernels, fills, grid=3), fills) == []


def end_of_a_large_tensor() -> tuple[Fill, int, Memory]:
    """The fill of 16 GiB, of which the last elements are there; how many; and the memory."""
    fill, behind, memory = Fill(*END), 3 * 4096, Memory()
    place = (fill.shape.size[0] - behind) * fill.bytes
    memory.add(fill.address(0) + place, behind * fill.bytes)
    return fill, behind, memory


def end_is_right(memory: Memory) -> bool:
    fill, behind, _ = end_of_a_large_tensor()
    want, place = torch.empty(behind, dtype=fill.dtype), fill.shape.size[0] - behind
    params = laws.kernel_params(fill.law, fill.dtype)
    with by_reference():
        offset = fill.shape.offset + place
        reference.fill(want, fill.law.kind, params, SEED, STREAM, (1,), offset)
    return memory[fill.address(0) + place * fill.bytes] == bits(want).numpy().tobytes()


def nvcc_is_right_at_the_end(kernels: Kernels) -> bool:
    """In the last two tiles of a piece as large as they get, and in the piece behind it."""
    fill, behind, memory = end_of_a_large_tensor()
    tiles = fill.shape.size[0] // 4096
    kernels.fill_many(memory, [fill.request(0)], tiles, first=tiles - behind // 4096)
    return end_is_right(memory)


@needs_nvcc
@each_arch
def test_nvcc_at_the_end_of_16_gib(texts: dict[int, Future[str]], arch: int) -> None:
    assert nvcc_is_right_at_the_end(kernels_for(texts, arch))


# --- Triton ----------------------------------------------------------------------------------------


def each_once(window: str) -> list[Fill]:
    """Each law, and each way to store a value."""
    fills = [Fill(window, law, torch.float32) for law in LAWS]
    return fills + [Fill(window, LAWS[1], d) for d in laws.DTYPES if d != torch.float32]


# Triton compiles for every combination anew: all once, and all windows.
SOME = ("whole tiles", "odd start and length", "transposed")
TRITON_FILLS = {
    80: every_fill(["whole tiles"])[::5],
    90: [
        *(Fill(w, LAWS[1], torch.float32) for w in WINDOWS if w not in SOME),
        *(fill for w in SOME for fill in each_once(w)),
        Fill("3-D", laws.constant(float("nan")), torch.float16),
        Fill(*END),
    ],
    100: [*each_once("whole tiles"), Fill("transposed", LAWS[2], torch.float32)],
    120: every_fill(["whole tiles"])[::5],
}


def triton_launches(folder: Path, archs: Sequence[int]) -> dict[str, Any]:
    """What tests/triton_ptx.py makes of the fills."""
    fills = []
    for arch, fill in ((a, f) for a in archs for f in TRITON_FILLS[a]):
        window = fill.shape
        fills.append(
            {
                **window._asdict(),
                "arch": arch,
                "law": fill.law,
                "dtype": str(fill.dtype).removeprefix("torch."),
                "local": fill.local(),
                "seed": SEED,
                "stream": STREAM,
            }
        )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, root / "tests/triton_ptx.py", "launches"],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {"PYTHONPATH": str(root), "TRITON_CACHE_DIR": str(folder)},
        input=json.dumps(fills),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def triton(
    pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Future[dict[str, Any]]]:
    """Triton's kernels and launches for each architecture, compiled when they are asked for."""

    class Launches(dict[int, Future[dict[str, Any]]]):
        def __missing__(self, arch: int) -> Future[dict[str, Any]]:
            archs = next(some for some in ((90,), (80, 100, 120)) if arch in some)
            folder = tmp_path_factory.mktemp("triton")
            part = pool.submit(triton_launches, folder, archs)
            self.update(dict.fromkeys(archs, part))
            return part

    return Launches()


def run_triton(
    kernel: dict[str, Any], program: Program, launch: dict[str, Any], fill: Fill
) -> bool:
    """Whether a launch writes what the reference does."""
    grid, some, memory = launch["grid"], None, Memory()
    if fill == END:
        _, behind, memory = end_of_a_large_tensor()
        some = range(grid - behind // 1024, grid)
    else:
        add_buffers(memory, [fill])
    data = fill.address(0) + fill.shape.start * fill.bytes
    arguments = [data if a == "data" else a for a in launch["arguments"]]
    arguments += [0] * (len(program.parameters) - len(arguments))  # scratch memory: none
    ptxrun.launch(program, memory, arguments, grid, kernel["threads"], some, kernel["shared"])
    return end_is_right(memory) if fill == END else not differing(memory, [fill])


def triton_runs(answer: dict[str, Any], arch: int) -> Iterator[tuple[Fill, dict[str, Any], Any]]:
    """Each fill of an architecture with its kernel and launch."""
    target = re.compile(rf"\.target sm_{arch}a?\b")
    kernels = answer["kernels"]
    launches = [x for x in answer["launches"] if target.search(kernels[x["kernel"]]["ptx"])]
    for fill, launch in zip(TRITON_FILLS[arch], launches, strict=True):
        yield fill, kernels[launch["kernel"]], launch


@needs_triton
@pytest.mark.parametrize(
    "arch", [90, *(pytest.param(a, marks=pytest.mark.slow) for a in TRITON_FILLS if a != 90)]
)
def test_triton(triton: dict[int, Future[dict[str, Any]]], arch: int) -> None:
    for fill, kernel, launch in triton_runs(triton[arch].result(), arch):
        assert run_triton(kernel, Program(kernel["ptx"], "fill_runs"), launch, fill), fill


@needs_triton
def test_triton_without_its_barriers(triton: dict[int, Future[dict[str, Any]]]) -> None:
    """Where threads exchange values, for 16-byte stores of float64, they must wait."""
    found = 0
    for fill, kernel, launch in triton_runs(triton[90].result(), 90):
        if "bar.sync" in kernel["ptx"] and fill.window == "whole tiles":
            program = Program(kernel["ptx"].replace("bar.sync \t0;", ""), "fill_runs")
            with pytest.raises(Fault, match=r"no barrier between|before it is written"):
                run_triton(kernel, program, launch, fill)
            found += 1
    assert found


# --- mistakes --------------------------------------------------------------------------------------

LANES, KERNEL, STREAM_H, STORED = "cuda/lanes_cuda.h", "cuda/fill.cuh", "stream.h", "cuda/stored.h"
FLOAT = ("float", "UNIFORM")
OTHER = "other bits"


class Mistake(NamedTuple):
    """An edit of the kernels, cut down to a type and a law, and how it comes out."""

    only: tuple[str, str]
    edits: tuple[tuple[str, str, str], ...]
    seen: str  # a fault's text, or OTHER, or nothing
    flags: tuple[str, ...] = ()
    arch: int = 90


def edit(only: tuple[str, str], name: str, old: str, new: str, seen: str = OTHER) -> Mistake:
    return Mistake(only, ((name, old, new),), seen)


NORMAL = ("float", "NORMAL")
MISTAKES = {
    "no mistake": Mistake(NORMAL, (), ""),
    # From sm_100 on with pairs of float32.
    **{
        f"no mistake in pairs, {law.name}": Mistake(("float", law.name.upper()), (), "", (), 100)
        for law in LAWS[:3]
    },
    "the two of a pair change places": Mistake(
        NORMAL,
        ((LANES, "= pair.x, f.v[i + 1] = pair.y", "= pair.y, f.v[i + 1] = pair.x"),),
        OTHER,
        (),
        100,
    ),
    "contraction is allowed": Mistake(
        NORMAL,
        ((LANES, "__fmul_rn(a.v[i], b.v[i])", "a.v[i] * b.v[i]"),),
        r"mul\.f32 .*unknown instruction",
        ("--fmad=true",),
    ),
    "fma rounds twice": edit(
        NORMAL,
        LANES,
        "__fmaf_rn(a.v[i], b.v[i], c.v[i])",
        "__fadd_rn(__fmul_rn(a.v[i], b.v[i]), c.v[i])",
    ),
    "an element behind the tail": edit(
        FLOAT, KERNEL, "from + j < piece", "from + j <= piece", "in no buffer"
    ),
    "a vector over the tail": edit(
        FLOAT, KERNEL, "from + 4 <= piece.length", "from + 4 <= piece.length + 1"
    ),
    "an element short": edit(FLOAT, KERNEL, "from + j >= 0", "from + j > 0"),
    "32-bit element": edit(
        FLOAT, KERNEL, "uint64_t element = piece.offset", "uint32_t element = piece.offset"
    ),
    "32-bit place": edit(
        FLOAT, KERNEL, "index * piece.local[d]", "index * (int)piece.local[d]", "in no buffer"
    ),
    "32-bit place of a tile": edit(
        FLOAT,
        KERNEL,
        "(uint64_t)slot * 4;",
        "(slot * 4 & 0xfffffff);",
        "in no buffer",
    ),
    "two words change places": edit(FLOAT, LANES, "= w[i % 4].v[i / 4]", "= w[i % 4 ^ 1].v[i / 4]"),
    "radius and angle change places": edit(
        NORMAL, LANES, "radius[0].v[i] = w[i % 2 * 2].v", "radius[0].v[i] = w[2 - i % 2 * 2].v"
    ),
    "the counter's high word is lost": edit(FLOAT, KERNEL, "(uint32_t)(block >> 32)", "0u"),
    "the seed's high word is lost": edit(FLOAT, STREAM_H, "(uint32_t)(seed >> 32)", "0u"),
    "the stream's high word is lost": edit(FLOAT, STREAM_H, "(uint32_t)(stream >> 32)", "0u"),
    "misaligned vectors": edit(FLOAT, KERNEL, "1 && aligned &&", "1 &&", "not aligned"),
    "every second block of a vector": edit(
        ("Float16", "UNIFORM"), LANES, "first + i / NEIGHBOURS * step", "first + i * step"
    ),
    "halves change places": edit(
        ("Bfloat16", "UNIFORM"), STORED, "bf16x2.f32 %0, %1, %2;", "bf16x2.f32 %0, %2, %1;"
    ),
    "a tile twice": edit(
        FLOAT,
        KERNEL,
        "return tile;\n}\n\n// The same",
        "return tile - gridDim.x;\n}\n\n// The same",
        "written twice",
    ),
    "the piece before": edit(
        FLOAT, KERNEL, "first_tile <= tile", "first_tile < tile", "does not end"
    ),
}


# One for each way in which a mistake comes out.
ALWAYS = {
    *(name for name in MISTAKES if name.startswith("no mistake")),
    "the two of a pair change places",
    "contraction is allowed",
    "an element behind the tail",
    "the counter's high word is lost",
    "misaligned vectors",
    "a tile twice",
    "the piece before",
}


@pytest.fixture(scope="module")
def mutants(
    request: pytest.FixtureRequest,
    pool: ThreadPoolExecutor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Future[str]]:
    return {
        name: pool.submit(
            *(nvcc_ptx.mutant, tmp_path_factory.mktemp("mutant")),
            *(m.only, m.edits, m.arch, *m.flags),
        )
        for name, m in MISTAKES.items()
        if name in asked(request, "name")
    }


def outcome(text: str, only: tuple[str, str]) -> str:
    """What all windows of one type and law show: a fault's text, OTHER, or nothing."""
    names = {"float": "float32", "Float16": "float16", "Bfloat16": "bfloat16", "double": "float64"}
    law = next(law for law in LAWS if law.name.upper() == only[1])
    fills = [Fill(w, law, getattr(torch, names[only[0]])) for w in WINDOWS]
    try:
        kernels = Kernels(text)
        if differing(run(kernels, fills, grid=23), fills):
            return OTHER
        return "" if only != FLOAT or nvcc_is_right_at_the_end(kernels) else OTHER
    except Fault as fault:
        return str(fault)


@needs_nvcc
@pytest.mark.parametrize("name", cases(MISTAKES, ALWAYS))
def test_a_mistake_is_seen(mutants: dict[str, Future[str]], name: str) -> None:
    mistake = MISTAKES[name]
    seen = outcome(mutants[name].result(), mistake.only)
    assert ("fma.rn.f32x2" in mutants[name].result()) == (mistake.arch >= 100)  # lanes_cuda.h
    assert re.search(mistake.seen, seen) if mistake.seen else seen == ""


BARRIER = """
__global__ void turned(const unsigned* from, unsigned* to) {
  __shared__ unsigned held[128];
  const unsigned at = blockIdx.x * 128 + threadIdx.x;
  for (int i = 0; i < 2; ++i) {
    held[threadIdx.x] = from[i * 256 + at];
    __syncthreads();  // first
    to[i * 256 + at] = held[127 - threadIdx.x];
    __syncthreads();  // second
  }
}
"""


def turned(folder: Path, source: str) -> bool:
    """Whether a kernel turns the elements of each 128 round."""
    (folder / "turned.cu").write_text(source)
    program = Program(nvcc_ptx.compile_(folder / "turned.cu", 90), "turned")
    memory, numbers = Memory(), np.arange(512, dtype=np.uint32)
    memory.add(0x1000, numbers.tobytes())
    memory.add(0x9000, numbers.nbytes)
    ptxrun.launch(program, memory, (0x1000, 0x9000), grid=2, threads=128)
    return memory[0x9000] == numbers.reshape(4, 128)[:, ::-1].tobytes()


@needs_nvcc
@pytest.mark.parametrize("missing", ["none", "first", "second"])
def test_a_missing_barrier_is_seen(tmp_path: Path, missing: str) -> None:
    source = BARRIER.replace(f"__syncthreads();  // {missing}", "")
    if missing == "none":
        assert turned(tmp_path, source)
    else:
        with pytest.raises(Fault, match=r"\.shared.*(no barrier between|before it is written)"):
            turned(tmp_path, source)
