"""The ledger of the CPU's instructions (``make asm``), against what was built for this machine.

AArch64's are in test_neon.py.
"""

from __future__ import annotations

import platform
import shutil

import pytest

from benchmarks import asm

FOLDER = asm.native_build()

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the ledger's are x86-64's"),
    pytest.mark.skipif(FOLDER is None, reason="nothing was built in build/"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not there"),
]


def test_no_loop_takes_more_than_before() -> None:
    assert FOLDER is not None
    lines = list(asm.ledger(FOLDER))
    wanted = {
        (build, law, dtype)
        for build in ("avx2", "avx512")
        for law in (*asm.LAWS, "moments")
        for dtype in asm.DTYPES.values()
        if law != "moments" or not dtype.startswith("float8")
    }
    assert {line[1:4] for line in lines} == wanted
    if unknown := asm.strangers(lines):
        pytest.skip(
            f"the ledger has no lines of {unknown}: python -m benchmarks.asm --save adds them"
        )
    assert not asm.risen(lines)


def test_the_ledger_has_a_bound_for_each_core_that_runs_a_build() -> None:
    for line in asm.recorded():
        for core, bound in zip(asm.CORES.values(), line.bounds):
            assert (bound is not None) == (line.build in core.builds), line
            # No core that is known executes more than eight in a cycle.
            assert bound is None or line.instructions / 8 <= bound <= line.instructions, line
