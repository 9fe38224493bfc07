"""``python -m benchmarks.gpu``: fills on a GPU beside torch's and the write limit.

Times are medians of CUDA events, contenders in turn; ``zero_`` stands for the write limit. What a call
takes on the host, before the GPU has it, is a table of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastinit
from benchmarks import timing
from benchmarks.fills import CASES, Case
from benchmarks.moments import COUNTED, eager
from fastinit import init
from fastinit.backends import choose as backends
from fastinit.base.text import table
from fastinit.fills.operator import Request, fill_many_
from fastinit.stream import laws
from fastinit.stream.keys import stream_id


def event_clock(run: Callable[[], object]) -> float:
    """Seconds that a call keeps the GPU busy, by CUDA events.

    The GPU waits until the call has been made: else what the host takes for it would count too.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(WAIT)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


race = partial(timing.race, clock=event_clock)
ROW = 1024
WAIT = 40_000_000
"""Clocks of the GPU: about 20 ms, in which a list of hundreds of tensors is told."""


def forced(name: str, run: Callable[[Tensor], object], tensor: Tensor) -> Callable[[], None]:
    def run_forced() -> None:
        with backends.backend(name):
            run(tensor)

    return run_forced


def fills(elements: int, rounds: int) -> Iterator[dict[str, Any]]:
    for case, dtype in CASES:
        shape = (elements // ROW, ROW)  # of which there is a fan
        yield _fill(case, torch.empty(shape, dtype=dtype, device="cuda"), rounds)


def _fill(case: Case, tensor: Tensor, rounds: int) -> dict[str, Any]:
    timings = race(
        {
            "fastinit": lambda: case.ours(tensor),
            "zero_": tensor.zero_,
            "torch": lambda: case.torch(tensor),
            "triton": forced("triton", case.ours, tensor),
        },
        rounds,
    )
    mine = timings["fastinit"]
    return {
        "law": case.name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "elements": tensor.numel(),
        "ms": mine.median * 1e3,
        "spread": mine.spread,
        "GB per s": tensor.nbytes / mine.median / 1e9,
        **{f"times {n}": t.median / mine.median for n, t in timings.items() if n != "fastinit"},
    }


def llama_7b() -> list[tuple[int, ...]]:
    hidden, inner = 4096, 11008
    layer = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)] + [(hidden,)] * 2
    return [(32000, hidden), *layer * 32, (hidden,), (32000, hidden)]


def gpt2_xl() -> list[tuple[int, ...]]:
    h = 1600
    matrices = [(h, 3 * h), (3 * h,), (h, h), (h,), (h, 4 * h), (4 * h,), (4 * h, h), (h,)]
    return [(50257, h), (1024, h), *([(h,)] * 4 + matrices) * 48, (h,), (h,)]


MODELS = {"Llama-7B": llama_7b, "GPT-2-XL": gpt2_xl}


def models(rounds: int) -> Iterator[dict[str, Any]]:
    """A model's parameters in bfloat16: matrices normal, vectors constant; one launch or a loop."""
    for name, shapes in MODELS.items():
        tensors = [torch.empty(s, dtype=torch.bfloat16, device="cuda") for s in shapes()]
        normal, zero = laws.normal(0.0, 0.02), laws.constant(0.0)
        requests = [
            Request(t, normal if t.dim() > 1 else zero, 0, stream_id(str(i)))
            for i, t in enumerate(tensors)
        ]

        def loop(tensors: list[Tensor] = tensors) -> None:
            for tensor in tensors:
                if tensor.dim() > 1:
                    torch.nn.init.normal_(tensor, 0.0, 0.02)
                else:
                    torch.nn.init.zeros_(tensor)

        timings = race({"fastinit": lambda r=requests: fill_many_(r), "torch": loop}, rounds)
        parameters = sum(t.numel() for t in tensors)
        yield {
            "model": name,
            "tensors": len(tensors),
            "parameters": parameters,
            "ms": timings["fastinit"].median * 1e3,
            "spread": timings["fastinit"].spread,
            "parameters per s": parameters / timings["fastinit"].median,
            "torch ms": timings["torch"].median * 1e3,
            "times torch": timings["torch"].median / timings["fastinit"].median,
        }


def moments(elements: int, rounds: int) -> Iterator[dict[str, Any]]:
    """fastinit.moments beside torch's passes, and beside a sum and a copy's half: the read limit."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(elements, dtype=torch.float32, device="cuda").to(dtype)
        y = torch.empty_like(x)
        timings = race(
            {
                "fastinit": lambda x=x: fastinit.moments(x),
                "higher=True": lambda x=x: fastinit.moments(x, higher=True),
                **{
                    name: lambda x=x, asked=asked: fastinit.moments(x, **asked)
                    for name, asked in COUNTED.items()
                },
                "sum": x.sum,
                "copy": lambda x=x, y=y: y.copy_(x),
                "std": lambda x=x: torch.std(x),
                "var_mean": lambda x=x: torch.var_mean(x),
                "four passes": lambda x=x: eager(x),
            },
            rounds,
        )
        mine = timings["fastinit"]
        yield {
            "dtype": str(dtype).removeprefix("torch."),
            "ms": mine.median * 1e3,
            "spread": mine.spread,
            "GB per s": x.nbytes / mine.median / 1e9,
            **{f"times {n}": t.median / mine.median for n, t in timings.items() if n != "fastinit"},
        }


def host_clock(run: Callable[[], object], each: int = 100) -> float:
    """Seconds that a call takes on the host, of ``each`` in turn, none of which is waited for."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(each):
        run()
    taken = time.perf_counter() - start
    torch.cuda.synchronize()
    return taken / each


def calls(rounds: int) -> Iterator[dict[str, Any]]:
    """What a call on 64 x 64 elements costs on the host."""
    x = torch.empty(64, 64, device="cuda")
    peers = {
        "uniform_": (lambda: init.uniform_(x), lambda: torch.nn.init.uniform_(x)),
        "normal_": (lambda: init.normal_(x), lambda: torch.nn.init.normal_(x)),
        "kaiming_uniform_": (
            lambda: init.kaiming_uniform_(x),
            lambda: torch.nn.init.kaiming_uniform_(x),
        ),
        "moments, std": (lambda: fastinit.moments(x), lambda: torch.std(x)),
    }
    for name, (ours, theirs) in peers.items():
        timings = timing.race({"fastinit": ours, "torch": theirs}, rounds, clock=host_clock)
        mine, torchs = timings["fastinit"].median, timings["torch"].median
        yield {"call": name, "us": mine * 1e6, "torch us": torchs * 1e6}


def orthogonal(rounds: int) -> dict[str, Any]:
    tensor = torch.empty(4096, 4096, device="cuda")
    timings = race(
        {
            "fastinit": lambda: init.orthogonal_(tensor),
            "torch": lambda: torch.nn.init.orthogonal_(tensor),
        },
        rounds,
    )
    mine = timings["fastinit"]
    ratio = timings["torch"].median / mine.median
    return {"ms": mine.median * 1e3, "spread": mine.spread, "times torch": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 28, help="of each tensor (2^28)")
    parser.add_argument("--rounds", type=int, default=15, help="of which the median counts (15)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file; by default none")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here")
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    print(f"{options.elements:,} elements, median of {options.rounds} rounds ± half their range;")
    print("ratios are the peer's time over fastinit's in the same rounds\n")

    results: dict[str, Any] = {
        "gpu": gpu,
        "machine": timing.machine(),
        "time": time.strftime("%F %T"),
    }
    results["fills"] = list(fills(options.elements, options.rounds))
    rows = [["fill", "dtype", "ms", "GB/s", "zero_", "torch", "triton"]]
    rows += [
        [
            r["law"],
            r["dtype"],
            f"{r['ms']:.3f} ±{r['spread']:.0%}",
            f"{r['GB per s']:.0f}",
            *(f"{r[f'times {peer}']:.2f}" for peer in ("zero_", "torch", "triton")),
        ]
        for r in results["fills"]
    ]
    print(table(rows, "<<>>>>>"), "\n")

    results["models"] = list(models(options.rounds))
    rows = [["bfloat16 model", "tensors", "ms", "parameters/s", "torch's ms", "torch"]]
    rows += [
        [
            r["model"],
            str(r["tensors"]),
            f"{r['ms']:.2f} ±{r['spread']:.0%}",
            f"{r['parameters per s']:.3g}",
            f"{r['torch ms']:.2f}",
            f"{r['times torch']:.2f}",
        ]
        for r in results["models"]
    ]
    print(table(rows, "<>>>>>"), "\n")

    results["moments"] = list(moments(options.elements, options.rounds))
    peers = ("higher=True", "sum", "copy", "std", "var_mean", "four passes")
    rows = [["moments", "ms", "GB/s", *peers]]
    rows += [
        [
            r["dtype"],
            f"{r['ms']:.3f} ±{r['spread']:.0%}",
            f"{r['GB per s']:.0f}",
            *(f"{r[f'times {peer}']:.2f}" for peer in peers),
        ]
        for r in results["moments"]
    ]
    print(table(rows, "<>>>>>>>>"), "\n")

    results["calls"] = list(calls(options.rounds))
    rows = [["call on 64 x 64 elements", "us on the host", "torch's us"]]
    rows += [[r["call"], f"{r['us']:.1f}", f"{r['torch us']:.1f}"] for r in results["calls"]]
    print(table(rows, "<>>"), "\n")

    results["orthogonal"] = orthogonal(min(5, options.rounds))
    r = results["orthogonal"]
    print(f"orthogonal_ 4096²: {r['ms']:.1f} ms ±{r['spread']:.0%}, torch {r['times torch']:.2f}")

    if options.out:
        path = timing.save(results, options.out, "gpu", gpu)
        print(f"\nsaved as {path}")


if __name__ == "__main__":
    main()
