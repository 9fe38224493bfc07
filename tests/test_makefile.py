"""The Makefile: what the demo builds on which machine, and how its phases are shown."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("gpus", "asked", "cuda", "archs"),
    [
        ([], {}, "OFF", ""),  # nvcc alone compiles nothing that could run here
        ([], {"FASTINIT_CUDA": "ON"}, "ON", ""),
        (["9.0"], {}, "AUTO", "90"),
        (["9.0", "8.0", "9.0"], {}, "AUTO", "80 90"),
        (["8.6"], {}, "AUTO", "86"),
        (["13.1"], {}, "AUTO", ""),  # newer than nvcc: the usual ones, and PTX
        (["9.0"], {"FASTINIT_CUDA_ARCHS": "80;90"}, "AUTO", "80;90"),
        (["9.0"], {"FASTINIT_CUDA": "OFF"}, "OFF", ""),
    ],
)
def test_the_demo_builds_for_the_gpus_that_are_here(
    tmp_path: Path, gpus: list[str], asked: dict[str, str], cuda: str, archs: str
) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not there")
    listed = "\\n".join(f"GPU {i}: some" for i, _ in enumerate(gpus))
    caps = "\\n".join(gpus)
    program(
        tmp_path,
        "nvidia-smi",
        f'case "$1" in -L) printf "{listed}";; *compute_cap) printf "{caps}\\n";; esac',
    )
    program(tmp_path, "nvcc", 'printf "sm_80\\nsm_86\\nsm_90\\nsm_100\\n"')
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("FASTINIT_", "MAKE", "MFLAGS"))
    }
    environment = {**kept, **asked, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "-n", "demo", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [build] = [line for line in done.stdout.splitlines() if "install -e" in line]
    assert build.startswith(f"FASTINIT_CUDA={cuda} ")
    given = build.partition("FASTINIT_CUDA_ARCHS='")[2].partition("'")[0]
    assert sorted(given.split()) == archs.split()
    torch_asked = "torch===" if gpus and cuda != "OFF" else "torch=="
    assert f"installing {torch_asked}" in done.stdout


@pytest.mark.parametrize(
    ("known", "goals", "archs"),
    [
        ("80 90 100 120", ("test", "lint", "everywhere"), "90+PTX 100+PTX"),
        ("80 90", ("test", "lint"), "90+PTX"),
        ("80 90 100 120", ("slow", "sass"), ""),  # the ledger has all
    ],
)
def test_the_tests_build_two_architectures_once(
    tmp_path: Path, known: str, goals: tuple[str, ...], archs: str
) -> None:
    """On a machine without a GPU; and one goal's build is the next one's."""
    if shutil.which("make") is None:
        pytest.skip("make is not there")
    program(tmp_path, "nvcc", f"printf 'sm_%s\\n' {known}")
    program(tmp_path, "nvidia-smi", "exit 9")
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("FASTINIT_", "MAKE", "MFLAGS"))
    }
    stamps = set()
    for goal in goals:
        lines = subprocess.run(
            ["make", "-n", goal, f"VENV={tmp_path / 'venv'}"],
            cwd=ROOT,
            env={**kept, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        [build] = [line for line in lines if "install -e" in line]
        assert build.startswith(f"FASTINIT_CUDA_ARCHS='{archs}' ")
        stamps |= {line for line in lines if "touch" in line and "/.installed" in line}
    assert len(stamps) == 1


@pytest.mark.parametrize("status", [0, 3])
def test_a_phase_shows_its_time_and_what_a_failure_printed(status: int) -> None:
    command = ["sh", "-c", f"echo working; exit {status}"]
    phase = [sys.executable, str(ROOT / "tools" / "phase.py"), "a phase", "--", *command]
    done = subprocess.run(phase, capture_output=True, text=True)
    assert done.returncode == status
    first, last, *printed = done.stdout.splitlines()
    assert first == "a phase"
    assert last.startswith("a phase: ")
    assert " s" in last
    assert printed == (["working"] if status else [])


def test_nobody_waits_in_silence() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import phase
    finally:
        del sys.path[0]

    class Kept:
        """Standard output as a pipe is."""

        text = ""

        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    out = Kept()
    before, phase.EVERY = phase.EVERY, 0.05
    try:
        assert phase.run("long", [sys.executable, "-c", "import time; time.sleep(0.4)"], out) == 0
    finally:
        phase.EVERY = before
    assert out.text.count("long: 0 s\n") >= 2
