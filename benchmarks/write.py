"""``python -m benchmarks.write``: a checkpoint written as it is made, beside a plain write.

The plain write is of as many bytes, which are in memory already: 32 MiB, again and again, past the page
cache, then fsync. It is what the disk can do. The same through the page cache, which is what most
programs do, is shown too. Contenders take turns, and each removes its files before the next begins.

With ``--ranks 1 2 4`` the contenders are numbers of processes that write one checkpoint together.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import socket
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


_RANK = """
import json, sys
import torch
from fastinit import checkpoint
from fastinit.command import job, models

source, dtype, directory, shard_size, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = models.build(source, getattr(torch, dtype))
with job.joined() as speaks:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    done = checkpoint.write(model, directory, shard_size=shard_size)
    if speaks:
        print(json.dumps({"seconds": done.seconds, "bytes": done.bytes}))
"""


def write_by_ranks(
    source: str, dtype: str, folder: Path, shard_size: str, ranks: int
) -> dict[str, Any]:
    """A checkpoint, by so many processes, which share this machine's threads."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    said = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    threads = max(1, (os.cpu_count() or 1) // ranks)
    arguments = [source, dtype, str(folder / "checkpoint"), shard_size, str(threads)]
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _RANK, *arguments],
            env={**os.environ, **said, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    printed = [child.communicate()[0] for child in children]
    assert not any(child.returncode for child in children)
    shutil.rmtree(folder / "checkpoint")
    found: dict[str, Any] = json.loads(printed[0].splitlines()[-1])
    return found


def measure_ranks(
    source: str, dtype: str, folder: Path, shard_size: str, rounds: int, counts: list[int]
) -> list[dict[str, Any]]:
    """A record for each number of ranks; they take turns."""
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            done = write_by_ranks(source, dtype, folder, shard_size, count)
            seconds[count].append(done["seconds"])
    about = {"model": source, "dtype": dtype, "shard size": shard_size, "bytes": done["bytes"]}
    return [
        {
            **about,
            "ranks": count,
            "seconds": statistics.median(some),
            "fastest": min(some),
            "slowest": max(some),
            "load average": os.getloadavg()[0],
        }
        for count, some in seconds.items()
    ]


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
    parser.add_argument("--ranks", type=int, nargs="*", help="processes that write together")
    options = parser.parse_args()

    about = machine()
    print(f"{about['cpu']}, {about['cores']} threads, torch {torch.__version__}")
    if options.ranks:
        with tempfile.TemporaryDirectory(prefix=".fastinit-", dir=options.dir) as folder:
            found = measure_ranks(
                options.model,
                options.dtype,
                Path(folder),
                options.shard_size,
                options.rounds,
                options.ranks,
            )
        rows = [["ranks", "seconds", "fastest", "slowest", "GB/s"]]
        for one in found:
            times = [f"{one[key]:.2f}" for key in ("seconds", "fastest", "slowest")]
            rows.append([str(one["ranks"]), *times, f"{one['bytes'] / one['seconds'] / 1e9:.2f}"])
        print(f"{options.model}, {options.dtype}: {found[0]['bytes'] / 1e9:.2f} GB\n")
        print(table(rows, ">>>>>"))
        if options.out:
            document = {"machine": about, "write by ranks": found}
            options.out.write_text(json.dumps(document, indent=1) + "\n")
        return
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
