"""Builds fastinit._native: setuptools drives CMakeLists.txt with Ninja.

Environment variables:
    FASTINIT_NATIVE      AUTO (default): build it, or install pure Python where there is no C++
                         compiler; ON: build it or fail; OFF: pure Python. A build that a compiler
                         refuses always fails.
    FASTINIT_CUDA        AUTO (default): with CUDA where nvcc is found; ON: with it or fail; OFF.
    FASTINIT_CUDA_ARCHS  compute capabilities, as in "80;90" (default: 80, 90, 100 and 120, as far
                         as nvcc knows them); PTX of the newest is added, and of those that are
                         followed by "+PTX".
    CXX                  the C++ compiler (default: c++, g++ or clang++, the first that is found; on
                         Windows clang++, LLVM's: cl does not know the kernels' vector types).
    ARCHFLAGS            on macOS, "-arch arm64" or "-arch x86_64" (default: this Python's machine); not
                         both, of which pip needs two wheels.
    CMAKE_ARGS           further arguments for CMake, as scikit-build has them.
    FASTINIT_ADDRESS     where the repository is public, as in "https://github.com/owner/fastinit": links
                         of the description that an index shows lead there, to the version's tag, and the
                         project has URLs. Without it (default) what they link is text.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from sysconfig import get_platform

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
COMPILERS = ("clang++",) if sys.platform == "win32" else ("c++", "g++", "clang++")
MISSING = "_native_missing.txt"  # stands in for the module and says why; fastinit.info() shows it


def choice(name: str) -> str:
    """The switch ``name`` of the environment: AUTO, ON or OFF."""
    value = os.environ.get(name, "AUTO")
    if value not in ("AUTO", "ON", "OFF"):
        raise SystemExit(f"{name} must be AUTO, ON or OFF, but got {value!r}")
    return value


def cuda_archs() -> list[str]:
    """The compute capabilities asked for; empty: CMakeLists.txt's own."""
    value = os.environ.get("FASTINIT_CUDA_ARCHS", "")
    archs = re.split(r"[;,\s]+", value.strip()) if value.strip() else []
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?(\+PTX)?", arch):
            raise SystemExit(
                f"FASTINIT_CUDA_ARCHS must be compute capabilities such as 80;90, but got {value!r}"
            )
    return archs


def compiler() -> str | None:
    """The C++ compiler, None where there is none. One named by CXX has to be there."""
    if named := os.environ.get("CXX"):
        if shutil.which(named.split()[0]) is None:
            raise SystemExit(f"CXX={named!r} was not found")
        return named
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def mac_architecture() -> str:
    """The one that ARCHFLAGS asks for, as cibuildwheel does; else the machine's."""
    flags = os.environ.get("ARCHFLAGS", "")
    asked = re.findall(r"-arch\s+(\S+)", flags) or [platform.machine()]
    if len(asked) > 1:
        raise SystemExit(f"ARCHFLAGS must name one architecture, for one wheel, but got {flags!r}")
    return asked[0]


def tool(name: str) -> str:
    """The program that the Python package ``name`` brings, else the one on PATH."""
    try:
        package = import_module(name)
    except ImportError:
        folders = []
    else:
        folders = [package.CMAKE_BIN_DIR if name == "cmake" else package.BIN_DIR]
    path = shutil.which(name, path=os.pathsep.join(folders)) or shutil.which(name)
    if path is None:
        raise CompileError(f"{name} was not found: pip install {name}")
    return path


NATIVE, CUDA, CUDA_ARCHS = choice("FASTINIT_NATIVE"), choice("FASTINIT_CUDA"), cuda_archs()
MAC = mac_architecture() if sys.platform == "darwin" else ""
if MAC and get_platform().endswith("universal2"):  # the Python's, not the wheel's
    os.environ["_PYTHON_HOST_PLATFORM"] = get_platform().replace("universal2", MAC)


def why_pure() -> str:
    """Why no native module will be built; empty if one will be."""
    if NATIVE == "OFF":
        return "FASTINIT_NATIVE=OFF when fastinit was installed"  # begins as slow.UNWANTED does
    if compiler() is None:
        return f"no C++ compiler ({' or '.join(COMPILERS)}) when fastinit was installed"
    return ""


def address() -> str:
    """The repository's public address; empty if it has none."""
    value = os.environ.get("FASTINIT_ADDRESS", "")
    if value and not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", value):
        raise SystemExit(
            "FASTINIT_ADDRESS must be a repository's, such as https://github.com/owner/fastinit, "
            f"but got {value!r}"
        )
    return value


def description(version: str) -> str:
    """The README for an index page, on which nothing lies beside it."""
    files = f"{address()}/blob/v{version}/" if address() else ""

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        return f"[{text}]({files}{target})" if files else text

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(?<!!)\[([^\[\]]+)\]\(([^()\s]+)\)", link, readme)


def urls() -> dict[str, str]:
    """The project's, on an index page."""
    if not address():
        return {}
    pages = {"Documentation": "/tree/HEAD/docs", "Changelog": "/blob/HEAD/CHANGELOG.md"}
    return {"Source": address(), **{name: address() + page for name, page in pages.items()}}


def local_version() -> str:
    """What the version of a built package ends in. pip shows nothing else of a build that succeeds."""
    if "sdist" in sys.argv or not why_pure():
        return ""
    return "+pure.python" if NATIVE == "OFF" else "+slow.no.compiler"


class CMakeExtension(Extension):
    """An extension whose sources CMakeLists.txt lists."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class BuildExt(build_ext):
    """Builds a CMakeExtension, or leaves a file that says why there is none."""

    missing = ""

    def build_extension(self, ext: Extension) -> None:
        self.missing = why_pure()
        if self.missing and NATIVE == "ON":
            raise CompileError(f"FASTINIT_NATIVE=ON cannot be served: {self.missing}")
        ext.optional = bool(self.missing)  # nothing else may skip it
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.missing:
            self.warn(f"fastinit._native is not built: {self.missing}")
        else:
            self.copy_file(self.cmake() / target.name, target)
        self.leave_one(target)

    def copy_extensions_to_source(self) -> None:  # for editable installs and --inplace
        super().copy_extensions_to_source()
        for ext in self.extensions:
            self.leave_one(ROOT / self.get_ext_filename(self.get_ext_fullname(ext.name)))

    def leave_one(self, target: Path) -> None:
        """Remove what a past build left: the module, or the file that says why there is none."""
        note = target.with_name(MISSING)
        if self.missing:
            target.unlink(missing_ok=True)
            note.write_text(self.missing + "\n")
        else:
            note.unlink(missing_ok=True)

    def cmake(self) -> Path:
        """Configure and build incrementally; returns the folder with the module.

        The folder is kept, but not what a cache would remember of a build environment that pip
        has since deleted: all that comes from there is named anew each time.
        """
        try:
            import pybind11
        except ImportError as error:
            raise CompileError("pybind11 was not found: pip install pybind11") from error

        cxx = compiler()
        assert cxx is not None  # build_extension has looked
        folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{self.plat_name}"
        cmake = tool("cmake")
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "FASTINIT_VERSION": self.distribution.get_version(),
            "FASTINIT_CUDA": CUDA,
            "FASTINIT_CUDA_ARCHS": ";".join(CUDA_ARCHS),
            **({"CMAKE_OSX_ARCHITECTURES": MAC} if MAC else {}),
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        # A cache of another compiler or generator cannot be changed, only dropped.
        made_by, maker = folder / "made_by.txt", f"Ninja\n{cxx}\n{ROOT}\n"
        if not made_by.exists() or made_by.read_text() != maker:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            made_by.write_text(maker)
        further = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *defines, *further],
            [cmake, "--build", str(folder)],
        ):
            try:
                subprocess.run(command, check=True, env={**os.environ, "CXX": cxx})
            except subprocess.CalledProcessError as error:
                raise CompileError(
                    "building fastinit._native failed, see above; "
                    "FASTINIT_NATIVE=OFF installs the pure Python backends only"
                ) from error
        return folder


class BuildPy(build_py):
    """Copies the modules there are, to where there are no others."""

    def run(self) -> None:
        if not self.editable_mode:  # a past build may have left modules that were deleted since
            for package in self.packages:
                shutil.rmtree(Path(self.build_lib, *package.split(".")), ignore_errors=True)
        super().run()


class EggInfo(egg_info):
    """Marks the version of what is built, also where a source distribution's setup.cfg has no mark."""

    def finalize_options(self) -> None:
        self.tag_build = local_version()
        about = self.distribution.metadata
        about.long_description = description(about.version)
        super().finalize_options()


setup(
    long_description=" ",  # EggInfo knows the version
    long_description_content_type="text/markdown",
    project_urls=urls(),
    ext_modules=[CMakeExtension("fastinit._native")],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy, "egg_info": EggInfo},
)
