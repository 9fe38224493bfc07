"""``python -m benchmarks.materialize``: from a constructor to a model that is ready.

Every round makes its model in fresh memory. "touch" is the machine's limit: the same parameters,
allocated alike, with one byte written on each page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import fastinit
from benchmarks.constructors import Constructor, constructors, llama
from benchmarks.timing import Timing, machine, race
from fastinit.base.text import table
from fastinit.plan.parameters import allocate_, distinct_parameters

PAGE = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def ready(construct: Constructor) -> nn.Module:
    """Recorded and written."""
    with fastinit.deferred(seed=0):
        model = construct()
    return fastinit.materialize_(model)


def touched(construct: Constructor, huge_pages: bool = True) -> None:
    """The same memory, with one byte written on each page."""
    with fastinit.deferred():
        model = construct()
    for _, _, parameter in distinct_parameters(allocate_(model, huge_pages=huge_pages)):
        memory = parameter.detach().view(-1).view(torch.uint8)
        memory[::PAGE].fill_(1)


def timings(construct: Constructor, rounds: int) -> dict[str, Timing]:
    """Of the constructor by itself; of the other two by turns.

    Not all at once: the constructor leaves memory in small pages, and who comes next has to wait until
    the system has made large ones of them. "touch 4 KiB" is on those pages that a constructor gets.
    """
    ours = {"fastinit": lambda: ready(construct), "touch": lambda: touched(construct)}
    alone = {"constructor": construct, "touch 4 KiB": lambda: touched(construct, huge_pages=False)}
    found = race(ours, rounds)
    for name, run in alone.items():
        found |= race({name: run}, rounds)
    return found


def peak(dtype: str, layers: int) -> dict[str, float]:
    """Of a process that makes the model: bytes of its weights, and by how much its peak grew."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.materialize",
        "--peak",
        dtype,
        "--layers",
        str(layers),
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


def _peak(dtype: str, layers: int) -> None:
    ready(llama(DTYPES[dtype], 1))  # what is imported and allocated once
    before = kibibytes("VmRSS") * 1024
    model = ready(llama(DTYPES[dtype], layers))
    after = kibibytes("VmHWM") * 1024
    weights = sum(parameter.nbytes for parameter in model.parameters())
    print(json.dumps({"weights": weights, "peak": after - before, "before": before}))


def kibibytes(field: str) -> int:
    """Of this process: VmRSS is what it holds, VmHWM the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=22, help="of the Llama: 22 are 1.1 billion")
    parser.add_argument("--llama", action="store_true", help="nothing else")
    parser.add_argument("--out", type=Path, help="write the results to this file as JSON")
    parser.add_argument("--peak", choices=sorted(DTYPES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        _peak(options.peak, options.layers)
        return
    results: dict[str, dict[str, Timing]] = {}
    peaks = {}
    for name, dtype in DTYPES.items():
        results[f"Llama 1.1B {name}"] = timings(llama(dtype, options.layers), options.rounds)
        peaks[name] = peak(name, options.layers)
    others = {} if options.llama else constructors(small=False)
    for name, construct in others.items():
        results[name] = timings(construct, options.rounds)
    rows = [("model", "constructor, s", "fastinit, s", "times", "× touch", "× touch 4 KiB")]
    for name, found in results.items():
        theirs, ours = found["constructor"].median, found["fastinit"].median
        limits = [ours / found[key].median for key in ("touch", "touch 4 KiB")]
        times = f"{theirs / ours:.1f}"
        rows.append((name, f"{theirs:.3f}", f"{ours:.3f}", times, *(f"{x:.2f}" for x in limits)))
    print(table(rows, "<>>>>>"))
    for name, memory in peaks.items():
        print(f"{name}: peak memory {memory['peak'] / memory['weights']:.3f} times the weights")
    if options.out:
        saved = {
            "machine": machine(),
            "rounds": options.rounds,
            "timings": {k: {c: t._asdict() for c, t in v.items()} for k, v in results.items()},
            "peaks": peaks,
        }
        options.out.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
