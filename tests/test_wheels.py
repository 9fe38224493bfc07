"""Wheels: what tools/wheels.py lets pass."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tools import wheels

PACKAGE = {"fastinit/__init__.py", "fastinit/py.typed", "fastinit/_native.pyi"}
GOOD = {*PACKAGE, "fastinit/_native.cpython-311-x86_64-linux-gnu.so"}
ABOUT = {"f-0.1.dist-info/METADATA", "f-0.1.dist-info/licenses/LICENSE"}


@pytest.mark.parametrize(
    ("tag", "passes"),
    [
        ("manylinux_2_28_aarch64", True),
        ("manylinux2014_aarch64.manylinux_2_17_aarch64", True),
        ("manylinux_2_27_aarch64.manylinux_2_35_aarch64", True),
        ("manylinux_2_31_aarch64", False),
        ("manylinux_2_28_x86_64", False),
        ("linux_aarch64", False),
    ],
)
def test_a_wheel_is_for_the_machine_and_glibc_that_were_asked(tag: str, passes: bool) -> None:
    name = f"f-0.1-cp311-cp311-{tag}.whl"
    if passes:
        wheels.check_tag(name, "aarch64")
        return
    with pytest.raises(SystemExit, match=r"not for aarch64 and glibc 2\.28"):
        wheels.check_tag(name, "aarch64")


def wheel(folder: Path, names: set[str]) -> Path:
    path = folder / "f-0.1-cp311-cp311-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def test_a_wheel_has_the_package_and_nothing_else(tmp_path: Path) -> None:
    wheels.check(wheel(tmp_path, GOOD | ABOUT), PACKAGE)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (GOOD | ABOUT | {"tests/test_init.py"}, "tests/test_init.py"),
        (GOOD | ABOUT | {"csrc/stream.h"}, "csrc/stream.h"),
        (GOOD | ABOUT | {"fastinit/left.py"}, "fastinit/left.py"),
        ((GOOD | ABOUT) - {"fastinit/py.typed"}, "fastinit/py.typed"),
        (PACKAGE | ABOUT, "native module"),
        (GOOD | ABOUT | {"fastinit/_native.abi3.so"}, "native module"),
        (GOOD | {"f-0.1.dist-info/METADATA"}, "licence"),
    ],
)
def test_what_a_wheel_lacks_or_has_beyond_is_named(
    tmp_path: Path, names: set[str], said: str
) -> None:
    with pytest.raises(SystemExit, match=said):
        wheels.check(wheel(tmp_path, names), PACKAGE)
