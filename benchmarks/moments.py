"""Moments beside what torch offers for them, and beside a plain read of the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import fastinit
from benchmarks.timing import race
from fastinit.statistics.product import linear_moments


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
        "histogram": lambda t: fastinit.moments(t, histogram=True).row,
        "e4m3": lambda t: fastinit.moments(t, formats=["e4m3"]).row,
        "mxfp8": lambda t: fastinit.moments(t, formats=["mxfp8"]).row,
        "nvfp4": lambda t: fastinit.moments(t, formats=["nvfp4"]).row,
        "sum": torch.sum,  # stands for a plain read
        "var_mean": torch.var_mean,
        "var": torch.var,
        "four eager": eager,
        "compiled": compiled,
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
