"""``python -m fastinit bench``: what each law costs here, beside torch.nn.init and the write limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from fastinit import init
from fastinit.backends import choose as backends
from fastinit.base import text, timing
from fastinit.command import devices, output, progress
from fastinit.command.asked import Asked, Device, Threads

peer = torch.nn.init
Fill = Callable[[Tensor], object]


class Case(NamedTuple):
    """One law: how fastinit and torch.nn.init fill a tensor with it."""

    name: str
    ours: Fill
    torch: Fill


UNIFORM = Case("uniform", init.uniform_, peer.uniform_)
NORMAL = Case("normal", init.normal_, peer.normal_)
TRUNCATED = Case("trunc ±2σ", init.trunc_normal_, peer.trunc_normal_)
NARROW = Case(
    "trunc std=.02",
    lambda t: init.trunc_normal_(t, std=0.02),
    lambda t: peer.trunc_normal_(t, std=0.02),
)
KAIMING = Case("kaiming_uniform", init.kaiming_uniform_, peer.kaiming_uniform_)
CASES = (UNIFORM, KAIMING, NORMAL, TRUNCATED, NARROW)
DTYPES = (torch.float32, torch.bfloat16)


def bench_command(
    device: Device = "auto",
    threads: Threads = None,
    elements: Annotated[
        int, typer.Option(min=1 << 10, max=1 << 34, help="Of the tensor that is filled.")
    ] = 1 << 26,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Of which the median counts.")] = 5,
) -> None:
    """What each law costs here, beside torch and the write limit.

    Of torch it is torch.nn.init; the limit is tensor.zero_(), which writes the same bytes.

    Example: python -m fastinit bench

    Example: python -m fastinit bench --device cpu --threads 1 --elements 10000000
    """
    asked = Asked(None, None, threads, [device])
    [place] = asked.places(4 * elements, "the tensor")
    clock = devices.clock(place.device)
    backend = backends.choose(place.device).name
    records: list[dict[str, Any]] = []
    total = len(CASES) * len(DTYPES)
    with progress.shown("filling", total, "laws") as on_progress:
        for dtype in DTYPES:
            tensor = torch.empty(elements // 64, 64, dtype=dtype, device=place.device)
            for case in CASES:
                records.append(measured(case, tensor, rounds, clock))
                if on_progress is not None:
                    on_progress(len(records), total)
    used = f", {text.counted('thread', torch.get_num_threads())}" * (place.device.type == "cpu")
    output.say(f"{place}\nfills by {backend}{used}, {elements:,} elements\n")
    output.say(table(records))
    output.say(
        f"\nmedian of {text.counted('round', rounds)} ± half their range; ratios are the other's time "
        f"over\nfastinit's in the same rounds; zero_ writes the same bytes, and no law"
    )
    output.give(
        device=str(place.device),
        why=place.why,
        backend=backend,
        threads=torch.get_num_threads(),
        elements=elements,
        rounds=rounds,
        laws=records,
    )


def measured(case: Case, tensor: Tensor, rounds: int, clock: timing.Clock) -> dict[str, Any]:
    """One law in one dtype: seconds, and times of others over fastinit's."""
    contenders: dict[str, Callable[[], object]] = {
        "fastinit": lambda: case.ours(tensor),
        "torch": lambda: case.torch(tensor),
        "zero_": tensor.zero_,
    }
    timings = timing.race(contenders, rounds, clock)
    mine = timings.pop("fastinit")
    return {
        "law": case.name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "seconds": mine.median,
        "spread": mine.spread,
        "ns per element": mine.median / tensor.numel() * 1e9,
        "GB per s": tensor.nbytes / mine.median / 1e9,
        **{f"times {name}": other.median / mine.median for name, other in timings.items()},
    }


def table(records: list[dict[str, Any]]) -> str:
    """In 80 columns, one line for each law and dtype."""
    rows = [["fill", "dtype", "ns/element", "GB/s", "torch", "zero_"]]
    for record in records:
        each = f"{record['ns per element']:.3f} ±{record['spread']:.0%}"
        ratios = (f"{record[f'times {name}']:.3g}" for name in ("torch", "zero_"))
        rows.append([record["law"], record["dtype"], each, f"{record['GB per s']:.1f}", *ratios])
    return text.table(rows, "<<>>>>")
