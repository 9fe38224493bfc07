"""``python -m benchmarks.low_precision``: normals in few bits beside bfloat16, on one thread.

Times are the CPU's own, as one thread has nothing to wait for: they do not count what else runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.timing import machine, race, save
from fastinit import Blocks, init
from fastinit.base.text import table
from fastinit.stream.blocks import ELEMENTS
from fastinit.stream.rounding import FLOAT8


def contenders(side: int) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16, *FLOAT8):
        tensor = torch.empty(side, side, dtype=dtype)
        found[str(dtype).removeprefix("torch.")] = lambda t=tensor: init.normal_(t, seed=0)
    eight = torch.empty(side, side, dtype=FLOAT8[0])
    found["float8_e4m3fn, scale=0.3"] = lambda: init.normal_(eight, seed=0, scale=0.3)
    for format in ELEMENTS:
        blocks = Blocks.empty((side, side), format)
        found[format] = lambda b=blocks: init.normal_(b, seed=0)
    return found


def cpu_clock(run: Callable[[], object]) -> float:
    """Seconds that the CPU works for a call."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=2048, help="of the square tensor (2048)")
    parser.add_argument("--rounds", type=int, default=15, help="of which the median counts (15)")
    parser.add_argument("--out", type=Path, help="write the results to this folder, as JSON")
    options = parser.parse_args()
    about = machine()
    torch.set_num_threads(1)
    timings = race(contenders(options.side), options.rounds, cpu_clock)
    base, count = timings["bfloat16"].median, options.side**2
    rows = [["normal", "ns a value", "of bfloat16's"]]
    for name, timing in timings.items():
        each = timing.median / count * 1e9
        rows.append([name, f"{each:.3f} ±{timing.spread:.0%}", f"{timing.median / base:.2f}"])
    print(about["cpu"])
    print(table(rows, "<>>"))
    if options.out:
        seconds = {name: timing.median / count for name, timing in timings.items()}
        results = {
            "machine": about,
            "rounds": options.rounds,
            "side": options.side,
            "seconds a value": seconds,
        }
        print(save(results, options.out, "low-precision", about["cpu"]))


if __name__ == "__main__":
    main()
