"""The build: what the native module exports and needs, and the switches of setup.py."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from email import message_from_string
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


def setup(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    try:  # not imported: it would stay on this process's sys.path
        found = int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        found = 0
    if found < 77:
        pytest.skip("setuptools 77 is not there")
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def unpacked(tmp_path: Path) -> Path:
    """The source distribution of this checkout, unpacked."""
    outputs = ("--dist-dir", str(tmp_path / "dist"))
    result = setup("egg_info", "--egg-base", str(tmp_path), "sdist", *outputs)
    assert result.returncode == 0, result.stderr
    [archive] = (tmp_path / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "sdist", filter="data")
    return tmp_path / "sdist" / archive.name.removesuffix(".tar.gz")


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


def test_the_cpu_builds_in_use_are_those_that_the_system_names():
    """CPUID and XCR0, as csrc/cpu/isa.cpp reads them, against the kernel's own reading."""
    native = pytest.importorskip("fastinit._native")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("no /proc/cpuinfo of x86-64")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    avx2 = {"avx", "avx2", "fma", "f16c"} <= flags
    avx512 = avx2 and {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags
    assert native.isas() == {"avx512": avx512, "avx2": avx2, "baseline": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiler", ["g++-10", "g++-11", "g++-12", *(f"clang++-{n}" for n in range(13, 20))]
)
def test_older_compilers_build_the_kernels(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not there")
    build = ("build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path / "t"))
    source = unpacked(tmp_path)  # whose build folder is its own
    result = setup(*build, cwd=source, CXX=compiler, FASTINIT_CUDA="OFF")
    assert result.returncode == 0, result.stderr
    assert not warnings_of(source, result.stdout + result.stderr)


def warnings_of(source: Path, said: str) -> list[str]:
    """What a compiler warns of, but for what lies in others' headers."""
    found = re.findall(r"^(.*warning:.*)$", said, re.MULTILINE)
    places = [re.match(r"(/[^:]+):\d+", line) for line in found]
    return [
        line
        for line, place in zip(found, places)
        if place is None or Path(place[1]).resolve().is_relative_to(source.resolve())
    ]


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("{source}/csrc/cpu/fill.h:12:3: warning: unused variable 'a' [-Wunused-variable]", True),
        ("{source}/csrc/../csrc/twin.h:7: warning: #warning seen", True),
        ("clang++: warning: argument unused during compilation: '-mfma'", True),
        ("csrc/module.cpp:3:1: warning: of a place that is relative", True),
        (
            "/usr/include/c++/12/bits/stl_tempbuf.h:263:8: warning: 'get_temporary_buffer<int>'",
            False,
        ),
        ("{source}-of-another/a.h:1:1: warning: unused", False),
        ("/usr/lib/gcc/include/avx512fintrin.h:206:11: note: declared here", False),
    ],
)
def test_warnings_are_ours_unless_they_lie_in_others_headers(line, ours, tmp_path):
    line = line.format(source=tmp_path)
    assert (
        warnings_of(tmp_path, f"In file included from x.cpp:1:\n{line}\n  12 | a") == [line] * ours
    )


def test_building_needs_no_torch():
    names = {
        re.split(r"[^\w-]", requirement)[0]
        for requirement in pyproject()["build-system"]["requires"]
    }
    assert names == {"setuptools", "cmake", "ninja", "pybind11"}


def test_one_version():
    version = pyproject()["project"]["version"]
    try:
        there = metadata.version(pyproject()["project"]["name"])
    except metadata.PackageNotFoundError:
        there = fastinit.__version__  # a source folder that was built, but not installed
    assert fastinit.__version__ == there
    assert there.partition("+")[0] in (version, "unknown")
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


@pytest.mark.parametrize(
    ("flags", "refused"), [("", False), ("-arch arm64", False), ("-arch x86_64 -arch arm64", True)]
)
def test_a_mac_gets_one_architecture(flags, refused):
    code = (
        "import runpy, sys, sysconfig, setuptools; sysconfig.get_config_vars(); "
        "sys.platform = 'darwin'; sys.argv = ['setup.py', '--version']; sys.path.insert(0, ''); "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "ARCHFLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == refused, done.stderr
    assert ("ARCHFLAGS must name one architecture" in done.stderr) == refused


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


def version_of(tmp_path: Path, *commands: str, **variables: str) -> str:
    """The version of what a command makes, as pip shows it."""
    result = setup("egg_info", "--egg-base", str(tmp_path), *commands, **variables)
    assert result.returncode == 0, result.stderr
    [about] = tmp_path.glob("*.egg-info/PKG-INFO")
    return re.search(r"^Version: (.*)$", about.read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize("where", ["", "https://example.org/owner/fastinit"])
def test_no_link_of_the_description_leads_to_a_place_beside_it(where, tmp_path):
    result = setup("egg_info", "--egg-base", str(tmp_path), FASTINIT_ADDRESS=where)
    assert result.returncode == 0, result.stderr
    [about] = tmp_path.glob("*/PKG-INFO")
    known = message_from_string(about.read_text(encoding="utf-8"))
    text, version = known.get_payload(), known["Version"].partition("+")[0]
    assert known["Description-Content-Type"] == "text/markdown"
    assert text.strip().startswith("# fastinit")
    links = re.findall(r"\]\(([^)]+)\)", text)
    readme = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(readme) > 15
    assert links == ([f"{where}/blob/v{version}/{link}" for link in readme] if where else [])
    assert [
        url.partition(", ")[2].startswith(where) for url in known.get_all("Project-URL", [])
    ] == ([True] * 3 if where else [])


@pytest.mark.parametrize(
    "where", ["github.com/owner/fastinit", "https://example.org", "http://x/y", "a b"]
)
def test_an_address_that_is_none_is_refused(where):
    result = setup("--version", FASTINIT_ADDRESS=where)
    assert result.returncode != 0
    assert "FASTINIT_ADDRESS must be a repository's" in result.stderr
    assert repr(where) in result.stderr


def test_the_version_says_that_nothing_was_built(tmp_path):
    """pip shows no more than the version of a build that succeeds."""
    version = pyproject()["project"]["version"]
    nowhere = {"PATH": str(tmp_path), "CXX": ""}
    assert version_of(tmp_path, **nowhere) == f"{version}+slow.no.compiler"
    assert version_of(tmp_path, FASTINIT_NATIVE="OFF") == f"{version}+pure.python"
    assert version_of(tmp_path, CXX=sys.executable) == version  # a program that is there
    outputs = ("sdist", "--dist-dir", str(tmp_path / "dist"))
    assert version_of(tmp_path, *outputs, **nowhere) == version  # sources are for any machine


def test_the_source_distribution_holds_every_file(tmp_path):
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    source = unpacked(tmp_path)
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert {name for name in files if not (source / name).exists()} == {".gitignore"}


def test_a_deleted_module_does_not_stay_in_later_builds(tmp_path):
    """pip builds in the source folder, whose build/lib is that of the last build."""
    left = [tmp_path / "lib" / "fastinit" / name for name in ("deleted.py", "_native_old.so")]
    left[0].parent.mkdir(parents=True)
    for path in left:
        path.touch()
    outputs = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    result = setup("build", *outputs, FASTINIT_NATIVE="OFF")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "lib" / "fastinit" / "init.py").exists()
    assert not any(path.exists() for path in left)
