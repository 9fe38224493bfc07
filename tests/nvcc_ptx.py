"""Compiles csrc/cuda to PTX, also with a mistake put in, and launches the fill kernels in ptxrun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import ptxrun
import pytest
from ptx_memory import Memory
from ptx_text import Program
from selection import asked, cases

from benchmarks import sass
from fastinit.backends.choose import native

CSRC = Path(__file__).parents[1] / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ARCHS: tuple[int, ...] = (80, 90, 100, 120)
if NVCC:  # those that it knows, as in CMakeLists.txt
    _known = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True).stdout
    ARCHS = tuple(arch for arch in ARCHS if f"compute_{arch}\n" in _known)
# Below sm_100 the kernels' text is one, from there on another; what `make test` builds has both's PTX.
each_arch = pytest.mark.parametrize("arch", cases(ARCHS, {90, 100} & set(ARCHS)))
KERNELS = {
    "fill.cuh": ("fill_many", "stage"),
    "moments.cuh": ("measure", "merge_parts"),
    "higher.cuh": ("sum_powers", "merge_powers"),
    "counts.cuh": ("measure_and_count", "merge_parts", "count_values"),
}
BESIDE = {"counts.cuh": "moments.cuh"}
"""The header with the rest of these."""
PARCEL = 8 * native.module.PARCEL if native.module else 0  # bytes
STAGING = 0x6EEE_0000_0000


def flags() -> list[str]:
    """The options that CMakeLists.txt gives to nvcc."""
    text = (CSRC.parent / "CMakeLists.txt").read_text()
    found = re.search(r"COMPILE_LANGUAGE:CUDA>:(.*?)>", text)
    assert found
    return found[1].split()


def compile_(source: Path, arch: int, *more: str) -> str:
    """The PTX of a .cu file."""
    command = [str(NVCC), "-std=c++17", *flags(), *more, "-ptx", f"-arch=compute_{arch}"]
    to = source.with_suffix(".ptx")  # not standard output: with -t 0, nvcc would wait for ever
    done = subprocess.run([*command, source, "-o", to], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to.read_text()


def ptx(folder: Path, arch: int, header: str, csrc: Path = CSRC, *more: str) -> str:
    """The PTX of the kernels in a header of csrc/cuda, compiled in an empty folder."""
    source = folder / "kernels.cu"
    headers = [header, *([BESIDE[header]] if header in BESIDE else [])]
    source.write_text("".join(f'#include "{csrc}/cuda/{name}"\n' for name in headers))
    return compile_(source, arch, *more)


@cache
def embedded() -> dict[int, list[str]]:
    """The PTX in the native module by architecture: a text for each source. None where the module is
    older than its text."""
    sources = [CSRC.parent / "CMakeLists.txt", *CSRC.rglob("*.*")]
    if sass.missing() or any(
        source.stat().st_mtime > Path(native.module.__file__).stat().st_mtime for source in sources
    ):
        return {}
    listed = re.split(r"Fatbin \w+ code:", sass.dump("-ptx"))
    found = ((re.search(r"(?m)^\.target sm_(\d+)", text), text) for text in listed)
    by_arch: dict[int, list[str]] = {}
    for target, text in found:
        if target:
            by_arch.setdefault(int(target[1]), []).append(text[text.index(".version") :])
    return by_arch


def text_of(folder: Path, arch: int, header: str) -> str:
    """The PTX of a header of csrc/cuda: the native module's, or what nvcc takes most of a minute for."""
    wanted = set(KERNELS[header])
    for texts in (embedded().get(arch, []), ()):  # of an architecture some sources may have no PTX
        before, ours = "", {}
        for text in texts or [ptx(folder, arch, header)]:
            first, *kernels = re.split(r"(?m)^(?=\.visible \.entry)", text)
            named = [re.search(r"entry _Z\d+([a-z_]+)", kernel) for kernel in kernels]
            some = {name[1]: k for k, name in zip(kernels, named) if name and name[1] in wanted}
            if some:  # what stands before the first, once: .version, .target, .address_size
                before += (
                    re.sub(r"(?m)^\.(version|target|address_size) .*\n", "", first)
                    if before
                    else first
                )
                ours.update(some)
        if ours.keys() == wanted:
            return before + "".join(ours.values())
    raise AssertionError(f"{header} lacks {wanted - ours.keys()}")


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Compilers, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def texts(
    request: pytest.FixtureRequest,
    pool: ThreadPoolExecutor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, Future[str]]:
    """The PTX of the module's HEADER for each architecture that a test of it asks for."""
    return {
        arch: pool.submit(
            *(text_of, tmp_path_factory.mktemp(f"compute_{arch}"), arch, request.module.HEADER)
        )
        for arch in ARCHS
        if arch in (asked(request, "arch") or {90})
    }


@pytest.fixture(scope="module")
def mutants(
    request: pytest.FixtureRequest,
    pool: ThreadPoolExecutor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Future[str]]:
    """The PTX with each of the module's MISTAKES that a test of it asks for."""
    return {
        name: pool.submit(mistake.compiled, tmp_path_factory.mktemp("mutant"))
        for name, mistake in request.module.MISTAKES.items()
        if name in asked(request, "name")
    }


def edited(folder: Path, edits: Sequence[tuple[str, str, str]]) -> Path:
    """A copy of csrc in which texts (file, old, new) are replaced."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("*.cpp"))
    for name, old, new in edits:
        text = (csrc / name).read_text()
        assert old in text, f"{name} no longer says {old!r}"
        (csrc / name).write_text(text.replace(old, new))
    return csrc


def without_switch(file: Path, on: str, instead: str) -> None:
    """Cuts a kernel down to one type or law, so that compiling it takes a second."""
    switch = rf"  switch \({re.escape(on)}\) \{{.*?\n  \}}"
    text, n = re.subn(switch, f"  return {instead};", file.read_text(), flags=re.DOTALL)
    assert n == 1
    file.write_text(text)


def mutant(
    folder: Path,
    only: tuple[str, str],
    edits: Sequence[tuple[str, str, str]],
    arch: int,
    *more: str,
) -> str:
    """The PTX with edits, and cut down to the one type and law of ``only``."""
    csrc, (dtype, law) = edited(folder, edits), only
    kernel = csrc / "cuda/fill.cuh"
    without_switch(kernel, "piece.law", f"fill_as<T, {law}>(piece, tile)")
    without_switch(kernel, "piece.dtype", f"fill_of<{dtype}>(piece, tile)")
    return ptx(folder, arch, "fill.cuh", csrc, *more)


class Kernels:
    """fill_many and stage of one PTX text."""

    def __init__(self, text: str) -> None:
        self.fill, self.stage = (Program(text, e) for e in ("fill_many", "stage"))

    def fill_many(
        self, memory: Memory, requests: Sequence[Any], grid: int, first: int | None = None
    ) -> int:
        """What fill_many_cuda in csrc/cuda does; or only the thread blocks from ``first`` on.

        Returns the number of tiles.
        """
        module: Any = native.module
        pieces = module.Pieces(requests)
        count, data = len(pieces), bytes(pieces)
        few, many, threads = b"", 0, module.THREADS
        if count <= module.FEW:
            few = data
        else:
            data, many = self.staged(data, threads), STAGING
            memory.add(STAGING, data)
        size = module.FEW * (len(data) // count)
        some = None if first is None else range(first, grid)
        arguments = (few.ljust(size, b"\0"), many, count, pieces.tiles)
        ptxrun.launch(self.fill, memory, arguments, grid, threads, some)
        return int(pieces.tiles)

    def staged(self, pieces: bytes, threads: int) -> bytes:
        """The pieces as the stage kernel copies them to memory."""
        memory = Memory()
        memory.add(STAGING, len(pieces))
        for at in range(0, len(pieces), PARCEL):
            parcel = pieces[at : at + PARCEL]
            arguments = (parcel.ljust(PARCEL, b"\0"), STAGING + at, len(parcel) // 8)
            ptxrun.launch(self.stage, memory, arguments, 1, threads)
        return memory[STAGING]
