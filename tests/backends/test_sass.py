"""The ledger of instructions: what the CUDA kernel costs for each value, against what was committed.

Counts are those of one compiler: with another nvcc than the ledger's there is nothing to compare.
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
    kept = {(line.nvcc, line.arch, line.law, line.dtype): line for line in sass.recorded()}
    compared = [(line, kept[line[:4]]) for line in lines if line[:4] in kept]
    if not compared:
        pytest.skip("the ledger is of another nvcc")
    for line, before in compared:
        assert line.instructions <= before.instructions, line
        assert line.registers <= before.registers, line


@needs_code
def test_nothing_is_spilled() -> None:
    assert backends.native.module is not None
    for arch in backends.native.module.cuda_archs.split(","):
        assert sass.memory(arch) == {"STACK": 0, "LOCAL": 0}, arch


def test_the_ledger_holds_what_was_asked() -> None:
    for line in sass.recorded():
        assert line.instructions <= ASKED.get((line.law, line.dtype), 50), line
