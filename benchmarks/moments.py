"""``python -m benchmarks.moments``: moments, what each option adds, and what torch offers for both.

Times are wall time, contenders in turn; ``sum`` stands for a plain read of the same memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastinit
from benchmarks.timing import machine, race, save
from fastinit.base.text import table
from fastinit.statistics.product import linear_moments

COUNTED: dict[str, dict[str, Any]] = {
    "histogram": {"histogram": True},
    **{name: {"formats": [name]} for name in ("e4m3", "mxfp8", "e4m3_tensor", "nvfp4")},
    "five formats and a histogram": {
        "formats": ["float16", "e4m3", "e5m2", "mxfp8", "nvfp4"],
        "histogram": True,
    },
}
"""What is asked of :func:`fastinit.moments` beside the moments."""


def histc(x: Tensor) -> Tensor:
    """Numbers of values by their exponents."""
    return torch.histc(x.float().abs().log2(), bins=255, min=-127, max=128)


def by_conversion(x: Tensor) -> tuple[Tensor, ...]:
    """How many values E4M3 would flush, saturate and hold as subnormals."""
    there, size = x.to(torch.float8_e4m3fn).float().abs(), x.abs()
    flushed, subnormal = (there == 0) & (size > 0), (there > 0) & (there < 2.0**-6)
    return flushed.sum(), (size > 464).sum(), subnormal.sum()


def eager(x: Tensor) -> tuple[Tensor, ...]:
    """Mean, variance, largest absolute value and the number of non-finite values: four passes."""
    return x.mean(), x.var(), x.abs().amax(), (~x.isfinite()).sum()


def measure(elements: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One record for each dtype: nanoseconds for each element, of each contender."""
    x = torch.randn(elements)
    compiled = torch.compile(eager)
    contenders: dict[str, Callable[[Tensor], object]] = {
        "fastinit": lambda t: fastinit.moments(t).raw,
        "higher=True": lambda t: fastinit.moments(t, higher=True).raw,
        **{
            name: lambda t, asked=asked: fastinit.moments(t, **asked)
            for name, asked in COUNTED.items()
        },
        "sum": torch.sum,  # stands for a plain read
        "var_mean": torch.var_mean,
        "var": torch.var,
        "four eager": eager,
        "compiled": compiled,
        "histc": histc,
        "e4m3 by conversion": by_conversion,
    }
    yield _record("float32", x, contenders, rounds)
    contenders.pop("four eager"), contenders.pop("compiled")
    contenders["float().var()"] = lambda t: t.float().var()
    yield _record("bfloat16", x.bfloat16(), contenders, rounds)


def product(rounds: int) -> dict[str, Any]:
    """linear_moments of a language model's head beside the product alone."""
    x, weight = torch.randn(1024, 512), torch.randn(32064, 512)
    out = torch.empty(1024, 32064)
    timings = race(
        {
            "fastinit": lambda: linear_moments(x, weight),
            "product": lambda: torch.mm(x, weight.t(), out=out),
        },
        rounds,
    )
    return {
        "outputs": out.numel(),
        "seconds": timings["fastinit"].median,
        "times the product": timings["fastinit"].median / timings["product"].median,
        "spread": timings["fastinit"].spread,
    }


def _record(
    dtype: str, x: Tensor, contenders: dict[str, Callable[[Tensor], object]], rounds: int
) -> dict[str, Any]:
    timings = race({name: lambda f=f: f(x) for name, f in contenders.items()}, rounds)
    mine = timings["fastinit"]
    return {
        "dtype": dtype,
        "elements": x.numel(),
        "ns per element": {n: t.median / x.numel() * 1e9 for n, t in timings.items()},
        "spread": mine.spread,
        "times": {n: t.median / mine.median for n, t in timings.items() if n != "fastinit"},
    }


def rows(records: list[dict[str, Any]]) -> list[list[str]]:
    """For a table: each contender's time, and how many times the moments' that is."""
    found = [["moments", "contender", "ns/element", "fastinit is"]]
    for r in records:
        for name, each in r["ns per element"].items():
            ratio = f"{r['times'][name]:.3g} times as fast" if name in r["times"] else ""
            found.append([r["dtype"], name, f"{each:.3f}", ratio])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moments", description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 24, help="of the tensor (2^24)")
    parser.add_argument("--rounds", type=int, default=9, help="of which the median counts (9)")
    parser.add_argument("--out", type=Path, help="the folder where results are saved")
    options = parser.parse_args()
    about = machine()
    print(f"{about['cpu']}, {about['cores']} threads, torch {torch.__version__}\n")
    records = list(measure(options.elements, options.rounds))
    print(table(rows(records), "<<>>"))
    if options.out:
        results = {"machine": about, "rounds": options.rounds, "moments": records}
        print(f"\nsaved as {save(results, options.out, 'moments', about['cpu'])}")


if __name__ == "__main__":
    main()
