"""tests/ptxrun.py itself: what instructions compute, and what a kernel must not do."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptxrun
import pytest
from ptx_memory import Memory
from ptx_operations import Fault
from ptx_text import Program

pytestmark = pytest.mark.compiler
ENTRY = """
.visible .entry one(.param .u64 one_param_0) {{
  .reg .b32 %r<5>; .reg .f32 %f<5>; .reg .b64 %rd<3>; .reg .pred %p<3>; .reg .f64 %fd<3>;
  ld.param.u64 %rd1, [one_param_0];
  mov.u32 %r1, %tid.x;
  {code}
  ret;
}}
"""


LOW = " mov.b64 {%r2, %r3}, %fd1; mov.b32 %f1, %r2;"
CHOSEN = " selp.b32 %r2, 1, 2, %p1; mov.b32 %f1, %r2;"


def run_one(code: str, threads: int = 1, grid: int = 1, scratch: bool = False) -> Any:
    memory = Memory()
    (memory.add_scratch if scratch else memory.add)(0x1000, 64)
    ptxrun.launch(Program(ENTRY.format(code=code), "one"), memory, (0x1000,), grid, threads)
    return np.frombuffer(memory[0x1000], np.uint32)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("mad.lo.s32 %r2, %r1, %r9;", "line 6.*%r9"),
        ("fma.rn.ftz.f32 %f1, %f2, %f2, %f2;", "unknown instruction"),
        ("st.global.u32 [%rd1+62], %r1;", "line 6.*not aligned"),
        ("st.global.u32 [%rd1+64], %r1;", "in no buffer"),
        ("st.global.u32 [%rd1+-4], %r1;", "in no buffer"),
        ("st.global.v4.u32 [%rd1+8], {%r1, %r1, %r1, %r1};", "not aligned"),
        ("ld.global.u32 %r2, [%rd1];", "to be written only"),
        ("st.global.u32 [%rd1], %r1; st.global.u16 [%rd1+2], 1;", "written twice"),
        ("st.global.u32 [%rd1], %r2;", "%r2.* before it is written"),
        (
            "setp.eq.s32 %p1, %r1, 0; @%p1 bra $L; bar.sync 0; $L:",
            "others of their block do not come",
        ),
        ("$L: bra.uni $L;", "does not end"),
        ("fma.rn.f64 %fd1, %fd2, %fd2, %fd2;", "unknown instruction"),
        ("add.f64 %fd1, %fd2, %fd2;", "unknown instruction"),
        ("shfl.sync.down.b32 %r2, %r1, 1, 31, 3;", "unknown instruction"),
    ],
)
def test_what_a_kernel_must_not_do(code: str, fault: str) -> None:
    with pytest.raises(Fault, match=fault):
        run_one(code, threads=1 if "bar" not in code else 2)


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("fma.rn.f32 %f1, 0f3F800001, 0f3F800001, 0fBF800002;", 0x28800000),
        ("min.f32 %f1, 0f00000000, 0f80000000;", 0x80000000),
        ("max.f32 %f1, 0f80000000, 0f00000000;", 0x00000000),
        ("max.f32 %f1, 0f7FC00000, 0fBF800000;", 0xBF800000),
        ("mul.rn.f32 %f1, 0f00000003, 0f3F000000;", 0x00000002),
        ("shl.b32 %r2, 1, 32; mov.b32 %f1, %r2;", 0),
        ("lop3.b32 %r2, 12, 10, 6, 0xBE; mov.b32 %f1, %r2;", 6),
        ("div.s32 %r2, -7, 2; mov.b32 %f1, %r2;", 2**32 - 3),
        ("rem.s32 %r2, -7, 2; mov.b32 %f1, %r2;", 2**32 - 1),
        ("mul.hi.u32 %r2, -1, -1; mov.b32 %f1, %r2;", 2**32 - 2),
        ("bfe.s32 %r2, 48, 4, 2; mov.b32 %f1, %r2;", 2**32 - 1),
        ("cvt.rn.f16x2.f32 %r2, 0f3F800000, 0f40000000; mov.b32 %f1, %r2;", 0x3C004000),
        ("cvt.rn.bf16x2.f32 %r2, 0f3F808000, 0f3F818000; mov.b32 %f1, %r2;", 0x3F803F82),
        ("add.rn.f64 %fd1, 0d3FF0000000000001, 0d3CA0000000000000;" + LOW, 2),
        ("sub.rn.f64 %fd1, 0d3FF0000000000000, 0d3C90000000000000;" + LOW, 0),
        ("mul.rn.f64 %fd1, 0d0000000000000003, 0d3FE0000000000000;" + LOW, 2),
        ("div.rn.f64 %fd1, 0d3FF0000000000000, 0d4008000000000000;" + LOW, 0x55555555),
        ("max.f64 %fd1, 0d7FF8000000000001, 0d4000000000000007;" + LOW, 7),
        ("cvt.rn.f32.f64 %f1, 0d3FF0000030000000;", 0x3F800002),
        ("mov.b64 %rd2, 9007199254740993; cvt.rn.f64.s64 %fd1, %rd2;" + LOW, 0),
        ("setp.neu.f64 %p1, 0d7FF8000000000000, 0d0;" + CHOSEN, 1),
        ("setp.eq.f64 %p1, 0d7FF8000000000000, 0d7FF8000000000000;" + CHOSEN, 2),
        ("setp.eq.f64 %p1, 0d8000000000000000, 0d0000000000000000;" + CHOSEN, 1),
        ("mov.pred %p2, -1; not.pred %p1, %p2;" + CHOSEN, 2),
        ("max.s32 %r2, -3, 2; mov.b32 %f1, %r2;", 2),
        ("min.f16x2 %r2, 0x7E003C00, 0xBC008000; mov.b32 %f1, %r2;", 0xBC008000),
        ("max.bf16x2 %r2, 0x3F80FF81, 0xBF800000; mov.b32 %f1, %r2;", 0x3F800000),
        ("min.bf16x2 %r2, 0x3F803F81, 0x3F813F80; mov.b32 %f1, %r2;", 0x3F803F80),
        ("set.eq.f16x2.f16x2 %r2, 0x80000001, 0; mov.b32 %f1, %r2;", 0x3C000000),
        ("add.rn.f16x2 %r2, 0x3C006800, 0x3C003C00; mov.b32 %f1, %r2;", 0x40006800),
        ("cvt.rzi.s32.f32 %r2, 0fC0200000; mov.b32 %f1, %r2;", 2**32 - 2),
        (
            "mov.b64 %rd2, {0x3F800001, 0x3F800000}; fma.rn.f32x2 %rd2, %rd2, %rd2, %rd2;"
            " mov.b64 {%r2, %r3}, %rd2; mov.b32 %f1, %r2;",
            0x40000002,
        ),
        ("{ .reg .b32 %r2; mov.b32 %r2, 7; mov.b32 %f1, %r2; } mov.b32 %r2, 8;", 7),
    ],
)
def test_instructions(code: str, word: int) -> None:
    assert run_one(code + " st.global.f32 [%rd1+4], %f1;")[1] == word


EACH = " mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd1; st.global.u32 [%rd2], %r2;"


@pytest.mark.parametrize(
    ("threads", "operands", "want"),
    [
        (16, "5, 31, 0xFFFF", [i ^ 5 for i in range(16)]),
        (16, "8, 0x1807, 0xFFFF", [*range(8), *range(8)]),  # only the first 8 lanes are in reach
        (2, "1, 31, 3", [1, 0]),
    ],
)
def test_lanes_exchange_words(threads: int, operands: str, want: list[int]) -> None:
    words = run_one(f"shfl.sync.bfly.b32 %r2|%p1, %r1, {operands};" + EACH, threads)
    assert words[:threads].tolist() == want


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("shfl.sync.bfly.b32 %r2, %r1, 1, 31, 15;", "do not come along"),
        ("shfl.sync.bfly.b32 %r2, %r1, 1, 31, 1;", "not in its mask"),
        ("shfl.sync.bfly.b32 %r2, %r1, 2, 31, 3;", "of a lane that is not in the mask"),
        ("add.s32 %r3, %r1, 3; shfl.sync.bfly.b32 %r2, %r1, 1, 31, %r3;", "other masks"),
        (
            "setp.eq.s32 %p1, %r1, 0; @%p1 bra $L; shfl.sync.bfly.b32 %r2, %r1, 1, 31, 3; $L:",
            "do not come along",
        ),
    ],
)
def test_lanes_that_must_not_exchange(code: str, fault: str) -> None:
    with pytest.raises(Fault, match=fault):
        run_one(code, threads=2)


def test_threads_add_in_any_order() -> None:
    memory = Memory()
    memory.add_sums(0x1000, 16)
    code = "cvt.u64.u32 %rd2, %r1; atom.add.u64 %rd2, [%rd1+8], %rd2; red.add.u32 [%rd1], 3;"
    ptxrun.launch(Program(ENTRY.format(code=code), "one"), memory, (0x1000,), 2, 5)
    assert np.frombuffer(memory[0x1000], np.uint64).tolist() == [30, 20]
    used, stored = ADD + "mov.u32 %r2, %r4;", "st.global.u32 [%rd1], 1;"
    for other, fault in ((used, "%r4"), (stored, "added to only")):
        with pytest.raises(Fault, match=fault):
            ptxrun.launch(Program(ENTRY.format(code=other), "one"), memory, (0x1000,), 1, 1)


FUNCTIONS = """
.func  (.param .b32 func_retval0) less_one_or_nine(.param .b32 less_one_or_nine_param_0)
{
  .reg .pred %p<2>; .reg .b32 %r<3>;
  ld.param.b32 %r1, [less_one_or_nine_param_0];
  setp.eq.s32 %p1, %r1, 0;
  @%p1 bra $L1;
  add.s32 %r2, %r1, -1;
  st.param.b32 [func_retval0+0], %r2;
  ret;
$L1:
  st.param.b32 [func_retval0+0], 9;
  ret;
}
.func twice(.param .b32 twice_param_0, .param .b64 twice_param_1)
{
  .reg .b32 %r<3>; .reg .b64 %rd<2>; .reg .pred %p<2>;
  ld.param.b32 %r1, [twice_param_0];
  ld.param.b64 %rd1, [twice_param_1];
  setp.eq.s32 %p1, %r1, 3;
  @%p1 ret;
  add.s32 %r2, %r1, %r1;
  st.global.u32 [%rd1], %r2;
  ret;
}
"""


def called(given: str, back: str) -> str:
    return (
        f"{{ .param .b32 param0; st.param.b32 [param0+0], {given}; .param .b32 retval0;"
        f" call.uni (retval0), less_one_or_nine, (param0); ld.param.b32 {back}, [retval0+0]; }}"
    )


def test_each_call_has_labels_and_registers_of_its_own() -> None:
    twice = (
        "{ .param .b32 param0; st.param.b32 [param0+0], %r2; .param .b64 param1;"
        " st.param.b64 [param1+0], %rd2; call.uni twice, (param0, param1); }"
    )
    at = "mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd1;"
    some = f"setp.ge.s32 %p1, %r2, 8; @%p1 bra $L1; {called('%r2', '%r2')} $L1: {at} {twice}"
    memory = Memory()
    memory.add(0x1000, 64)
    text = FUNCTIONS + ENTRY.format(code=called("%r1", "%r2") + some)
    ptxrun.launch(Program(text, "one"), memory, (0x1000,), 1, 6)
    *stored, untouched, sentinel = np.frombuffer(memory[0x1000], np.uint32)[:7].tolist()
    assert stored == [18, 18, 0, 2, 4]
    assert untouched == sentinel


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("call.uni other, ();", "no such function"),
        (called("%r1", "%r2").replace(", (param0)", ", ()"), "0 arguments for 1"),
        (called("%r1", "%r2").replace("[param0+0]", "[param0+2]"), "a part of a parameter"),
        (called("%r1", "%r2").replace("b32 [param0", "b64 [param0"), "a part of a parameter"),
        ("{ .param .align 8 .b8 param0[16]; }", "not understood"),
    ],
)
def test_calls_that_are_not_understood(code: str, fault: str) -> None:
    with pytest.raises(Fault, match=fault):
        Program(FUNCTIONS + ENTRY.format(code=code), "one")


def test_no_more_threads_than_the_kernel_allows() -> None:
    with pytest.raises(Fault, match=r"1025 threads, but \.maxntid is 1024"):
        run_one("", threads=1025)


ONE_ONLY = "setp.ne.s32 %p1, %r1, 0; @%p1 bra $L; st.global.u32 [%rd1], %r1; $L: "
ADD = "atom.global.add.u32 %r4, [%rd1], 1; "
BLOCK_0_ONLY = "mov.u32 %r3, %ctaid.x; setp.ne.s32 %p1, %r3, 0;"


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("ld.global.u32 %r2, [%rd1];", "before it is written"),
        ("st.global.u32 [%rd1], %r1;", "two threads write"),
        (ONE_ONLY + "ld.global.u32 %r2, [%rd1];", "no barrier between"),
        (ONE_ONLY + "bar.sync 0; ld.global.u32 %r2, [%rd1];", ""),
        (ONE_ONLY + "bar.sync 0; ld.global.u32 %r2, [%rd1];" + EACH, "no barrier between"),
        (ONE_ONLY + "bar.sync 0; ld.global.u32 %r2, [%rd1]; bar.sync 0;" + EACH, ""),
        (ADD, "before it is written"),
        (ONE_ONLY + ADD, "no barrier between"),
        (ONE_ONLY + "bar.sync 0;" + ADD + ADD, ""),
        (ONE_ONLY + "bar.sync 0;" + ADD + "ld.global.u32 %r2, [%rd1];", "no barrier between"),
        (ONE_ONLY + "bar.sync 0;" + ADD + "bar.sync 0; ld.global.u32 %r2, [%rd1];", ""),
        (ONE_ONLY + "bar.sync 0;" + ADD + ONE_ONLY.replace("$L", "$M"), "no barrier between"),
    ],
)
def test_scratch_memory(code: str, fault: str) -> None:
    if fault:
        with pytest.raises(Fault, match=fault):
            run_one(code, threads=2, scratch=True)
    else:
        run_one(code, threads=2, scratch=True)


@pytest.mark.parametrize(
    "code",
    [
        "@!%p1 st.global.u32 [%rd1], %r1; bar.sync 0; @%p1 ld.global.u32 %r2, [%rd1];",
        "@!%p1 st.global.u32 [%rd1], %r1; bar.sync 0; @%p1 st.global.u32 [%rd1], %r1;",
    ],
)
def test_a_barrier_is_no_other_blocks_barrier(code: str) -> None:
    with pytest.raises(Fault, match="no barrier between"):
        run_one(BLOCK_0_ONLY + code, grid=2, scratch=True)
