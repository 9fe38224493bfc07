"""What ``import fastinit`` takes beyond ``import torch``."""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import time
begun = time.process_time()
import torch
between = time.process_time()
import fastinit
print(between - begun, time.process_time() - between)
"""


def measure(rounds: int) -> dict[str, float]:
    """Medians of CPU seconds, each round in an interpreter of its own, after one that compiles."""
    taken = [_once() for _ in range(rounds + 1)][1:]
    torchs, ours = (statistics.median(some) for some in zip(*taken))
    return {"seconds": ours, "torch seconds": torchs}


def _once() -> list[float]:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]
