"""csrc/cuda without a GPU: its text, compiled for the CPU, run under sanitizers against the reference.

tests/cpp/cuda_on_cpu.h is what the text needs of nvcc. Where it names an instruction of PTX, the plain
C++ beside it is what runs here.
"""

from __future__ import annotations

import math
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

import numpy as np
import pytest
import torch
from gpu_moments import higher_near, of_reading
from same_bits import bits, drawn, sentinel
from same_bits import reference as by_reference
from selection import asked, cases
from torch import Tensor

from fastinit.fills.operator import Window
from fastinit.statistics.reading import readings_of
from fastinit.stream import laws, reference, reference_moments
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

# --- windows -------------------------------------------------------------------------------------

TILE = 4096
KINDS: dict[str, tuple[int, Callable[[Tensor], Tensor], Window | None]] = {
    "whole tiles": (2 * TILE, lambda t: t, None),
    "a carry between tiles": (2 * TILE, lambda t: t, Window((1,), (1 << 34) - TILE)),
    "tiles with both ends": (TILE + 26, lambda t: t[5:], Window((1,), (1 << 32) + 9)),
    "odd start and length": (1490, lambda t: t[3:], None),
    "across a carry": (333, lambda t: t[1:], Window((1,), (1 << 34) - 150)),
    "far": (303, lambda t: t, Window((1,), (1 << 62) - 1001)),
    "every third element": (600, lambda t: t[1::3], None),
    "transposed": (31 * 23, lambda t: t.view(31, 23).t(), None),
    "columns of a shard": (12 * 84, lambda t: t.view(12, 84), Window((133, 1), 17)),
    "misaligned rows": (9 * 61, lambda t: t.view(9, 61)[:, 3:58], None),
    "aligned rows": (8 * 64, lambda t: t.view(8, 64)[:, 8:56], Window((64, 1), 8)),
    "a block of three dimensions": (7 * 9 * 11, lambda t: t.view(7, 9, 11)[1:6, 2:8, 3:9], None),
    "rows 2^33 apart": (5 * 40, lambda t: t.view(5, 40), Window((1 << 33, 1), 1 << 39)),
    "no neighbours": (6 * 50, lambda t: t.view(6, 50), Window((7, 1 << 34), 5)),
    "one element": (3, lambda t: t[1], None),
}
LAWS = (
    laws.uniform(-0.1, 0.3),
    laws.normal(-1.5, 0.02),
    laws.truncated_normal(0.1, 1.0, -math.inf, 9.0),
    laws.constant(0.1),
    laws.constant(math.nan),
)
SEED, STREAM = 0x9E37_79B9_7F4A_7C15, 0xF00D_0123_4567_89AB

# Request and Window as C++ lays them out.
REQUEST = np.dtype(
    [
        ("bytes", "u8"),
        ("data", "u8"),
        ("law", "i4"),
        ("dtype", "i4"),
        ("params", "f4", 10),
        *((name, "u8") for name in ("seed", "stream", "offset")),
        ("dims", "i4"),
        *((name, "i8", 8) for name in ("size", "local", "global")),
    ],
    align=True,
)


class Work(NamedTuple):
    """What a program is given, and what it has to give back."""

    given: bytes
    expected: bytes
    data: bytes = b""
    higher: Tensor = torch.empty(0)  # of moments, all fields as the reference has them


@cache
def fills(kinds: tuple[str, ...], some: tuple[Law, ...], dtypes: tuple[torch.dtype, ...]) -> Work:
    requests, expected = [], b""
    for law, dtype, kind in ((w, d, k) for w in some for d in dtypes for k in kinds):
        numel, view, window = KINDS[kind]
        base = sentinel(numel, dtype)
        tensor = view(base)
        strides, offset = window or Window(torch.empty(tensor.shape).stride())
        params = laws.kernel_params(law, dtype)
        with by_reference():
            reference.fill(tensor, law.kind, params, SEED, STREAM, strides, offset)
        expected += bits(base).numpy().tobytes()
        request = np.zeros((), REQUEST)
        request["bytes"] = base.nbytes
        request["data"] = tensor.storage_offset() * tensor.itemsize
        request["law"], request["dtype"] = law.kind, laws.WRITTEN.index(dtype)
        request["params"] = params
        request["seed"], request["stream"], request["offset"] = SEED, STREAM, offset
        request["dims"] = tensor.dim()
        for name, values in ("size", tensor.shape), ("local", tensor.stride()), ("global", strides):
            request[name][: tensor.dim()] = values
        requests.append(request.tobytes())
    return Work(b"".join(requests), 2 * expected)


def sums(blocks: int) -> Work:
    """Floats for block_sum whose sums are exact in any order."""
    values = np.arange(blocks * 300, dtype="f4").reshape(blocks, 300) % 1009
    return Work(values.tobytes(), values.sum(1).repeat(128).tobytes())


READ = np.dtype(
    [
        *((name, "u8") for name in ("bytes", "data")),
        ("dtype", "i4"),
        ("by_column", "?"),
        ("dims", "i4"),
        *((name, "i8", 8) for name in ("size", "stride")),
    ],
    align=True,
)


def tensors(dtype: torch.dtype) -> Iterator[tuple[Tensor, int | None]]:
    """What is measured, and the dimension of its channels."""
    x = drawn(9_000, 2, seed=0, reach=12).add_(0.5).to(dtype)
    broken = x[:3000].clone()
    broken[17, 1] = math.nan
    columns = drawn(600, 35, seed=1).to(dtype)
    columns[3, 4], columns[:, 5] = math.inf, 1e4
    yield from ((x, None), (x[:0], None), (torch.zeros(77, dtype=dtype), None), (broken, None))
    yield from ((x[::3, :1], None), ((x[:2000] + 3000).contiguous(), None))
    yield from ((columns, 1), (columns[:7, 1:4], 1), (x[:50].t(), 0))


@cache
def readings(dtypes: tuple[torch.dtype, ...], large: bool = False, few: bool = False) -> Work:
    """Tensors, whole and by column, with tests/gpu_moments.py's; large ones are several tasks."""
    requests, expected, data, higher = [], b"", b"", []
    for dtype in dtypes:
        cases = list(tensors(dtype))
        if few:
            cases = [cases[0], cases[7]]
        if large:
            cases += [(drawn(270_000, seed=2).to(dtype), None)]
            cases += [(drawn(8_300, 3, seed=3).to(dtype), 1)]
        for tensor, dim in cases:
            channels = () if dim is None else (tensor.shape[dim],)
            raw = torch.empty(*channels, FIELDS, dtype=torch.float64)
            for reading in readings_of(tensor, dim, raw, []):
                request = np.zeros((), READ)
                storage = reading.tensor.untyped_storage()
                request["bytes"] = storage.nbytes()
                request["data"] = reading.tensor.storage_offset() * dtype.itemsize
                request["dtype"] = laws.WRITTEN.index(dtype)
                request["by_column"], request["dims"] = reading.by_column, len(reading.shape)
                for name, values in ("size", reading.shape), ("stride", reading.strides):
                    request[name][: len(values)] = values
                requests.append(request.tobytes())
                data += torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()
                expected += of_reading(reading).contiguous().numpy().tobytes()
                view = reading.tensor.as_strided(reading.shape, reading.strides)
                raw = reference_moments.moments(view, reading.by_column, ALL_FIELDS)
                higher.append(raw.view(-1, ALL_FIELDS))
    return Work(b"".join(requests), 2 * expected, data, torch.cat(higher))


# --- mistakes ------------------------------------------------------------------------------------

FILL, LANES, STREAM_H = "csrc/cuda/fill.cuh", "csrc/cuda/lanes_cuda.h", "csrc/stream.h"
SUM, MOMENTS = "tests/cpp/block_sum.cuh", "csrc/cuda/moments.cuh"
ROWS, HIGHER = "csrc/cuda/rows.cuh", "csrc/cuda/higher.cuh"
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
        FILL, "tile += gridDim.x", "++tile", "data race", "threads", TSAN, "whole tiles"
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
        MOMENTS,
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
    name: (m.flags, {SUM: SUM, MOMENTS: MOMENTS, ROWS: MOMENTS}.get(m.file, FILL), m)
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
    SUM: (THREADS,),
}
DEFINED = {
    FILL: (),
    MOMENTS: ("-DMOMENTS",),
    HIGHER: ("-DMOMENTS", "-DHIGHER"),
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
        mistake or all_types or kernels == SUM
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
    optional = {*MISTAKES, "moments"}
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
            name: str, given: bytes, order: str, grid: int = 0, data: bytes = b""
        ) -> tuple[str, bytes]:
            start = launcher(BUILDS[name][0])
            program = programs[name].result()
            (at / "in").write_bytes(given)
            (at / "in.data").write_bytes(data)
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
    if mistake.file in (MOMENTS, ROWS):
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
