"""Runs the tests as other machines would: ``make everywhere``.

A run for each variant: which build of torch's kernels and of ours, how many threads and workers, each in
a random order of the tests, with random hashes. Every two of the first three choices meet in some run.
Prints a line for each run, and what failed; the whole output is in build/everywhere.
"""

from __future__ import annotations

import itertools
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastinit.backends import choose as backends

ROOT = Path(__file__).resolve().parent.parent
Variant = tuple[Any, ...]


def choices() -> dict[str, list[Any]]:
    """What there is to choose on this machine."""
    most = torch.backends.cpu.get_cpu_capability().lower()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    torchs = ["default", "avx2", "avx512"] if x86 else ["default"]
    module = backends.native.module
    return {
        "ATEN_CPU_CAPABILITY": torchs[: torchs.index(most) + 1] if most in torchs else ["default"],
        "FASTINIT_ISA": [name for name, usable in module.isas().items() if usable]
        if module
        else [],
        "OMP_NUM_THREADS": [1, 2],
    }


def pairwise(values: Sequence[Sequence[Any]]) -> list[Variant]:
    """Few variants in which every two values of different choices occur together."""

    def pairs(variant: Variant) -> set[tuple[int, Any, int, Any]]:
        return {
            (i, variant[i], j, variant[j])
            for i, j in itertools.combinations(range(len(variant)), 2)
        }

    variants = list(itertools.product(*values))
    missing, chosen = set().union(*map(pairs, variants)), []
    while missing:
        chosen.append(max(variants, key=lambda variant: len(pairs(variant) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def run(number: int, variant: Mapping[str, Any]) -> bool:
    """One run; whether it is green. Every second one has one worker, the others have two."""
    seed = random.SystemRandom().randrange(1_000_000)
    environment = {name: str(value) for name, value in variant.items()}
    said = " ".join(f"{name}={value}" for name, value in environment.items())
    command = ["-m", "pytest", "-n", str(2 - number % 2), "--dist", "loadfile"]
    command += ["--random-order-bucket=module", f"--random-order-seed={seed}"]
    print(f"{said} {' '.join(command[1:])}", end=": ", flush=True)
    log = ROOT / "build" / "everywhere" / f"{number}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with log.open("w") as out:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONHASHSEED": "random"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    lines = log.read_text().splitlines()
    counts = re.sub(r"^=+ | in .*", "", lines[-1]) if lines else "nothing was said"
    print(f"{counts} in {time.monotonic() - begun:.0f} s", flush=True)
    if done.returncode:
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        print(*(failed or lines[-20:]), f"all of it: {log.relative_to(ROOT)}", sep="\n")
    return done.returncode == 0


def main() -> int:
    names, values = zip(*((name, some) for name, some in choices().items() if some))
    results = [run(i, dict(zip(names, variant))) for i, variant in enumerate(pairwise(values))]
    print(f"{sum(results)} of {len(results)} variants are green")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
