"""What ``import fastinit`` takes beyond ``import torch``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

CODE = """
import time
begun = time.process_time()
import torch
between = time.process_time()
import fastinit
print(between - begun, time.process_time() - between)
"""


def measure(rounds: int) -> dict[str, float]:
    """Medians of CPU seconds, each round in an interpreter of its own, after one that compiles.

    An installer compiles too, so what is compiled is kept, whatever the environment says.
    """
    with tempfile.TemporaryDirectory() as compiled:
        taken = [_once(compiled) for _ in range(rounds + 1)][1:]
    torchs, ours = (statistics.median(some) for some in zip(*taken))
    return {"seconds": ours, "torch seconds": torchs}


def _once(compiled: str) -> list[float]:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]
