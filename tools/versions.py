"""Runs the core of the tests on old and new versions of what fastinit needs, and says how that went.

    python tools/versions.py benchmarks/results/versions.json                  all rows
    python tools/versions.py benchmarks/results/versions.json --only 3.10      those of one Python

Each row is an environment of its own, made, used and removed: the wheel of this checkout, built by that
Python, and just the versions named. The tests are those of the source distribution, so that nothing but
the wheel is imported. A Python that is not found is a row that says so. (``make versions``.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from datetime import date
from pathlib import Path
from typing import NamedTuple

import wheels

CORE = [
    *(
        "stream/test_stream.py",
        "stream/test_views_and_windows.py",
        "fills/test_operator.py",
        "fills/test_constants.py",
    ),
    "statistics/test_tensor.py",
    *(
        "plan/test_apply.py",
        "plan/test_apply_parts.py",
        "plan/test_json_form.py",
        "record/test_materialize.py",
    ),
    "variance/test_watch.py",
    *("base/test_torch_internals.py", "base/test_distributed_internals.py", "test_import.py"),
    *("checkpoint/test_dcp.py", "frameworks/test_unsharded.py"),
]
"""None of these imports numpy."""

WITH_NUMPY = [
    *("stream/test_laws.py", "stream/test_keys.py"),
    *("plan/test_plan.py", "record/test_block.py", "record/test_block_refused.py"),
    *("record/test_constructors.py", "variance/test_lsuv.py"),
]
WITH_MODELS = ["command/test_cli.py", "command/test_cli_faults.py", "command/test_output.py"]

OLD_MODELS = (
    *("typer==0.20.0", "rich==13.0.0", "transformers==5.20.0", "safetensors==0.8.0"),
    "matplotlib==3.8.0",
    "pyparsing==3.1.4",  # of that time: matplotlib tells the log of each name that newer ones gave up
)
MODELS = ("typer", "rich", "transformers", "safetensors", "matplotlib")


class Row(NamedTuple):
    """What is installed beside the wheel; the newest where there is no version."""

    python: str
    torch: str
    numpy: str | None
    others: tuple[str, ...] = ()


ROWS = [
    Row("3.10", "2.11.0", None),
    Row("3.10", "2.11.0", "1.26.4", OLD_MODELS),
    Row("3.12", "2.11.0", "2.0.2", MODELS),
    Row("3.13", "2.13.0", None),
    Row("3.13", "2.13.0", "2.4.6", MODELS),
    Row("3.13t", "2.12.0", None),  # torch's last for it
    Row("3.14", "2.13.0", "2.4.6", MODELS),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the JSON file, to which rows are added")
    parser.add_argument("--only", help="rows that have this in their name, as in 'torch 2.11'")
    asked = parser.parse_args()
    known = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        sdist = wheels.source_distribution(Path(folder))
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        [source] = (path for path in Path(folder).iterdir() if path.is_dir())
        shutil.rmtree(source / "fastinit")
        for row in ROWS:
            if asked.only is None or asked.only in name(row):
                said = tried(row, sdist, source, Path(folder))
                print(f"{name(row)}: {said['result']}", flush=True)
                known[name(row)] = {**said, "date": str(date.today())}
                ordered = {name(row): known[name(row)] for row in ROWS if name(row) in known}
                asked.out.write_text(json.dumps(ordered, indent=1) + "\n")


def name(row: Row) -> str:
    beside = [f"numpy {row.numpy}" if row.numpy else "no numpy"]
    beside += [other.replace("==", " ") for other in row.others]
    return ", ".join([f"Python {row.python}", f"torch {row.torch}", *beside])


def tried(row: Row, sdist: Path, source: Path, folder: Path) -> dict[str, object]:
    """The versions that were installed, and how the tests ended."""
    interpreter = found(row.python)
    if interpreter is None:
        return {"result": f"not run: no Python {row.python} here"}
    made = folder / "environment"
    try:
        run([interpreter, "-m", "venv", "--clear", str(made)])
        python = str(made / ("Scripts" if os.name == "nt" else "bin") / "python")
        wheel = built(sdist, python, folder / f"wheel-{row.python}")
        numpy = [f"numpy=={row.numpy}", "scipy", "mpmath"] if row.numpy else []
        wanted = [f"torch=={row.torch}", str(wheel), *numpy, *row.others]
        run(
            [
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-compile",
                "--prefer-binary",
                *wanted,
                "pytest>=8.2",
                "hypothesis>=6.100",
            ]
        )
        files = [*CORE, *WITH_NUMPY * bool(row.numpy), *WITH_MODELS * bool(row.others)]
        return {**versions(python, row), "result": tested(python, source, files)}
    except Failed as failed:
        print(failed, file=sys.stderr)
        return {"result": f"failed: {str(failed).splitlines()[0]}"}
    finally:
        shutil.rmtree(made, ignore_errors=True)


def found(version: str) -> str | None:
    """The interpreter of a version: on PATH, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    theirs = [str(path / "bin" / "python") for path in sorted(pyenv.glob(f"{version[:4]}*"))]
    for candidate in [*theirs, shutil.which(f"python{version}")]:
        asks = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2] + " \
            "'t' * bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"  # fmt: skip
        if candidate is not None:
            said = subprocess.run([candidate, "-c", asks], capture_output=True, text=True)
            if said.stdout.strip() == version:
                return candidate
    return None


def built(sdist: Path, python: str, folder: Path) -> Path:
    """The wheel of an interpreter, built once, as pip builds it for a user with a compiler."""
    if not folder.exists():
        command = [python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(sdist)]
        run(command, {**os.environ, "FASTINIT_NATIVE": "ON", "FASTINIT_CUDA": "OFF"})
    [wheel] = folder.iterdir()
    return wheel


def versions(python: str, row: Row) -> dict[str, object]:
    """Those that pip chose, of all that the row names, and of Python."""
    names = [re.split("==", other)[0] for other in ("torch", "numpy", *row.others)]
    said = json.loads(run([python, "-m", "pip", "list", "--format", "json"]))
    have = {package["name"]: package["version"] for package in said}
    return {
        "python": run([python, "-c", "import platform; print(platform.python_version())"]).strip(),
        **{package: have[package] for package in names if package in have},
        "machine": platform.machine(),
    }


def tested(python: str, source: Path, files: list[str]) -> str:
    """pytest's own summary of these files."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    command += ["-W", "default", *(f"tests/{file}" for file in files)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-8000:], done.stderr[-2000:], file=sys.stderr, flush=True)
    said = re.findall(r"^(?:=+ )?\d+ .* in [\d.]+s", done.stdout, re.MULTILINE)
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", said[-1]) if said else []
    return ", ".join(counts) or "failed: no test was run"


class Failed(Exception):
    """A command that failed: which, and what it printed."""


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command[1:4])}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
