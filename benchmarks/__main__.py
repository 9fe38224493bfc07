"""``python -m benchmarks``: the table of timings, and the same as JSON under the CPU's name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import fills, imported, moments, orthogonal
from benchmarks.timing import machine, save
from fastinit.base.text import table


def _cell(record: dict[str, Any], peer: str) -> str:
    ratio = record.get(f"times {peer}")
    return "" if ratio is None else f"{ratio:.3g}"


def _fill_row(record: dict[str, Any]) -> list[str]:
    name = " ".join(filter(None, (record["law"], record["note"])))
    return [
        name,
        record["dtype"],
        str(record["threads"]),
        f"{record['ns per element']:.3f} ±{record['spread']:.0%}",
        f"{record['GB per s']:.1f}",
        *(_cell(record, peer) for peer in ("torch", "zero_", "numpy", "contiguous")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 26, help="of each tensor (2^26)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (5)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file; by default none")
    options = parser.parse_args()

    about = machine()
    threads = sorted({1, torch.get_num_threads()})
    print(f"{about['cpu']}, {about['cores']} threads, torch {torch.__version__}")
    print(f"{options.elements:,} elements, median of {options.rounds} rounds ± half their range;")
    print("ratios are the peer's time over fastinit's in the same rounds\n")

    results: dict[str, Any] = {"machine": about, "rounds": options.rounds}
    header = ["fill", "dtype", "thr", "ns/element", "GB/s", "torch", "zero_", "numpy", "contig"]
    rows = [header]
    results["fills"] = []
    for record in fills.measure(options.elements, threads, options.rounds):
        results["fills"].append(record)
        rows.append(_fill_row(record))
        print(f"{len(rows) - 1:3} {' '.join(rows[-1][:4])}", file=sys.stderr, flush=True)
    print(table(rows, "<<>>>>>>>"), "\n")

    results["calls"] = list(fills.calls())
    rows = [["call on 4 elements", "µs", "torch's µs", "of torch's"]]
    rows += [
        [
            r["name"],
            *(f"{r[key]:.2f}" for key in ("microseconds", "torch microseconds", "of torch")),
        ]
        for r in results["calls"]
    ]
    print(table(rows, "<>>>"), "\n")

    results["import"] = r = imported.measure(options.rounds)
    print(
        f"import fastinit: {1e3 * r['seconds']:.0f} ms of CPU time beyond import torch's "
        f"{1e3 * r['torch seconds']:.0f}\n"
    )

    results["orthogonal"] = list(orthogonal.measure(min(3, options.rounds)))
    rows = [["orthogonal_", "s", "torch", "error"]]
    rows += [
        [
            " x ".join(map(str, r["shape"])),
            f"{r['seconds']:.3f} ±{r['spread']:.0%}",
            f"{r['times torch']:.3g}",
            f"{r['error']:.1e}",
        ]
        for r in results["orthogonal"]
    ]
    print(table(rows, "<>>>"), "\n")

    results["moments"] = list(moments.measure(2 * options.elements, options.rounds))
    print(table(moments.rows(results["moments"]), "<<>>"), "\n")

    results["linear_moments"] = r = moments.product(options.rounds)
    print(
        f"linear_moments: {r['times the product']:.2f} times the product's time ±{r['spread']:.0%}"
    )

    if options.out:
        path = save(results, options.out, "cpu", about["cpu"])
        print(f"\nsaved as {path}")


if __name__ == "__main__":
    main()
