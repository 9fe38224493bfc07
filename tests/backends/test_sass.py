"""The ledger of instructions: what the kernels cost for each value, against what was committed.

Counts are those of one compiler. One that the ledger has no lines of may take a tenth more than it has.
"""

from __future__ import annotations

import pytest
from selection import cases
from warm import compiling

from benchmarks import sass, sass_counts, sass_moments
from benchmarks.gpus import GPU, GPUS
from fastinit.backends import choose as backends

pytestmark = pytest.mark.compiler
needs_code = pytest.mark.skipif(sass.missing() is not None, reason=str(sass.missing()))

ASKED = {
    ("normal", "float32"): 34,
    ("normal", "bfloat16"): 35,
    ("truncated_normal", "float8"): 51,
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
        # A thread gets registers in eights.
        assert -(-line.registers // 8) <= more * -(-before.registers // 8), line


@needs_code
def test_nothing_is_spilled() -> None:
    """But some words of a chunk, around the loops that measure and count it, by one kernel."""
    assert backends.native.module is not None
    for arch in backends.native.module.cuda_archs.split(","):
        memory = sass.memory(arch)
        assert memory.pop("measure_and_count") <= 64, arch
        assert set(memory.values()) == {0}, arch


@needs_code
def test_no_loop_takes_more_than_was_asked(lines: list[sass.Line]) -> None:
    for line in lines:
        assert line.instructions <= ASKED.get((line.law, line.dtype), 50), line


# --- moments ---------------------------------------------------------------------------------------

MOST = {"float32": 24, "float16": 12, "bfloat16": 12}
SHARES = {("triton", "100", "float32"): 0.89}  # a third of its additions are not packed in pairs
# Of Triton's, which is compiled for this; all of them with -m slow.
SOME = {"90:bfloat16", "100:float32"}
TRITON = [f"{arch}:{dtype}" for arch in (80, 90, 100, 120) for dtype in MOST]


@pytest.fixture(scope="module")
def native_moments() -> list[sass_moments.Moments]:
    return list(sass_moments.lines())


@pytest.fixture(scope="module", params=cases({"some": SOME, "all": TRITON}, {"some"}))
def triton_moments(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[sass_moments.Moments]:
    """In a process of its own, because this one interprets Triton."""
    some = {"some": sorted(SOME), "all": TRITON}[request.param]
    said = compiling(tmp_path_factory.mktemp("triton"), "benchmarks.sass_triton", *some)
    lines = sass_moments.from_csv(said)
    assert {f"{line.arch}:{line.dtype}" for line in lines} == set(some)
    return lines


def assert_asked(lines: list[sass_moments.Moments]) -> None:
    """float32, loads of 16 bytes and few instructions; no more of them than the ledger has."""
    kept = {line[:3]: line for line in sass_moments.recorded()}
    others = {(line.family, *line[1:3]): line for line in sass_moments.recorded()}
    for line in lines:
        assert line.doubles == 0, line
        assert line.narrow == 0, line
        assert line.in_flight >= 32 * 1024, line
        assert line.instructions <= MOST[line.dtype], line
        before = kept.get(line[:3]) or others.get((line.family, *line[1:3]))
        assert before is not None, f"{line}: the ledger knows no such architecture"
        more = 1.0 if before.compiler == line.compiler else 1.1
        for field in ("instructions", "with_runs", "floats", "integers", "registers"):
            assert getattr(line, field) <= more * getattr(before, field), (field, line)
        assert line.in_flight >= before.in_flight / more, line


@needs_code
def test_each_dtype_and_architecture_reads_rows_in_a_loop(
    native_moments: list[sass_moments.Moments],
) -> None:
    assert backends.native.module is not None
    archs = backends.native.module.cuda_archs.split(",")
    expected = sorted((arch, dtype) for arch in archs for dtype in sass_moments.DTYPES)
    assert sorted((line.arch, line.dtype) for line in native_moments) == expected


@needs_code
def test_moments_are_what_was_asked(native_moments: list[sass_moments.Moments]) -> None:
    assert_asked(native_moments)


@pytest.mark.skipif(sass.cuobjdump() is None, reason="cuobjdump is not there")
def test_moments_of_triton_are_what_was_asked(triton_moments: list[sass_moments.Moments]) -> None:
    assert_asked(triton_moments)


@needs_code
def test_what_counting_adds_does_not_rise() -> None:
    assert backends.native.module is not None
    kept = {line[1:3]: line for line in sass_counts.recorded()}
    found = list(sass_counts.lines())
    archs = backends.native.module.cuda_archs.split(",")
    expected = sorted((arch, dtype) for arch in archs for dtype in sass_moments.DTYPES)
    assert sorted(line[1:3] for line in found) == expected
    for line in found:
        before = kept[line[1:3]]
        more = 1.0 if before.compiler == line.compiler else 1.1
        for field in ("moments", *sass_counts.OPTIONS):
            assert 0 < getattr(line, field) <= more * getattr(before, field), (field, line)
        assert line.in_flight >= 32 * 1024, line
        assert line.spilled == 0, line


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_moments_are_predicted_to_read_nine_tenths_of_the_bandwidth(gpu: GPU) -> None:
    lines = [line for line in sass_moments.recorded() if line.arch == gpu.code]
    assert sorted((line.family, line.dtype) for line in lines) == [
        (family, dtype) for family in ("nvcc", "triton") for dtype in sorted(sass_moments.DTYPES)
    ]
    for line in lines:
        least = SHARES.get((line.family, line.arch, line.dtype), 0.9)
        assert line.share(gpu) >= least, (line, line.share(gpu))
