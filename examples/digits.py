"""Does it train? Deep nets without normalisation on handwritten digits, by initialisation.

    python examples/digits.py --seeds 5 --steps 300 --plot accuracy.png --json accuracy.json

trains three deep nets from several initialisations on the 8 x 8 digits that come with scikit-learn, and
a small one whose embedding's scale is moved into the layer after it. All but the first weights is the
same: the batches and their order (seed by seed), the optimiser, and its rate, which --rates chooses.
It needs scikit-learn and, for the picture, matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastinit import init, schedules
from fastinit.base.text import table
from fastinit.variance.lsuv.lsuv import lsuv_
from fastinit.variance.transfer import transfer_scale_

BATCH = 64
TEST = 500
LSUV_BATCH = 256
LEVELS = 17  # a pixel is one of 0 .. 16


class Digits(NamedTuple):
    """Levels of pixels, [count, 64] integers, and which digit each is. The split is always the same."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def load() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.data).long()[order], torch.tensor(data.target)[order]
    return Digits(x[TEST:], y[TEST:], x[:TEST], y[:TEST])


# --- nets --------------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """Levels as numbers of about mean 0 and std 1, as an image or as a row."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, levels: Tensor) -> Tensor:
        return ((levels - 4.9) / 6.0).view(-1, *self.shape)


class Maxout(nn.Module):
    """The larger of each channel's two pieces: Goodfellow et al. 2013."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(*x.chunk(2, dim=1))


def dense(activation: type[nn.Module], depth: int = 30, width: int = 128) -> nn.Sequential:
    """A plain net of ``depth`` Linear layers."""
    sizes = [64, *[width] * (depth - 1), 10]
    net = nn.Sequential(Pixels(64))
    for inputs, outputs in pairwise(sizes):
        net.extend([nn.Linear(inputs, outputs), activation()])
    return net[:-1]  # the last layer's outputs are the scores


def fitnet(channels: tuple[int, ...] = (8, 12, 16), each: int = 5) -> nn.Sequential:
    """Thin and deep, of 3 x 3 convolutions with maxout and pooling: after Romero et al. 2015."""
    net, inputs = nn.Sequential(Pixels(1, 8, 8)), 1
    for outputs in channels:
        for _ in range(each):
            net.extend([nn.Conv2d(inputs, 2 * outputs, 3, padding=1), Maxout()])
            inputs = outputs
        net.append(nn.MaxPool2d(2))
    return net.extend([nn.Flatten(), nn.Linear(inputs, 10)])


def embedded(width: int = 8) -> nn.Sequential:
    """Each pixel's level as a vector, the 64 vectors side by side, and two layers."""
    return nn.Sequential(
        nn.Embedding(LEVELS, width),
        nn.Flatten(),
        nn.Linear(64 * width, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


# --- initialisations ---------------------------------------------------------------------------------

Initialise = Callable[[nn.Sequential, int, Tensor], object]
"""Of a net, a seed and the training inputs, which only LSUV looks at."""


def weights(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of layers with their names. Biases are set to zero."""
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            yield name, parameter
        else:
            init.zeros_(parameter)


def torch_default(net: nn.Sequential, seed: int, x: Tensor) -> None:
    torch.manual_seed(seed)
    for module in net:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def xavier(net: nn.Sequential, seed: int, x: Tensor) -> None:
    for name, weight in weights(net):
        init.xavier_normal_(weight, seed=seed, name=name)


def kaiming(net: nn.Sequential, seed: int, x: Tensor) -> None:
    for name, weight in weights(net):
        init.kaiming_normal_(weight, nonlinearity="relu", seed=seed, name=name)


def orthonormal(net: nn.Sequential, seed: int, x: Tensor) -> None:
    for name, weight in weights(net):
        init.orthogonal_(weight, seed=seed, name=name)


def lsuv(net: nn.Sequential, seed: int, x: Tensor) -> None:
    """As in the paper: orthonormal, then scaled so that each layer's output has std 1."""
    orthonormal(net, seed, x)
    lsuv_(net, x[:LSUV_BATCH])


def alternating(net: nn.Sequential, seed: int, x: Tensor) -> None:
    """Kaiming's, but n Var[W] / 2 is 1.25 and 0.8 in turn: its product over all layers is still 1."""
    factor = schedules.alternating(1.25)
    for place, (name, weight) in enumerate(weights(net)):
        std = math.sqrt(2 * factor(place) / weight.shape[1])
        init.normal_(weight, std=std, seed=seed, name=name)


def embedding_times_3(net: nn.Sequential, seed: int, x: Tensor) -> None:
    """Three times the embedding and a third of the layer after it: the same function.

    To SGD it is another net. The embedding's gradient is a third of what it was, relative to weights
    that are three times as large; the next layer's is three times as large, relative to a third. The
    one learns 9 times as slowly as before, and the other 9 times as fast.
    """
    lsuv(net, seed, x)
    transfer_scale_(net[0], net[2], 3.0)


INITS: dict[str, Initialise] = {
    "torch's default": torch_default,
    "Xavier": xavier,
    "Kaiming": kaiming,
    "orthonormal": orthonormal,
    "LSUV": lsuv,
}


ALTERNATING = "Kaiming × 1.25, × 0.8"
MOVED = {"LSUV": lsuv, "LSUV, then × 3, ÷ 3": embedding_times_3}


class Case(NamedTuple):
    """A net, what it is initialised with, and the rate of its optimiser."""

    net: str
    make: Callable[[], nn.Sequential]
    inits: dict[str, Initialise]
    rate: float


CASES = (  # with the rates that --rates finds best
    Case("ReLU, 30 layers", lambda: dense(nn.ReLU), {**INITS, ALTERNATING: alternating}, 0.003),
    Case("tanh, 30 layers", lambda: dense(nn.Tanh), INITS, 0.003),
    Case("maxout convolutions, 16 layers", fitnet, INITS, 0.001),
)
EMBEDDINGS = (
    Case("embedding, low rate", embedded, MOVED, 0.003),
    Case("embedding, high rate", embedded, MOVED, 0.1),
)
RATES = (0.03, 0.01, 0.003, 0.001, 0.0003)


# --- training ----------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one initialisation of one net came to, in per cent of the test digits, for each seed."""

    net: str
    init: str
    rate: float
    early_steps: int
    steps: int
    early: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    """On the training digits, at the end. Of a guess it is log 10."""


def train(net: nn.Module, digits: Digits, steps: int, rate: float, seed: int) -> Iterator[int]:
    """SGD with momentum. Yields the number of steps done, after each."""
    optimiser = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        batch = torch.randint(len(digits.y), (BATCH,), generator=order)
        loss = nn.functional.cross_entropy(net(digits.x[batch]), digits.y[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield step


@torch.no_grad()
def accuracy(net: nn.Module, digits: Digits) -> float:
    """Per cent of the test digits. A net that has diverged says 0 to all, which some are."""
    return 100 * (net(digits.test_x).argmax(1) == digits.test_y).float().mean().item()


@torch.no_grad()
def training_loss(net: nn.Module, digits: Digits) -> float:
    return nn.functional.cross_entropy(net(digits.x), digits.y).item()


def run(
    case: Case, name: str, digits: Digits, seeds: Iterable[int], steps: int, rate: float
) -> Result:
    """Trains one net from one initialisation, once for each seed."""
    result = Result(case.net, name, rate, max(1, steps // 10), steps)
    for seed in seeds:
        net = case.make()
        case.inits[name](net, seed, digits.x)
        for step in train(net, digits, steps, rate, seed):
            if step == result.early_steps:
                result.early.append(accuracy(net, digits))
        result.accuracy.append(accuracy(net, digits))
        result.loss.append(training_loss(net, digits))
    return result


def experiment(
    digits: Digits, seeds: Iterable[int], steps: int, cases: Sequence[Case] = CASES + EMBEDDINGS
) -> Iterator[Result]:
    """All initialisations of all nets."""
    for case in cases:
        for name in case.inits:
            yield run(case, name, digits, seeds, steps, case.rate)


def mean_loss(case: Case, rate: float, digits: Digits, seeds: Iterable[int], steps: int) -> float:
    """What a rate is judged by: the training loss, over all initialisations, at most that of a guess."""
    results = [run(case, name, digits, seeds, steps, rate) for name in case.inits]
    guess = math.log(10)
    return statistics.fmean(
        loss if loss < guess else guess for result in results for loss in result.loss
    )  # NaN is not less


def changed_scores(digits: Digits, seeds: Iterable[int]) -> float:
    """By how much, at most, moving the embedding's scale changes what the net says, of std 1."""
    worst = 0.0
    for seed in seeds:
        nets = [embedded(), embedded()]
        lsuv(nets[0], seed, digits.x)
        embedding_times_3(nets[1], seed, digits.x)
        with torch.no_grad():
            worst = max(worst, (nets[0](digits.test_x) - nets[1](digits.test_x)).abs().max().item())
    return worst


# --- what is shown -----------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def difference(results: Iterable[Result], one: str, other: str) -> tuple[float, float]:
    """Of two initialisations of the first net, seed by seed: the mean, and its standard error."""
    of = {result.init: result.accuracy for result in results if result.net == CASES[0].net}
    by_seed = [a - b for a, b in zip(of[one], of[other])]
    return statistics.fmean(by_seed), spread(by_seed) / math.sqrt(len(by_seed))


def as_text(results: Sequence[Result]) -> str:
    first = results[0]
    rows = [["test accuracy, %", f"after {first.early_steps} steps", f"after {first.steps} steps"]]
    net = ""
    for result in results:
        if result.net != net:
            net = result.net
            rows.append([f"{net} (rate {result.rate:g})", "", ""])
        cells = [
            f"{statistics.fmean(values):.1f} ± {spread(values):4.1f}"
            for values in (result.early, result.accuracy)
        ]
        rows.append([f"  {result.init}", *cells])
    return table(rows, "<>>")


# Of a picture without a background: each has a contrast of 4 and more to white and to near black.
GREY, ORANGE = "#6f7d92", "#dd4f14"


def plot(results: Sequence[Result], path: Path) -> None:
    """A dot for each seed, a bar at their mean, a panel for each net; for light and dark pages."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), GREY)
    )
    from matplotlib import pyplot

    nets = list(dict.fromkeys(result.net for result in results))
    by_net = [[result for result in results if result.net == net] for net in nets]
    sizes = [len(group) for group in by_net]
    figure, panels = pyplot.subplots(
        len(nets),
        figsize=(7.5, 0.29 * sum(sizes) + 0.62 * len(nets)),
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": [size + 0.4 for size in sizes]},
        layout="constrained",
    )
    for panel, group in zip(panels[:, 0], by_net):
        for place, result in enumerate(group):
            colour = ORANGE if result.init.startswith("LSUV") else GREY
            mean = statistics.fmean(result.accuracy)
            panel.plot(
                result.accuracy,
                [place] * len(result.accuracy),
                "o",
                color=colour,
                alpha=0.45,
                markersize=6,
                markeredgewidth=0,
            )
            panel.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2)
            panel.text(
                102,
                place,
                f"{mean:.1f} ± {spread(result.accuracy):.1f}",
                va="center",
                color=colour,
                fontsize=9,
            )
        panel.axvline(10, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        panel.set_yticks(range(len(group)), [result.init for result in group], fontsize=9)
        panel.set_ylim(len(group) - 0.4, -0.6)
        panel.set_xlim(0, 101)
        title = f"{group[0].net} (rate {group[0].rate:g})"
        panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        panel.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.8, zorder=0)
    first = results[0]
    panels[-1, 0].set_xlabel(
        f"% of test digits right after {first.steps} steps: a dot for each of "
        f"{len(first.accuracy)} seeds, mean ± std; dotted: guessing",
        fontsize=9,
    )
    figure.savefig(path, dpi=160, transparent=True)
    pyplot.close(figure)


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """NaN is no JSON: a loss that is none is null."""
    records = [asdict(result) for result in results]
    for record in records:
        record["loss"] = [loss if math.isfinite(loss) else None for loss in record["loss"]]
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--plot", type=Path, help="the picture's file")
    parser.add_argument("--json", type=Path, help="a file for the results of each seed")
    parser.add_argument("--rates", action="store_true", help="only compare the rates, seed 1000")
    options = parser.parse_args()
    torch.set_num_threads(1)  # these nets are too small to be shared out
    digits, seeds = load(), range(options.seeds)
    if options.rates:
        rows = [["training loss at rate", *(f"{rate:g}" for rate in RATES)]]
        for case in CASES:
            losses = (mean_loss(case, rate, digits, [1000], options.steps) for rate in RATES)
            rows.append([case.net, *(f"{loss:.3f}" for loss in losses)])
        print(table(rows, "<" + ">" * len(RATES)))
        print("mean over initialisations, each at most log 10, that of a guess")
        return
    results = list(experiment(digits, seeds, options.steps))
    print(as_text(results))
    print(f"mean ± std over {options.seeds} seeds\n")
    mean, error = difference(results, ALTERNATING, "Kaiming")
    print(f"{ALTERNATING} - Kaiming: {mean:+.1f} ± {error:.1f} (standard error)")
    print(f"embedding × 3, ÷ 3: scores change by {changed_scores(digits, seeds):.1e} at most")
    if options.json:
        options.json.write_text(json.dumps(as_json(results), indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
