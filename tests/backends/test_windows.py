"""The kernels for Windows without one: by clang with MinGW's C library, and under Wine where that is.

Windows' own libraries are not to be had here: what compiles with them is not shown.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from kernel_requests import KINDS, LAWS, fills, known_answers, measured, readings

from benchmarks import asm
from fastinit.backends import choose as backends
from fastinit.stream import laws
from fastinit.stream.reference_moments import ALL_FIELDS

COMPILER = asm.clang()
WINE = shutil.which("wine64", path=f"{os.environ.get('PATH', '')}:/usr/lib/wine")  # Debian's place
MISSING = (
    ("" if COMPILER else "needs clang++ (make windows)")
    or ("" if shutil.which("x86_64-w64-mingw32-g++-posix") else "needs MinGW (make windows)")
    or ("" if asm.tool("cmake") and asm.tool("ninja") else "needs cmake and ninja")
)
pytestmark = [pytest.mark.compiler, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CMake's."""
    return asm.configured(
        tmp_path_factory.mktemp("windows"),
        str(COMPILER),
        CMAKE_SYSTEM_NAME="Windows",
        CMAKE_SYSTEM_PROCESSOR="AMD64",
        CMAKE_CXX_COMPILER_TARGET="x86_64-w64-windows-gnu",
    )


def test_all_sources_pass_the_front_end(folder: Path) -> None:
    commands = json.loads((folder / "compile_commands.json").read_text())
    assert {"isa.cpp", "fill_avx512.cpp", "fill_baseline.cpp"} <= {
        Path(command["file"]).name for command in commands
    }
    for command in commands:
        words = [*command["command"].split(), "-fsyntax-only"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(WINE is None, reason="needs Wine (Debian's wine64)")
def test_bits(folder: Path, tmp_path: Path) -> None:
    """Known answers, windows and moments, of each build that runs on this machine."""
    if not backends.native.module:
        pytest.skip("needs the native module, whose values are compared")
    program = asm.build(folder) / "program.exe"
    environment = {**os.environ, "WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all"}

    def run(*arguments: str) -> bytes:
        command = [str(WINE), str(program), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    known, answers = zip(*known_answers())
    windows = fills(tuple(KINDS), LAWS, (torch.float32, torch.bfloat16))
    work, asked = readings(laws.DTYPES, large=True)
    cases = (
        ("fill", b"".join(known), b"", b"".join(answers)),
        ("fill", windows.given, b"", windows.expected),
        ("higher", work.given, work.data, measured(asked, ALL_FIELDS)),
    )
    builds = run().decode().split()
    assert "baseline" in builds
    for build in builds:
        for what, given, data, expected in cases:
            (tmp_path / "in").write_bytes(given)
            (tmp_path / "in.data").write_bytes(data)
            run("in", "out", build, what)
            same = (tmp_path / "out").read_bytes() == expected  # without pytest's account of both
            assert same, (build, what)
