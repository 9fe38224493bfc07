"""``python -m benchmarks.scale``: what each parameter tensor costs, whatever its size; and each rank.

Mixtures of experts have a parameter tensor for each matrix of each expert: tens of thousands, most of
them small on each rank. Seconds are of the CPU, of all threads together, and the least of some rounds:
then they say the same on a machine that does other things meanwhile. The world is torch's fake process
group, in which this process is rank 0 of as many as asked.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import fastinit
from benchmarks.timing import cpu_name, machine, save
from fastinit.base.text import table
from fastinit.checkpoint.planning import layout
from fastinit.fills import operator as ops
from fastinit.recipes import torch_default
from fastinit.stream.keys import stream_id

T = TypeVar("T")

TURNS = 4
"""Of ``apply_`` and of the fill in it, one after the other: their difference is asked for."""

EXPERTS = 333
"""In a layer, of three matrices each: a layer has about a thousand parameter tensors."""


class Expert(nn.Module):
    """A gated MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)


class Layer(nn.Module):
    """The experts of a layer, with what chooses between them."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width) for _ in range(experts))


class Mixture(nn.Module):
    """A mixture of experts, of which only the parameters matter."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, EXPERTS) for _ in range(layers))


def taken(run: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds that a call takes, and what it gives."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def recorded(build: Callable[[], nn.Module]) -> nn.Module:
    with fastinit.deferred(seed=0):
        return build()


def steps(build: Callable[[], nn.Module]) -> dict[str, float]:
    """CPU seconds of each step, once; of ``apply_`` and its fill the least of :data:`TURNS`."""
    seconds: dict[str, float] = {}
    seconds["plain build"], model = taken(build)
    model = None
    gc.collect()
    seconds["deferred"], model = taken(lambda: recorded(build))
    seconds["recorded_plan"], plan = taken(lambda: fastinit.recorded_plan(model))
    seconds["layout"], _ = taken(lambda: layout(model, plan))
    seconds["materialize_"], _ = taken(lambda: fastinit.materialize_(model))
    requests = [
        ops.Request(parameter.detach(), plan[name].law, plan.seed, stream_id(name))  # type: ignore[union-attr]
        for name, parameter in model.named_parameters()
    ]
    turns = [
        (taken(lambda: plan.apply_(model))[0], taken(lambda: ops.fill_many_(requests))[0])
        for _ in range(TURNS)
    ]
    seconds["apply_"], seconds["the fill of apply_"] = map(min, zip(*turns))
    seconds["parameters"] = len(requests)
    return seconds


@contextmanager
def world(ranks: int) -> Iterator[None]:
    """This process is rank 0 of so many that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank(ranks: int, rounds: int) -> dict[str, float]:
    """CPU seconds of ``apply_`` on one rank of FSDP2.

    The DTensors are made here as ``fully_shard`` makes them, which itself takes as many temporaries for
    each parameter as there are ranks.
    """
    plan = fastinit.Plan.from_model(Mixture(1, 64), torch_default)
    found: dict[str, float] = {"parameters": len(plan)}
    with world(ranks):
        flat = init_device_mesh("cpu", (ranks,))
        with torch.device("meta"):
            model = Mixture(1, 64)
        for module in model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(_shard_of_first(p, flat)))
        found["apply_"] = min(taken(lambda: plan.apply_(model))[0] for _ in range(rounds))
    return found


def _shard_of_first(full: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    rows = -(-len(full) // mesh.size())
    local = torch.empty(rows, *full.shape[1:])
    return DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=full.shape, stride=full.stride()
    )


def speed(rounds: int) -> dict[str, Any]:
    """CPU seconds in which one thread writes normal numbers into memory that it wrote before."""
    tensor = torch.empty(1 << 27, dtype=torch.bfloat16)
    law = fastinit.Fill.normal(std=0.02).law
    seconds = min(taken(lambda: ops.fill_(tensor, law, seed=0))[0] for _ in range(rounds + 1))
    return {"law": "normal", "dtype": "bfloat16", "bytes": tensor.nbytes, "seconds": seconds}


def pieces(turns: int, rounds: int) -> float:
    """CPU seconds to say which elements a shard in so many turns is: FSDP2 over tensor parallelism."""
    part = fastinit.Part((2 * turns, 8)).split(0, ranks=2, rank=1, stride=turns)
    held = torch.empty(part.local_shape)
    return min(
        taken(lambda: fastinit.Part(part.shape, part.runs).pieces(held))[0] for _ in range(rounds)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[6, 23, 100], help="≈1000 tensors each"
    )
    parser.add_argument("--width", type=int, default=64, help="of experts, width x width")
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=3, help="one for more than 50 layers")
    parser.add_argument("--out", type=Path, help="write the results to this folder, as JSON")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "width": options.width}
    torch.set_num_threads(1)
    steps(lambda: Mixture(1, options.width))  # what is imported and looked up once
    results["steps"] = []
    for layers in options.layers:
        each = [
            steps(lambda layers=layers: Mixture(layers, options.width))
            for _ in range(options.rounds if layers <= 50 else 1)
        ]
        results["steps"].append({key: min(one[key] for one in each) for key in each[0]})
    names = [key for key in results["steps"][0] if key != "parameters"]
    rows = [("parameters", *names, "deferred / plain")]
    for row in results["steps"]:
        ratio = f"{row['deferred'] / row['plain build']:.1f}"
        rows.append((str(row["parameters"]), *(f"{row[key]:.3f}" for key in names), ratio))
    print(table(rows, ">" * len(rows[0])))
    results["ranks"] = {ranks: rank(ranks, options.rounds) for ranks in options.ranks}
    rows = [("ranks", "parameters", "apply_, s")]
    rows += [
        (str(n), str(r["parameters"]), f"{r['apply_']:.3f}") for n, r in results["ranks"].items()
    ]
    print(table(rows, ">>>"))
    results["pieces"] = {turns: pieces(turns, options.rounds) for turns in (64, 512, 4096)}
    print(
        table(
            [("turns", "pieces, s"), *((str(n), f"{s:.4f}") for n, s in results["pieces"].items())],
            ">>",
        )
    )
    results["fill"] = speed(options.rounds)
    written = results["fill"]
    print(
        f"\n{written['bytes'] / written['seconds'] / 1e9:.2f} GB/s of normal bfloat16, one thread"
    )
    if options.out:
        print(save(results, options.out, "scale", cpu_name()))


if __name__ == "__main__":
    main()
