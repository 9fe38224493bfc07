"""The ledger of instructions: what the CUDA kernel costs for each value, against what was committed.

Counts are those of one compiler. One that the ledger has no lines of may take a tenth more than it has.
"""

from __future__ import annotations

import pytest

from benchmarks import sass
from fastinit.backends import choose as backends

pytestmark = pytest.mark.compiler
needs_code = pytest.mark.skipif(sass.missing() is not None, reason=str(sass.missing()))

ASKED = {
    ("normal", "float32"): 34,
    ("normal", "bfloat16"): 35,
    ("uniform", "float32"): 16,
    ("truncated_normal", "float32"): 45,
}


@pytest.fixture(scope="module")
def lines() -> list[sass.Line]:
    return list(sass.ledger())


@needs_code
def test_each_law_dtype_and_architecture_has_its_loop(lines: list[sass.Line]) -> None:
    assert backends.native.module is not None
    expected = {
        (arch, law, dtype)
        for arch in backends.native.module.cuda_archs.split(",")
        for law in ("uniform", "normal", "truncated_normal")
        for dtype in sass.BYTES
    }
    assert sorted((line.arch, line.law, line.dtype) for line in lines) == sorted(expected)


@needs_code
def test_no_count_rises(lines: list[sass.Line]) -> None:
    kept = {line[:4]: line for line in sass.recorded()}
    others = {line[1:4]: line for line in sass.recorded()}
    for line in lines:
        before = kept.get(line[:4]) or others.get(line[1:4])
        assert before is not None, f"{line}: the ledger knows no such architecture"
        more = 1.0 if before.nvcc == line.nvcc else 1.1
        assert line.instructions <= more * before.instructions, line
        assert line.registers <= more * before.registers, line


@needs_code
def test_nothing_is_spilled() -> None:
    assert backends.native.module is not None
    for arch in backends.native.module.cuda_archs.split(","):
        assert sass.memory(arch) == {"STACK": 0, "LOCAL": 0}, arch


@needs_code
def test_no_loop_takes_more_than_was_asked(lines: list[sass.Line]) -> None:
    for line in lines:
        assert line.instructions <= ASKED.get((line.law, line.dtype), 50), line
