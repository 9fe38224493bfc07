"""Compiles csrc/cuda/fill.cuh to PTX, also with a mistake put in, and launches it in ptxrun."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ptxrun

from fastinit.backends import native

CSRC = Path(__file__).parents[1] / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ARCHS = (80, 90, 100, 120)
if NVCC:  # those that it knows, as in CMakeLists.txt
    _known = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True).stdout
    ARCHS = tuple(arch for arch in ARCHS if f"compute_{arch}\n" in _known)
PARCEL = 3840 * 8  # bytes; pieces.h
STAGING = 0x6EEE_0000_0000


def flags() -> list[str]:
    """The options that CMakeLists.txt gives to nvcc."""
    text = (CSRC.parent / "CMakeLists.txt").read_text()
    found = re.search(r"COMPILE_LANGUAGE:CUDA>:(.*?)>", text)
    assert found
    return found[1].split()


def compile_(source: Path, arch: int, *more: str) -> str:
    """The PTX of a .cu file."""
    command = [NVCC, "-std=c++17", *flags(), *more, "-ptx", f"-arch=compute_{arch}"]
    ptx = source.with_suffix(".ptx")  # not standard output: with -t 0, nvcc would wait for ever
    done = subprocess.run([*command, source, "-o", ptx], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ptx.read_text()


def fill_ptx(folder: Path, arch: int, csrc: Path = CSRC, *more: str) -> str:
    """The PTX of the fill kernels, compiled in an empty folder."""
    source = folder / "fill.cu"
    source.write_text(f'#include "{csrc}/cuda/fill.cuh"\n')
    return compile_(source, arch, *more)


def mutant(
    folder: Path, only: tuple[str, str], edits: Sequence[tuple[str, str, str]], *more: str
) -> str:
    """The PTX for compute_90 with texts (file, old, new) replaced.

    The kernel is cut down to the one type and law of ``only``, so that it takes a second.
    """
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("*.cpp"))
    for name, old, new in edits:
        text = (csrc / name).read_text()
        assert old in text, f"{name} no longer says {old!r}"
        (csrc / name).write_text(text.replace(old, new))
    kernel, (dtype, law) = csrc / "cuda/fill.cuh", only
    text, switches = kernel.read_text(), 0
    for what, one in (("law", f"fill_as<T, {law}>"), ("dtype", f"fill_of<{dtype}>")):
        switch = rf"  switch \(piece\.{what}\) \{{.*?\n  \}}"
        text, n = re.subn(switch, f"  return {one}(piece, tile);", text, flags=re.DOTALL)
        switches += n
    assert switches == 2
    kernel.write_text(text)
    return fill_ptx(folder, 90, csrc, *more)


class Kernels:
    """fill_many and stage of one PTX text."""

    def __init__(self, text: str) -> None:
        self.fill, self.stage = (ptxrun.Program(text, e) for e in ("fill_many", "stage"))

    def fill_many(
        self, memory: ptxrun.Memory, requests: Sequence[Any], grid: int, first: int | None = None
    ) -> int:
        """What fill_many_cuda in launch.cu does; or only the thread blocks from ``first`` on.

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
        memory = ptxrun.Memory()
        memory.add(STAGING, len(pieces))
        for at in range(0, len(pieces), PARCEL):
            parcel = pieces[at : at + PARCEL]
            arguments = (parcel.ljust(PARCEL, b"\0"), STAGING + at, len(parcel) // 8)
            ptxrun.launch(self.stage, memory, arguments, 1, threads)
        return memory[STAGING]
