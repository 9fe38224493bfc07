"""``python -m benchmarks.write``: a checkpoint written as it is made, beside a plain write.

The plain write is of as many bytes, which are in memory already: 32 MiB, again and again, past the page
cache, then fsync. It is what the disk can do. The same through the page cache, which is what most
programs do, is shown too. Contenders take turns, and each removes its files before the next begins.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Timing, machine
from fastinit.base.text import table
from fastinit.checkpoint.disk import CHUNK
from fastinit.checkpoint.planning import SHARD_SIZE

_CHILD = """
import json, sys
import torch
import transformers
from fastinit.checkpoint import writing as checkpoint
from fastinit.command import models

def peak():  # of this program's memory, in bytes
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))

source, dtype, directory, shard_size = sys.argv[1:]
model = models.build(source, getattr(torch, dtype))
before = peak()
done = checkpoint.write(model, directory, shard_size=shard_size)
found = {"seconds": done.seconds, "bytes": done.bytes, "disk share": done.disk_share}
print(json.dumps({**found, "peak before": before, "peak": peak(), "elements": done.layout.elements}))
"""


def write_checkpoint(source: str, dtype: str, folder: Path, shard_size: str) -> dict[str, Any]:
    """A checkpoint, by a process of its own: its seconds and the most memory that it had."""
    arguments = [source, dtype, str(folder / "checkpoint"), shard_size]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CHILD, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    shutil.rmtree(folder / "checkpoint")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_plain(folder: Path, size: int, flags: int) -> float:
    """Seconds for ``size`` bytes (rounded up to blocks) that are in memory already."""
    memory = mmap.mmap(-1, CHUNK)
    memory.write(os.urandom(1 << 20) * (CHUNK >> 20))
    path = folder / "plain"
    begun = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags)
    with memoryview(memory) as view:
        for start in range(0, size, CHUNK):
            length = -(-min(CHUNK, size - start) // 4096) * 4096
            done = 0
            while done < length:
                done += os.write(descriptor, view[done:length])
    os.fsync(descriptor)
    seconds = time.perf_counter() - begun
    os.close(descriptor)
    path.unlink()
    return seconds


def measure(source: str, dtype: str, folder: Path, shard_size: str, rounds: int) -> dict[str, Any]:
    """One record."""
    ours: list[dict[str, Any]] = []
    direct: list[float] = []
    cached: list[float] = []
    for _ in range(rounds):
        ours.append(write_checkpoint(source, dtype, folder, shard_size))
        size = ours[0]["bytes"]
        direct.append(write_plain(folder, size, os.O_DIRECT))
        cached.append(write_plain(folder, size, 0))

    def timing(seconds: list[float]) -> Timing:
        return Timing(statistics.median(seconds), min(seconds), max(seconds))

    mine, plain, through = timing([o["seconds"] for o in ours]), timing(direct), timing(cached)
    return {
        "model": source,
        "dtype": dtype,
        "elements": ours[0]["elements"],
        "bytes": size,
        "shard size": shard_size,
        "write seconds": mine.median,
        "write spread": mine.spread,
        "plain seconds": plain.median,
        "plain spread": plain.spread,
        "plain, page cache seconds": through.median,
        "plain, page cache spread": through.spread,
        "write times plain": statistics.median(
            o["seconds"] / other for o, other in zip(ours, direct)
        ),
        "disk share": statistics.median(o["disk share"] for o in ours),
        "peak bytes before": max(o["peak before"] for o in ours),
        "peak bytes": max(o["peak"] for o in ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.write", description=__doc__)
    parser.add_argument("--model", default="llama-3.2-1b", help="as the commands take it")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shard-size", default=SHARD_SIZE)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (3)")
    parser.add_argument(
        "--dir", type=Path, default=Path("."), help="on the disk to be measured (.)"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the record; by default none")
    options = parser.parse_args()

    about = machine()
    print(f"{about['cpu']}, {about['cores']} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(prefix=".fastinit-", dir=options.dir) as folder:
        record = measure(
            options.model, options.dtype, Path(folder), options.shard_size, options.rounds
        )
    size = record["bytes"]
    print(f"{record['model']}, {record['dtype']}: {size / 1e9:.2f} GB; median of {options.rounds}")
    print("rounds ± half their range\n")
    rows = [["", "seconds", "", "GB/s"]]
    for name, key in (
        ("checkpoint.write", "write"),
        ("plain write", "plain"),
        ("plain write, page cache", "plain, page cache"),
    ):
        seconds, spread = record[f"{key} seconds"], record[f"{key} spread"]
        rows.append([name, f"{seconds:.2f}", f"±{spread:.0%}", f"{size / seconds / 1e9:.2f}"])
    print(table(rows, "<>>>"))
    print(f"\nwrite / plain write of its round: {record['write times plain']:.2f}")
    print(f"share of the time in which the disk was at work: {record['disk share']:.0%}")
    before, peak = record["peak bytes before"] / 2**20, record["peak bytes"] / 2**20
    print(
        f"peak memory: {peak:.0f} MiB, of which {before:.0f} MiB before writing (torch, transformers)"
    )
    if options.out:
        options.out.write_text(json.dumps({"machine": about, "write": record}, indent=1) + "\n")
        print(f"\nsaved as {options.out}")


if __name__ == "__main__":
    main()
