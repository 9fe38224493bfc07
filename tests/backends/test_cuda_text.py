"""csrc/cuda without a GPU: its text, compiled for the CPU, run under sanitizers against the reference.

tests/cpp/cuda_on_cpu.h is what the text needs of nvcc. Where it names an instruction of PTX, the plain
C++ beside it is what runs here.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import kernel_counts
import kernel_requests
import numpy as np
import pytest
import torch
from gpu_moments import higher_near, of_reading
from kernel_counts import AT_ONCE, BEHIND, BY_CHANNEL, as_bytes
from kernel_requests import KINDS, LAWS, Work
from selection import asked, cases

from fastinit.stream import laws, reference_moments
from fastinit.stream.formats import Counting
from fastinit.stream.laws import Law
from fastinit.stream.reference_moments import ALL_FIELDS, FIELDS

ROOT = Path(__file__).resolve().parents[2]
CXX = shlex.split(os.environ.get("CXX", "g++"))
# Unoptimised, as the sanitizers' optimised code takes the compiler ten times as long.
FLAGS = ["-std=c++17", "-O0", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-pthread"]
ASAN = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TSAN = ("-fsanitize=thread",)
# Looking for leaks takes ptrace, which a container may not have.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(shutil.which(CXX[0]) is None, reason=f"needs a C++ compiler ({CXX[0]})"),
    pytest.mark.skipif(platform.system() != "Linux", reason="its fibers and linker are Linux's"),
]

# --- what is asked ---------------------------------------------------------------------------------


@cache
def fills(kinds: tuple[str, ...], some: tuple[Law, ...], dtypes: tuple[torch.dtype, ...]) -> Work:
    """One launch for each window, then one for all."""
    work = kernel_requests.fills(kinds, some, dtypes)
    return work._replace(expected=2 * work.expected)


def sums(blocks: int) -> Work:
    """Floats for block_sum whose sums are exact in any order."""
    values = np.arange(blocks * 300, dtype="f4").reshape(blocks, 300) % 1009
    return Work(values.tobytes(), values.sum(1).repeat(128).tobytes())


def counts(counting: Counting, behind: bool, dtypes: tuple[torch.dtype, ...]) -> Work:
    """Tensors with their moments and the reference's counts behind these."""
    some = list(kernel_counts.cases(counting, behind, dtypes))
    given, data = kernel_requests.asked([case.reading for case in some])
    each = (
        of_reading(case.reading).contiguous().numpy().tobytes() + case.counts.numpy().tobytes()
        for case in some
    )
    return Work(given, 2 * b"".join(each), data)


@cache
def readings(dtypes: tuple[torch.dtype, ...], large: bool = False, few: bool = False) -> Work:
    """Tensors with tests/gpu_moments.py's moments."""
    work, asked_for = kernel_requests.readings(dtypes, large, few)
    expected, higher = b"", []
    for reading in asked_for:
        expected += of_reading(reading).contiguous().numpy().tobytes()
        view = reading.tensor.as_strided(reading.shape, reading.strides)
        raw = reference_moments.moments(view, reading.by_column, ALL_FIELDS)
        higher.append(raw.view(-1, ALL_FIELDS))
    return work._replace(expected=2 * expected, higher=torch.cat(higher))


# --- mistakes ------------------------------------------------------------------------------------

FILL, LANES, STREAM_H = "csrc/cuda/fill.cuh", "csrc/cuda/lanes_cuda.h", "csrc/stream.h"
SUM, MOMENTS = "tests/cpp/block_sum.cuh", "csrc/cuda/moments.cuh"
MEASURING = "csrc/cuda/measuring.cuh"
ROWS, HIGHER = "csrc/cuda/rows.cuh", "csrc/cuda/higher.cuh"
COUNTS = "csrc/cuda/counts.cuh"
FIRST = "  __syncthreads();  // every warp's sum is there\n"
LAST = "  __syncthreads();  // so is the total\n"
FUSED = "L::fma(L::from_int(L::template shr<8>(word)), L::set(p.mul), L::set(p.add))"
APART = "L::add(L::mul(L::from_int(L::template shr<8>(word)), L::set(p.mul)), L::set(p.add))"
OTHER_BITS, NOTHING = "other bits", "nothing"


class Mistake(NamedTuple):
    """A mistake in the text, and what becomes of it."""

    file: str
    old: str
    new: str
    seen: str
    """What the program says as it fails; or that its bits are other ones, or right."""
    order: str = "forward"
    flags: tuple[str, ...] = ()
    kind: str = "far"
    law: str = "UNIFORM"
    """What is compiled, for float32 only: the whole takes longer."""


MISTAKES = {
    "a tail that is too long": Mistake(
        FILL, "j < piece.length", "j <= piece.length", "heap-buffer-overflow", flags=ASAN
    ),
    "an index of 32 bits": Mistake(FILL, "uint64_t element", "uint32_t element", OTHER_BITS),
    "words in another order": Mistake(LANES, "w[i % 4].v", "w[i % 4 ^ 1].v", OTHER_BITS),
    "pairs in another order": Mistake(
        LANES, "w[i % 2 * 2].v", "w[i % 2].v", OTHER_BITS, law="NORMAL"
    ),
    "a vector store anywhere": Mistake(
        FILL, " && aligned", "", "misaligned address", flags=ASAN, kind="misaligned rows"
    ),
    "a fused operation in two": Mistake(STREAM_H, FUSED, APART, OTHER_BITS),
    # Why nothing here is compiled with contraction, which undoes what __fmul_rn and __fadd_rn promise.
    "the same, contracted": Mistake(
        STREAM_H, FUSED, APART, NOTHING, flags=("-O2", "-ffp-contract=fast", "-mfma")
    ),
    "other blocks' tiles": Mistake(
        FILL,
        "tile += gridDim.x, block += step, to += (uint64_t)step * 4",
        "++tile, block += TILE_SLOTS, to += TILE_SLOTS * 4",
        "data race",
        "threads",
        TSAN,
        "whole tiles",
    ),
    "no first barrier": Mistake(SUM, FIRST, "", OTHER_BITS, "forward"),
    "no first barrier, TSan": Mistake(SUM, FIRST, "", "data race", "threads", TSAN),
    "no last barrier": Mistake(SUM, LAST, "", OTHER_BITS, "reverse"),
    "no last barrier, TSan": Mistake(SUM, LAST, "", "data race", "threads", TSAN),
    "shared memory taken for zero": Mistake(SUM, "total = sum", "total += sum", OTHER_BITS),
    "a barrier for some": Mistake(SUM, LAST, "if (lane < 9)" + LAST, "divergence", "forward"),
    "two barriers for one": Mistake(
        SUM, LAST, f"if (lane < 9)\n{LAST}else\n{LAST}", "divergence", "reverse"
    ),
    "moments merged before they are there": Mistake(
        MEASURING,
        "parts_here = all, __syncthreads();",
        "parts_here = all;",
        OTHER_BITS,
        "reverse",
    ),
    "lanes in another order": Mistake(
        ROWS, "group * SHORT * pitch", "(V - 1 - group) * SHORT * pitch", OTHER_BITS
    ),
    "a shuffle for some": Mistake(SUM, "xor_sync(FIRST", "xor_sync(0xffffffffu", "divergence", "1"),
}


# --- builds --------------------------------------------------------------------------------------

# One for each way in which a mistake comes out, of each kernel.
ALWAYS = {
    "a tail that is too long",
    "a vector store anywhere",
    "other blocks' tiles",
    "no first barrier",
    "no last barrier, TSan",
    "two barriers for one",
    "moments merged before they are there",
}
MISTAKEN = {
    name: (m.flags, {SUM: SUM, MEASURING: MOMENTS, ROWS: MOMENTS}.get(m.file, FILL), m)
    for name, m in MISTAKES.items()
}
BUILDS: dict[str, tuple[tuple[str, ...], str, Mistake | None]] = {
    "fill": (ASAN, FILL, None),
    "fill, TSan": (TSAN, FILL, None),
    "moments": (ASAN, MOMENTS, None),
    "moments, TSan": (TSAN, MOMENTS, None),
    "higher": (ASAN, HIGHER, None),
    "higher, TSan": (TSAN, HIGHER, None),
    "fill, all types": (ASAN, FILL, None),
    "higher, all types": (ASAN, HIGHER, None),
    "moments, all types": (ASAN, MOMENTS, None),
    "counts": (ASAN, COUNTS, None),
    "counts, TSan": (TSAN, COUNTS, None),
    "sum": (ASAN, SUM, None),
    "sum, TSan": (TSAN, SUM, None),
    **MISTAKEN,
}


# What is the same for all kernels. What cuts launches is compiled once for each sanitizer; what runs the
# threads is none of the text that they look into, and is optimised: each barrier goes over all threads.
THREADS = "tests/cpp/cuda_on_cpu.cpp"
SHARED = {
    FILL: (THREADS, "csrc/cuda/pieces.cpp"),
    MOMENTS: (THREADS, "csrc/cuda/readings.cpp"),
    HIGHER: (THREADS, "csrc/cuda/readings.cpp"),
    COUNTS: (THREADS, "csrc/cuda/readings.cpp"),
    SUM: (THREADS,),
}
DEFINED = {
    FILL: (),
    MOMENTS: ("-DMOMENTS",),
    HIGHER: ("-DMOMENTS", "-DHIGHER"),
    COUNTS: ("-DMOMENTS", "-DCOUNTS"),
    SUM: ("-DBLOCK_SUM",),
}


def compiled(flags: tuple[str, ...], *more: str) -> None:
    made = subprocess.run([*CXX, *FLAGS, *flags, *more], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def build_shared(at: Path, flags: tuple[str, ...], source: str) -> str:
    """The object of one of SHARED."""
    at.mkdir()
    compiled(flags, "-c", str(ROOT / source), "-o", f"{at}/shared.o")
    return f"{at}/shared.o"


def build(
    at: Path,
    flags: tuple[str, ...],
    kernels: str,
    mistake: Mistake | None,
    all_types: bool,
    shared: Sequence[Future[str]],
) -> str:
    """The program that runs the kernels, from a copy of the text with the mistake in it."""
    for folder in ("csrc", "tests/cpp"):
        shutil.copytree(ROOT / folder, at / folder)
    if not (
        mistake or all_types or kernels in (SUM, COUNTS)
    ):  # float32 and bfloat16: each type takes seconds
        others = r"\n    [^\n]*: return [a-z_]*<(?:Float16|double|Byte)>[^\n]*"
        for text in (kernels, MOMENTS) if kernels == HIGHER else (kernels,):
            replace(at / text, others, "")
            replace(at / text, "case BFLOAT16:", "default:")
    if mistake:
        replace(at / mistake.file, re.escape(mistake.old), mistake.new)
    if mistake and kernels == MOMENTS:
        only = "return measure_task<float>(r, task, mets, chunks, parts + r.first_part);"
        replace(at / MOMENTS, r"switch \(r.dtype\) {.*?\n  }", only)
    if mistake and kernels == FILL:
        only = f"return fill_as<T, {mistake.law}>(piece, tile);"
        replace(at / FILL, r"switch \(piece.law\) {.*?\n  }", only)
        replace(
            at / FILL, r"switch \(piece.dtype\) {.*?\n  }", "return fill_of<float>(piece, tile);"
        )
    program, source = str(at / "program"), str(at / "tests/cpp/cuda_kernels.cpp")
    objects = [made.result() for made in shared]
    compiled(flags, *DEFINED[kernels], source, *objects, "-o", program)
    return program


def replace(file: Path, old: str, new: str) -> None:
    text, count = re.subn(old, lambda _: new, file.read_text(), flags=re.DOTALL)
    assert count, f"{file.name} has no {old}"
    file.write_text(text)


@cache
def launcher(flags: tuple[str, ...]) -> list[str]:
    """What starts a program with these flags; skips where the compiler has no such runtime."""
    # TSan wants addresses at which Linux, when it lays out memory at random, may have put something.
    steady = [["setarch", platform.machine(), "-R"]] if shutil.which("setarch") else []
    with TemporaryDirectory() as at:
        program = f"{at}/program"
        command = [*CXX, *flags, "-x", "c++", "-", "-o", program]
        tried = subprocess.run(command, input="int main() {}", capture_output=True, text=True)
        for start in (*steady, []) if tried.returncode == 0 else ():
            tried = subprocess.run([*start, program], capture_output=True, text=True)
            if tried.returncode == 0:
                return start
    pytest.skip(f"{' '.join(flags)} does not work here: {tried.stderr.strip()[-300:]}")


Run = Callable[..., tuple[str, bytes]]


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs one of BUILDS: what it says, and what it writes. They are built two at a time."""
    at = tmp_path_factory.mktemp("cuda_text")
    optional = {*MISTAKES, "moments", "counts", "counts, TSan"}
    optional |= {f"{what}, all types" for what in ("fill", "moments", "higher")}
    wanted_too = asked(request, "name") | asked(request, "program")
    builds = {name: how for name, how in BUILDS.items() if name not in optional - wanted_too}

    def of_all(flags: tuple[str, ...], source: str) -> tuple[tuple[str, ...], str]:
        if source == THREADS:
            return ("-O1",), source
        return (flags if flags in (ASAN, TSAN) else ()), source

    # Those that others wait for come first.
    wanted = {of_all(f, source) for f, kernels, _ in builds.values() for source in SHARED[kernels]}
    with ThreadPoolExecutor(2) as pool:
        shared = {
            what: pool.submit(build_shared, at / f"shared{number}", *what)
            for number, what in enumerate(sorted(wanted))
        }
        programs = {
            name: pool.submit(
                *(build, at / str(number), flags, kernels, mistake, "all types" in name),
                [shared[of_all(flags, source)] for source in SHARED[kernels]],
            )
            for number, (name, (flags, kernels, mistake)) in enumerate(builds.items())
        }

        def run_(
            name: str,
            given: bytes,
            order: str,
            grid: int = 0,
            data: bytes = b"",
            how: bytes = b"",
        ) -> tuple[str, bytes]:
            start = launcher(BUILDS[name][0])
            program = programs[name].result()
            (at / "in").write_bytes(given)
            (at / "in.data").write_bytes(data)
            (at / "in.how").write_bytes(how)
            (at / "out").write_bytes(b"")
            command = [*start, program, str(at / "in"), str(at / "out"), order, str(grid)]
            ran = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, **OPTIONS}
            )
            return (ran.stderr or "failed") if ran.returncode else "", (at / "out").read_bytes()

        yield run_
        pool.shutdown(cancel_futures=True)


# --- tests ---------------------------------------------------------------------------------------

# All laws in one order, and if there is time all types; some in the others. Blocks are what may come in
# another order: the threads of a fill ask nothing of each other.
TWO = (torch.float32, torch.bfloat16)
ORDERS = [
    ("fill", "1", 3, LAWS, TWO),
    ("fill", "reverse", 1000, LAWS[1:3], TWO),
    pytest.param("fill", "forward", 1, LAWS[1:3], TWO, marks=pytest.mark.slow),
    pytest.param("fill", "2", 7, LAWS[1:3], TWO, marks=pytest.mark.slow),
    pytest.param("fill, all types", "1", 3, LAWS, laws.WRITTEN, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("program", "order", "grid", "some", "dtypes"), ORDERS)
def test_every_window_in_any_order(
    run: Run,
    program: str,
    order: str,
    grid: int,
    some: tuple[Law, ...],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    work = fills(tuple(KINDS), some, dtypes)
    said, got = run(program, work.given, order, grid)
    assert not said
    assert got == work.expected


def test_windows_by_threads_at_once(run: Run) -> None:
    kinds = ("whole tiles", "odd start and length", "misaligned rows", "transposed")
    work = fills(kinds, LAWS[1:2], (torch.float32, torch.bfloat16))
    said, got = run("fill, TSan", work.given, "threads", 2)
    assert not said
    assert got == work.expected


@pytest.mark.parametrize("order", ["forward", "reverse", "1", "2", "threads"])
def test_barriers_and_shuffles(run: Run, order: str) -> None:
    work = sums(3)
    said, got = run("sum, TSan" if order == "threads" else "sum", work.given, order, 3)
    assert not said
    assert got == work.expected


@pytest.mark.slow  # the higher ones come with these, and are compared with the same
@pytest.mark.parametrize(
    ("program", "order", "dtypes", "large"),
    [
        ("moments", "forward", TWO, False),
        ("moments", "reverse", TWO, False),
        ("moments", "1", TWO, True),
        ("moments, all types", "forward", laws.DTYPES, False),
    ],
)
def test_moments_in_any_order_are_those_of_gpus(
    run: Run, program: str, order: str, dtypes: tuple[torch.dtype, ...], large: bool
) -> None:
    work = readings(dtypes, large)
    said, got = run(program, work.given, order, data=work.data)
    assert not said
    assert got == work.expected


def test_moments_by_threads_at_once(run: Run) -> None:
    work = readings((torch.float32,), few=True)
    said, got = run("moments, TSan", work.given, "threads", data=work.data)
    assert not said
    assert got == work.expected


@pytest.mark.slow  # PTX is run always (test_ptx_counts.py)
@pytest.mark.parametrize(
    ("program", "order"), [("counts", "forward"), ("counts", "1"), ("counts, TSan", "threads")]
)
@pytest.mark.parametrize(
    ("counting", "behind"), [(AT_ONCE, False), (BEHIND, True), (BY_CHANNEL, True)]
)
def test_counts_in_any_order(
    run: Run, program: str, order: str, counting: Counting, behind: bool
) -> None:
    work = counts(counting, behind, TWO if program == "counts" else TWO[:1])
    said, got = run(program, work.given, order, behind, work.data, as_bytes(counting))
    assert not said
    assert got == work.expected


ANY = ("forward", "reverse", "1")


@pytest.mark.parametrize(
    ("program", "orders", "dtypes", "large"),
    [
        ("higher", ANY, TWO, False),
        ("higher", ("1",), TWO, True),
        pytest.param("higher", ANY, TWO, True, marks=pytest.mark.slow),
        ("higher, TSan", ("threads",), (torch.float32,), False),
        pytest.param("higher, all types", ("forward",), laws.DTYPES, True, marks=pytest.mark.slow),
    ],
)
def test_higher_moments_in_any_order(
    run: Run, program: str, orders: Sequence[str], dtypes: tuple[torch.dtype, ...], large: bool
) -> None:
    work = readings(dtypes, large, few="TSan" in program)
    outputs = [run(program, work.given, order, data=work.data) for order in orders]
    said, got = outputs[0]
    assert not said
    assert all(output == ("", got) for output in outputs)
    found = np.frombuffer(got).reshape(2, -1, ALL_FIELDS)
    assert found[:, :, :FIELDS].tobytes() == work.expected
    for each in found:
        assert higher_near(torch.from_numpy(each.copy()), work.higher)


@pytest.mark.parametrize("name", cases(MISTAKES, ALWAYS))
def test_what_becomes_of_a_mistake(run: Run, name: str) -> None:
    mistake = MISTAKES[name]
    if "-mfma" in mistake.flags and "fma" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no fma")
    law = LAWS[laws.CODES[mistake.law.lower()]]
    if mistake.file in (MEASURING, ROWS):
        work = readings((torch.float32,), few=True)
    else:
        work = sums(1) if mistake.file == SUM else fills((mistake.kind,), (law,), (torch.float32,))
    grid = 2 if mistake.file != SUM else 1
    said, got = run(name, work.given, mistake.order, grid, work.data)
    if mistake.seen not in (OTHER_BITS, NOTHING):
        assert mistake.seen in said
        return
    assert not said
    assert len(got) == len(work.expected)
    assert (got == work.expected) == (mistake.seen == NOTHING)
