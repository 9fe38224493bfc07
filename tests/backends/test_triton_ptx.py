"""The PTX that Triton makes, for GPUs that are not here: it is read, and it gives the reference's bits.

It is compiled in a process of its own, as this one interprets Triton, and run by tests/ptxrun.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import ptxrun
import pytest
import torch
from ptx_fills import (
    END,
    LAWS,
    SEED,
    STREAM,
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
from same_bits import TRITON
from selection import cases
from warm import compiling

from fastinit.stream import laws

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(not TRITON, reason="no triton, or no interpreter"),
]


def each_once(window: str) -> list[Fill]:
    """Each law, and each way to store a value."""
    fills = [Fill(window, law, torch.float32) for law in LAWS]
    return fills + [Fill(window, LAWS[0], d) for d in laws.DTYPES if d != torch.float32]


def every_law(window: str) -> list[Fill]:
    return [Fill(window, law, torch.float32) for law in LAWS]


# Of each number of dimensions, of runs and of elements, aligned and not, near and far.
SHAPES = (
    "odd start and length",
    "every third place",
    "transposed",
    "aligned column shard",
    "4-D, reversed",
    "no neighbours",
    "a carry",
    "rows far apart in memory",
)

# Triton compiles for every combination anew. Always: each law and each store once in whole tiles, each
# shape of a window once, and what is stored by element as another type.
FILLS = {
    "90": (
        90,
        [
            *each_once("whole tiles"),
            *(Fill(w, LAWS[0], torch.float32) for w in SHAPES),
            Fill("transposed", LAWS[2], torch.float32),
            Fill("odd start and length", LAWS[1], torch.bfloat16),
            Fill("misaligned", LAWS[0], torch.float64),
            Fill("3-D", laws.constant(float("nan")), torch.float16),
            Fill(*END),
        ],
    ),
    "90, all": (
        90,
        [
            *every_fill(["whole tiles", "odd start and length", "transposed"]),
            *(fill for window in WINDOWS for fill in every_law(window)),
        ],
    ),
    **{
        str(arch): (arch, [*every_fill(["whole tiles"]), *every_law("transposed")])
        for arch in (80, 100, 120)
    },
}


class Compiled(NamedTuple):
    fill: Fill
    kernel: dict[str, Any]
    launch: dict[str, Any]

    @property
    def ptx(self) -> str:
        text: str = self.kernel["ptx"]
        return text


@pytest.fixture(scope="module", params=cases(FILLS, {"90"}))
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Compiled]:
    """What tests/triton_ptx.py makes of the fills."""
    arch, fills = FILLS[request.param]
    given = [
        {
            **fill.shape._asdict(),
            "arch": arch,
            "law": fill.law,
            "dtype": str(fill.dtype).removeprefix("torch."),
            "local": fill.local(),
            "seed": SEED,
            "stream": STREAM,
        }
        for fill in fills
    ]
    folder = tmp_path_factory.mktemp("triton")
    (file := folder / "fills.json").write_text(json.dumps(given))
    program = Path(__file__).parents[1] / "triton_ptx.py"
    made = json.loads(compiling(folder, str(program), str(file)))
    return [
        Compiled(fill, made["kernels"][launch["kernel"]], launch)
        for fill, launch in zip(fills, made["launches"], strict=True)
    ]


# --- read ------------------------------------------------------------------------------------------


def float32_operations(ptx: str) -> list[str]:
    names = "add|sub|mul|mad|fma|div|rcp|sqrt|rsqrt|ex2|lg2|sin|cos|tanh"
    return re.findall(rf"\b((?:{names})\.[\w.]*f32x?2?)\b", ptx)


def test_arithmetic_is_rounded_once(compiled: list[Compiled]) -> None:
    for made in compiled:
        operations = float32_operations(made.ptx)
        assert operations or made.fill.law.kind == laws.CONSTANT
        for name in operations:
            assert ".rn" in name, (name, made.fill)
            assert not re.search(r"\.(approx|ftz|full|sat)\b", name)


def test_the_compiler_neither_adds_nor_drops_an_operation(compiled: list[Compiled]) -> None:
    """What the four values of a block cost, counted in the text of triton_kernels.py."""
    expected: dict[str, dict[str, int]] = {
        "uniform": {"fma": 4},
        # For each of the two pairs 19 fma in normal_pair, and one more for each value.
        "normal": {"fma": 2 * 19 + 4, "mul": 2 * 4, "add": 2 * 1, "sqrt": 2},
        # For each value 16 fma in truncated_normal, 13 in tail_quantile, 1 + 1 for x and t.
        "truncated_normal": {"fma": 4 * 31, "mul": 4 * 1, "add": 4 * 3, "sub": 4 * 1, "sqrt": 4},
        "constant": {},
    }
    blocks = 2  # 256 for each program of 128 threads
    for made in compiled:
        counted: dict[str, int] = {}
        for name in float32_operations(made.ptx):
            operation = name.split(".")[0]  # sm_100 has instructions for two values at once
            counted[operation] = counted.get(operation, 0) + (2 if name.endswith("x2") else 1)
        want = {k: n * blocks for k, n in expected[made.fill.law.name].items()}
        assert counted == want, made.fill


def test_nothing_is_spilled(compiled: list[Compiled]) -> None:
    for made in compiled:
        assert made.kernel["resources"]["LOCAL"] == 0
        assert ".local" not in made.ptx
        # The 64-bit divisions of a window with several outer dimensions are calls, with a frame.
        assert made.kernel["resources"]["STACK"] == 0 or len(made.fill.shape.size) > 2, made.fill


def test_whole_tensors_are_stored_in_vectors(compiled: list[Compiled]) -> None:
    widest = {
        torch.float32: "v4.b32",
        torch.float64: "v2.b64",
        torch.float16: "v2.b32",
        torch.bfloat16: "v2.b32",
    }
    for made in compiled:
        if made.fill.window == "whole tiles":
            assert f"st.global.{widest[made.fill.dtype]}" in made.ptx, made.fill
            moved = re.search(r"\b(ld|st)\.shared", made.ptx)  # between threads
            # 16 bytes are half a block there
            assert not moved or made.fill.dtype == torch.float64


def test_a_key_is_no_reason_to_compile_again(compiled: list[Compiled]) -> None:
    for made in compiled:
        assert len(set(made.launch["hashes"])) == 1


# --- run -------------------------------------------------------------------------------------------


def is_right(made: Compiled, program: Program) -> bool:
    """Whether a launch writes what the reference does."""
    fill, launch = made.fill, made.launch
    grid, some, memory = launch["grid"], None, Memory()
    if fill == END:
        _, behind, memory = end_of_a_large_tensor()
        some = range(grid - behind // 1024, grid)
    else:
        add_buffers(memory, [fill])
    data = fill.address(0) + fill.shape.start * fill.bytes
    arguments = [data if a == "data" else a for a in launch["arguments"]]
    arguments += [0] * (len(program.parameters) - len(arguments))  # scratch memory: none
    threads, shared = made.kernel["threads"], made.kernel["shared"]
    ptxrun.launch(program, memory, arguments, grid, threads, some, shared)
    return end_is_right(memory) if fill == END else not differing(memory, [fill])


def test_the_bits_are_those_of_the_reference(compiled: list[Compiled]) -> None:
    for made in compiled:
        assert is_right(made, Program(made.ptx, "fill_runs")), made.fill


def test_a_missing_barrier_is_seen(compiled: list[Compiled]) -> None:
    """Where threads exchange values, for 16-byte stores of float64, they must wait."""
    exchanging = [m for m in compiled if m.fill.window == "whole tiles" and "bar.sync" in m.ptx]
    assert exchanging
    for made in exchanging:
        program = Program(made.ptx.replace("bar.sync \t0;", ""), "fill_runs")
        with pytest.raises(Fault, match=r"no barrier between|before it is written"):
            is_right(made, program)
