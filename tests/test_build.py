"""The build: what the native module exports and needs, and the switches of setup.py."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fastinit

ROOT = Path(__file__).resolve().parent.parent


def symbols(*options: str) -> list[str]:
    """Names in the native module's dynamic symbol table."""
    spec = importlib.util.find_spec("fastinit._native")
    if spec is None or spec.origin is None:
        pytest.skip("the native module is not built")
    if shutil.which("nm") is None:
        pytest.skip("nm is not there")
    command = ["nm", "-D", "-P", *options, spec.origin]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in listing.splitlines()]


def setup(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("setuptools", minversion="77")
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def pyproject() -> dict:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_exports_the_init_function_only():
    assert symbols("--defined-only") == ["PyInit__native"]


def test_needs_nothing_of_torch():
    needed = symbols("--undefined-only")
    assert needed
    # c10, at and torch are libtorch's C++ namespaces, mangled with their lengths.
    torch_symbols = [name for name in needed if re.match(r"_ZNK?(3c10|2at|5torch)", name)]
    assert not torch_symbols
    assert not [name for name in needed if name.startswith(("aoti_torch", "THP"))]


def test_building_needs_no_torch():
    names = {
        re.split(r"[^\w-]", requirement)[0]
        for requirement in pyproject()["build-system"]["requires"]
    }
    assert names == {"setuptools", "cmake", "ninja", "pybind11"}


def test_one_version():
    version = pyproject()["project"]["version"]
    assert metadata.version("fastinit") == version
    assert fastinit.__version__ == version
    if importlib.util.find_spec("fastinit._native") is not None:
        from fastinit import _native

        assert _native.__version__ == version


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FASTINIT_CUDA", "maybe"),
        ("FASTINIT_CUDA", ""),
        ("FASTINIT_NATIVE", "on"),
        ("FASTINIT_CUDA_ARCHS", "80;ampere"),
    ],
)
def test_an_impossible_switch_is_an_error(name, value):
    result = setup("--version", **{name: value})
    assert result.returncode != 0
    assert result.stderr.startswith(f"{name} must be ")
    assert repr(value) in result.stderr


def test_no_compiler_leaves_the_reason(tmp_path):
    arguments = ("build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path / "t"))
    result = setup(*arguments, PATH=str(tmp_path), CXX="", FASTINIT_NATIVE="AUTO")
    assert result.returncode == 0, result.stderr
    assert "no C++ compiler" in (tmp_path / "fastinit" / "_native_missing.txt").read_text()
    result = setup(*arguments, PATH=str(tmp_path), CXX="", FASTINIT_NATIVE="ON")
    assert result.returncode != 0
    assert "FASTINIT_NATIVE=ON cannot be served" in result.stderr


def test_a_named_compiler_has_to_be_there(tmp_path):
    result = setup("build_ext", "--build-lib", str(tmp_path), CXX="no-such-compiler")
    assert result.returncode != 0
    assert "CXX='no-such-compiler' was not found" in result.stderr
