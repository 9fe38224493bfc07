"""Counts in Triton, in its interpreter: those of the reference."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from kernel_counts import ALL, BEHIND, cases
from same_bits import TRITON, drawn
from warm import compiling

from fastinit.backends.choose import backend
from fastinit.backends.contract import Counted, Reading
from fastinit.statistics.tensor import moments
from fastinit.stream import laws
from fastinit.stream.formats import FORMATS, Counting

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")  # numpy's
needs_triton = pytest.mark.skipif(not TRITON, reason="no triton, or no interpreter")
ARCHS = (80, 90, 100, 120)
EVERYTHING = Counting(ALL["behind"], True)


def compile_(archs: list[str]) -> None:
    """Writes the PTX of the kernel for all formats, and for one, of each architecture."""
    import triton

    from benchmarks.sass_triton import Compiler, Driver
    from fastinit.backends.triton import counts

    compiler = counts.count = Compiler(counts.count)
    x, raw = torch.empty(1 << 16), torch.ones(7, dtype=torch.float64)
    for arch in archs:
        triton.runtime.driver.set_active(Driver(int(arch)))
        for counting in (Counting(("e4m3",), False), EVERYTHING):
            to = torch.zeros(counting.width, dtype=torch.int64)
            counts.count_many([Counted(Reading(x, x.shape, (1,), False, to), raw)], counting)
    json.dump([kernel.asm["ptx"] for kernel in compiler.compiled], sys.stdout)


@pytest.mark.slow
@needs_triton
def test_it_is_compiled_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    texts = json.loads(compiling(tmp_path, "backends.test_triton_counts", *map(str, ARCHS)))
    assert len(texts) == 2 * len(ARCHS)
    for text in texts:
        assert not any(inexact in text for inexact in (".approx", ".full", ".ftz", "fma."))


@needs_triton
@pytest.mark.parametrize(
    ("counting", "dtypes"),
    [
        (BEHIND, (torch.float32, torch.bfloat16)),
        (Counting((), True), (torch.float64,)),
        pytest.param(EVERYTHING, laws.DTYPES, marks=pytest.mark.slow),
    ],
)
def test_counts_are_the_references(counting: Counting, dtypes: tuple[torch.dtype, ...]) -> None:
    from fastinit.backends.triton.counts import count_many

    for case in cases(counting, True, dtypes):
        if case.reading.by_column:
            continue
        counts = torch.zeros_like(case.counts)
        count_many([Counted(case.reading._replace(raw=counts), case.raw)], counting)
        assert counts.equal(case.counts), case.reading


@needs_triton
def test_they_come_with_the_moments() -> None:
    x = drawn(40, 70, seed=4, reach=9)
    x[3, 4], x[5] = math.inf, 0
    for dim, formats in ((None, tuple(FORMATS)), (1, ("e4m3",))):
        expected = moments(x, dim=dim, formats=formats, histogram=True).counts
        with backend("triton"):
            got = moments(x, dim=dim, formats=formats, histogram=True).counts
        assert expected is not None
        assert got is not None
        assert got.numbers.equal(expected.numbers)


if __name__ == "__main__":
    compile_(sys.argv[1:])
