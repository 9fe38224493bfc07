"""The PTX that nvcc makes gives the reference's bits, run by tests/ptxrun.py without a GPU.

And the runs find what they are there to find: mistakes put into the kernels are seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import nvcc_ptx
import ptxrun
import pytest
import torch
from nvcc_ptx import Kernels, each_arch, mutants, pool, texts
from ptx_fills import (
    LAWS,
    WINDOWS,
    Fill,
    add_buffers,
    differing,
    end_is_right,
    end_of_a_large_tensor,
    every_fill,
)
from ptx_memory import Memory
from ptx_operations import Fault
from ptx_text import Program
from selection import cases

from fastinit.backends.choose import native

__all__ = ["mutants", "pool", "texts"]  # fixtures
HEADER = "fill.cuh"

pytestmark = pytest.mark.compiler
needs_nvcc = pytest.mark.skipif(
    not (nvcc_ptx.NVCC and native.module), reason="no nvcc, or no native module"
)


def run(kernels: Kernels, fills: Sequence[Fill], grid: int) -> Memory:
    memory = Memory()
    add_buffers(memory, fills)
    tiles = kernels.fill_many(memory, [f.request(i) for i, f in enumerate(fills)], grid)
    assert tiles
    return memory


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
    calls = re.findall(r"\bcall\b[^;]*;", ptx)
    assert {re.search(r"\dfill_(whole|ragged)I", c) is not None for c in calls} == {True}
    assert ("fma.rn.f32x2" in ptx) == (arch >= 100)  # the pairs of lanes_cuda.h


@needs_nvcc
@each_arch
def test_nvcc(texts: dict[int, Future[str]], arch: int) -> None:
    """All laws, dtypes and windows in one launch, with fewer thread blocks than tiles.

    From sm_100 on the values are drawn in pairs, and stored as before: a few windows there.
    """
    kernels = kernels_for(texts, arch)
    few = ["whole tiles", "head, whole tiles, tail", "transposed"]
    fills = every_fill() if arch < 100 else every_fill(few)
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

    def compiled(self, folder: Path) -> str:
        return nvcc_ptx.mutant(folder, self.only, self.edits, self.arch, *self.flags)


def edit(only: tuple[str, str], name: str, old: str, new: str, seen: str = OTHER) -> Mistake:
    return Mistake(only, ((name, old, new),), seen)


NORMAL = ("float", "NORMAL")
MISTAKES = {
    "no mistake": Mistake(FLOAT, (), ""),
    # From sm_100 on with pairs of float32.
    **{
        f"no mistake in pairs, {law.name}": Mistake(("float", law.name.upper()), (), "", (), 100)
        for law in LAWS[:3]
    },
    "the two of a pair change places": Mistake(
        FLOAT,
        ((LANES, "= pair.x, f.v[i + 1] = pair.y", "= pair.y, f.v[i + 1] = pair.x"),),
        OTHER,
        (),
        100,
    ),
    "contraction is allowed": Mistake(
        FLOAT,
        ((LANES, "__fmaf_rn(a.v[i], b.v[i], c.v[i])", "__fadd_rn(a.v[i] * b.v[i], c.v[i])"),),
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


# One for each way in which a mistake comes out, but those that test_ptxrun.py shows of instructions.
ALWAYS = {
    "no mistake",
    "the two of a pair change places",
    "contraction is allowed",
    "an element behind the tail",
    "the counter's high word is lost",
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
