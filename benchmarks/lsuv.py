"""``python -m benchmarks.lsuv``: LSUV in one forward, beside the published procedure in plain torch.

The peer is algorithm 1 of Mishkin & Matas (ICLR 2016, arXiv 1511.06422) without its orthonormal start,
so that both begin with the same weights (torch's default) and leave biases alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.timing import machine, race
from fastinit.base.text import table
from fastinit.variance.lsuv.lsuv import lsuv_

TOLERANCE = 0.1  # of the variance: the paper's Tol_var
ITERATIONS = 10  # the paper's T_max


class Peer(NamedTuple):
    """What the published procedure took."""

    seconds: float
    forwards: int
    layers: int


def published_lsuv_(model: nn.Module, x: Tensor, budget: float = math.inf) -> Peer:
    """Mishkin & Matas, algorithm 1: a forward through the whole net for each layer and repetition.

    The output goes to the CPU, as in the authors' code and its ports. On a CPU that costs nothing.

    Args:
        budget: seconds, after which no further layer is begun. The forwards for one layer cost what
            those for another do, so the whole net's time follows from the layers that were done.
    """
    begun, forwards, done = time.perf_counter(), 0, 0
    variances: list[float] = []

    def measure_output(module: nn.Module, args: Any, out: Tensor) -> None:
        variances.append(out.cpu().var().item())  # at once: a ReLU may follow that works in place

    with torch.no_grad():
        for layer in layers_of(model).values():
            if time.perf_counter() - begun > budget:
                break
            handle = layer.register_forward_hook(measure_output)
            for _ in range(ITERATIONS):
                model(x)
                forwards += 1
                variance = variances.pop()
                if abs(variance - 1) < TOLERANCE:
                    break
                layer.weight.div_(math.sqrt(variance))
            handle.remove()
            done += 1
    return Peer(time.perf_counter() - begun, forwards, done)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with weights, in the order in which they run (here, that of registration)."""
    kinds = (nn.Linear, nn.Conv2d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def deviations(model: nn.Module, x: Tensor) -> list[float]:
    """Of each layer's output, |std - 1| in float64, in a plain forward."""
    found: list[float] = []

    def watch(module: nn.Module, args: Any, out: Tensor) -> None:
        found.append(abs(out.double().std().item() - 1))

    handles = [layer.register_forward_hook(watch) for layer in layers_of(model).values()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


class Bottleneck(nn.Module):
    """He et al. 2016: 1 x 1, 3 x 3, 1 x 1, and a projection where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = 4 * width
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, wide, 1),
        )
        same = stride == 1 and channels == wide
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, wide, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.branch(x) + self.shortcut(x))


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> nn.Sequential:
    """ResNet-50's shapes, without normalisation.

    LSUV is for nets without it, and it makes the asked-for ratio harder to reach: batch norm would add
    to the plain forward, and convolutions that it does not follow have biases, which are measured
    channel by channel.
    """
    modules: list[nn.Module] = [
        nn.Conv2d(3, width, 7, stride=2, padding=3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            inner = width << stage
            modules.append(Bottleneck(channels, inner, 2 if stage and not block else 1))
            channels = 4 * inner
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def mlp(depth: int = 64, width: int = 2048) -> nn.Sequential:
    """Linear layers, each followed by a ReLU."""
    pairs = ((nn.Linear(width, width), nn.ReLU(inplace=True)) for _ in range(depth))
    return nn.Sequential(*(module for pair in pairs for module in pair))


class Case(NamedTuple):
    name: str
    model: Callable[[], nn.Module]
    batch: tuple[int, ...]


FULL = (
    Case("MLP 64 x 2048", mlp, (1024, 2048)),
    Case("ResNet-50 shapes", resnet, (8, 3, 224, 224)),
)
SMALL = (
    Case("MLP 16 x 512", lambda: mlp(16, 512), (1024, 512)),
    Case("ResNet [1, 1, 1, 1]", lambda: resnet((1, 1, 1, 1)), (8, 3, 64, 64)),
)


def measure(
    rounds: int, cases: tuple[Case, ...] = FULL, budget: float = math.inf
) -> Iterator[dict[str, Any]]:
    """One record for each net. The peer runs once, for at most about ``budget`` seconds.

    A plain forward and lsuv_ take turns, from the same weights, so their ratio is the rounds' own; what
    the peer is to be compared with is far from 1.
    """
    for case in cases:
        yield _record(case, rounds, budget)


def _record(case: Case, rounds: int, budget: float) -> dict[str, Any]:
    torch.manual_seed(0)
    model, x = case.model(), torch.randn(case.batch)
    weights = list(model.parameters())
    copies = [weight.detach().clone() for weight in weights]

    def restore() -> None:
        with torch.no_grad():
            torch._foreach_copy_(weights, copies)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def ours() -> object:
        return lsuv_(model, x)

    # restore takes its turn too, and nobody looks at its time.
    timings = race({"restore": restore, "forward": forward, "lsuv_": ours}, rounds)

    restore()
    forwards: list[nn.Module] = []
    counter = model.register_forward_pre_hook(lambda module, args: forwards.append(module))
    result = lsuv_(model, x)
    counter.remove()
    deviation = max(deviations(model, x))

    restore()
    peer = published_lsuv_(model, x, budget)
    peer_deviation = max(deviations(model, x)[: peer.layers])  # of the layers that it has done

    layers = len(layers_of(model))
    assert layers == len(result.layers)
    plain, mine = timings["forward"], timings["lsuv_"]
    whole = peer.seconds * layers / peer.layers
    return {
        "net": case.name,
        "batch": case.batch,
        "layers": layers,
        "weights": sum(weight.numel() for weight in weights),
        "forward seconds": plain.median,
        "forward spread": plain.spread,
        "lsuv_ seconds": mine.median,
        "lsuv_ spread": mine.spread,
        "lsuv_ forwards": len(forwards),
        "lsuv_ max |std - 1|": deviation,
        "lsuv_ times forward": mine.median / plain.median,
        "peer measured seconds": peer.seconds,
        "peer measured layers": peer.layers,
        "peer measured forwards": peer.forwards,
        "peer max |std - 1|": peer_deviation,
        "peer extrapolated": peer.layers < layers,
        "peer seconds": whole,
        # Near 1: what a forward of the peer's costs, whichever layer it is for.
        "peer forward times forward": peer.seconds / peer.forwards / plain.median,
        "times peer": whole / mine.median,
    }


def _rows(record: dict[str, Any]) -> list[list[str]]:
    plain = record["forward seconds"]
    about = "~" if record["peer extrapolated"] else ""
    done = ""
    if record["peer extrapolated"]:
        done = f", {record['peer measured layers']} layers"
    layers = record["peer measured layers"]
    forwards = record["peer measured forwards"] * record["layers"] / layers
    return [
        [f"{record['net']}, {record['layers']} layers", "", "", "", "", ""],
        [
            "  plain no_grad forward",
            f"{plain:.3f}",
            f"±{record['forward spread']:.0%}",
            "1.00",
            "1",
            "",
        ],
        [
            "  fastinit.lsuv_",
            f"{record['lsuv_ seconds']:.3f}",
            f"±{record['lsuv_ spread']:.0%}",
            f"{record['lsuv_ times forward']:.2f}",
            str(record["lsuv_ forwards"]),
            f"{record['lsuv_ max |std - 1|']:.1e}",
        ],
        [
            f"  published LSUV{done}",
            f"{about}{record['peer seconds']:.1f}",
            "",
            f"{about}{record['peer seconds'] / plain:.0f}",
            f"{about}{forwards:.0f}",
            f"{record['peer max |std - 1|']:.1e}",
        ],
        [f"  published / lsuv_: {about}{record['times peer']:.0f}", "", "", "", "", ""],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lsuv", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (5)")
    parser.add_argument("--small", action="store_true", help="smaller nets, some seconds")
    parser.add_argument(
        "--budget",
        type=float,
        default=180.0,
        help="seconds for the peer on each net, beyond which it is extrapolated (180; inf: never)",
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the records; by default none")
    options = parser.parse_args()

    about = machine()
    print(f"{about['cpu']}, {about['cores']} threads, torch {torch.__version__}")
    print(f"median of {options.rounds} rounds ± half their range; the peer runs once;")
    print("~ is extrapolated from the layers that the peer did within its budget\n")
    records = []
    rows = [["net", "seconds", "", "× fwd", "forwards", "max |std - 1|"]]
    for record in measure(options.rounds, SMALL if options.small else FULL, options.budget):
        records.append(record)
        rows += _rows(record)
    print(table(rows, "<>>>>>"))
    if options.out:
        saved = {"machine": about, "rounds": options.rounds, "nets": records}
        options.out.write_text(json.dumps(saved, indent=1) + "\n")
        print(f"\nsaved as {options.out}")


if __name__ == "__main__":
    main()
