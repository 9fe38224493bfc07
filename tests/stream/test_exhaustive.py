"""csrc/stream.h for every word there is: tests/cpp/exhaustive.cpp, built here and run.

Nothing is sampled, so there is no significance level. The limits stand in exhaustive.cpp, each beside
what it is a limit of; the kernel's parameters come from fastinit.laws, as in every fill.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastinit.stream import laws

CPP = Path(__file__).parents[1] / "cpp"
CXX = shlex.split(os.environ.get("CXX", "g++"))
EXACT = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

# The last has made torch.nn.init.trunc_normal_ produce values of hundreds of standard deviations.
WINDOWS = {
    "±2σ": (-2.0, 2.0),
    "[0, ∞)": (0.0, math.inf),
    "±0.01σ": (-0.01, 0.01),
    "±100σ": (-100.0, 100.0),
}


def arguments() -> list[str]:
    words = []
    for name, (a, b) in WINDOWS.items():
        law = laws.truncated_normal(0.0, 1.0, a, b)
        numbers = (*law.arguments, *laws.kernel_params(law, torch.float32))
        words += [name, *(number.hex() for number in numbers)]
    return words


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(CXX[0]) is None, reason=f"needs a C++ compiler ({CXX[0]})")
def test_every_word(tmp_path: Path) -> None:
    def compile_(source: str, *flags: str) -> str:
        out = str(tmp_path / source.replace(".cpp", ".o"))
        options = ["-std=c++17", "-O3", "-march=native", *flags]
        subprocess.run([*CXX, *options, "-c", str(CPP / source), "-o", out], check=True)
        return out

    objects = [compile_("exhaustive.cpp", *EXACT), compile_("float64.cpp", "-ffast-math")]
    program = str(tmp_path / "exhaustive")
    subprocess.run([*CXX, *objects, "-o", program, "-pthread", "-lm"], check=True)
    ran = subprocess.run([program, *arguments()], capture_output=True, text=True)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(CXX[0]) is None, reason=f"needs a C++ compiler ({CXX[0]})")
def test_the_cuda_lane_for_every_word(tmp_path: Path) -> None:
    program = str(tmp_path / "cuda_lane")
    options = ["-std=c++17", "-O3", "-march=native", "-w", "-pthread", *EXACT]
    subprocess.run([*CXX, *options, str(CPP / "cuda_lane.cpp"), "-o", program], check=True)
    law = laws.truncated_normal(0.0, 0.02, -2.0, 2.0)  # the whole tail
    numbers = [number.hex() for number in laws.kernel_params(law, torch.float32)]
    ran = subprocess.run([program, *numbers], capture_output=True, text=True)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
