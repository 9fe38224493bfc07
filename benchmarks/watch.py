"""What a watch that stays on costs a training: ``python -m benchmarks.watch``.

Steps (forward, backward and the optimizer's) of small models, watched with gradients and told to a file
of JSON lines, take turns with the same steps of a twin that is not watched, of models as they are and
of compiled ones (``fullgraph=True``), whose graphs measure. ``every=1`` is timed. The cost of
``every=100`` is a hundredth of it and that of calling step() where nothing is measured, which is timed
too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import fastinit
from benchmarks.timing import machine, save
from fastinit.base.text import table

Loss = Callable[[], Tensor]
Step = Callable[[], object]


def resnet() -> tuple[nn.Module, Loss]:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    model = ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", num_labels=1000))
    images = torch.randn(16, 3, 224, 224)
    labels = torch.randint(1000, (16,))
    return model, lambda: model(images, labels=labels).loss


def gpt2() -> tuple[nn.Module, Loss]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=6, n_embd=512, n_head=8, vocab_size=8192, n_positions=256)
    model = GPT2LMHeadModel(config)
    return model, _next_word(model, 8192)


def llama() -> tuple[nn.Module, Loss]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8192,
    )
    model = LlamaForCausalLM(config)
    return model, _next_word(model, 8192)


def _next_word(model: nn.Module, words: int) -> Loss:
    tokens = torch.randint(words, (4, 256))

    def loss() -> Tensor:  # transformers' own warns within, which no full graph can
        logits = model(tokens).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


MODELS = {"ResNet-18": resnet, "GPT-2, 6 layers of 512": gpt2, "Llama, 6 layers of 512": llama}


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """Two records for each model, which runs as it is and compiled: seconds of a step, and what
    watching adds to it."""
    for (name, build), compiled in product(MODELS.items(), (False, True)):
        (model, step), (_, plain) = (_trained(build, compiled) for _ in range(2))
        name += ", compiled" * compiled
        yield {"model": name, **_of_model(model, step, plain, rounds)}


def _trained(build: Callable[[], tuple[nn.Module, Loss]], compiled: bool) -> tuple[nn.Module, Step]:
    """A model, and a step of its training."""
    model, loss = build()
    if compiled:
        model.compile(fullgraph=True)
    return model, partial(_step, loss, torch.optim.AdamW(model.parameters(), lr=1e-5))


def _step(loss: Loss, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def _of_model(model: nn.Module, step: Step, plain: Step, rounds: int) -> dict[str, Any]:
    """Of two like models, of which one is watched. A round is plain, watched, watched, plain."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with TemporaryDirectory() as folder:
        on = fastinit.watch(model, gradients=True, every=1, to=f"{folder}/stats.jsonl")
        with on:
            runs = {False: plain, True: lambda: (step(), on.step())}
            for _, watched in product(range(2), runs):  # compiles, and sets the hooks
                runs[watched]()
            for _ in range(rounds):
                both = {False: 0.0, True: 0.0}
                for watched in (False, True, True, False):
                    both[watched] += _seconds(runs[watched]) / 2
                for watched, each in both.items():
                    seconds[watched].append(each)
    off = fastinit.watch(model, gradients=True, every=10**9, start=1)
    with off:
        idle = _seconds(lambda: [off.step() for _ in range(1000)]) / 1000
    ratios = [w / p - 1 for p, w in zip(seconds[False], seconds[True])]
    a_step, cost = statistics.median(seconds[False]), statistics.median(ratios)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": len(on.layers),
        "seconds a step": a_step,
        "cost of every=1": cost,
        "lower quartile": quartiles[0],
        "upper quartile": quartiles[2],
        "cost of every=100": cost / 100 + idle / a_step,
    }


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of which the median counts (9)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file; by default none")
    options = parser.parse_args()
    about = machine()
    print(f"{about['cpu']}, {about['cores']} threads, torch {torch.__version__}")
    print(f"median of {options.rounds} rounds [quartiles]\n")
    results: dict[str, Any] = {"machine": about, "rounds": options.rounds, "models": []}
    rows = [["model", "layers", "s a step", "every=1 adds", "every=100 adds"]]
    for record in measure(options.rounds):
        print(f"measured: {record['model']}", file=sys.stderr)
        results["models"].append(record)
        span = f"[{record['lower quartile']:.1%}, {record['upper quartile']:.1%}]"
        rows.append(
            [
                record["model"],
                str(record["layers"]),
                f"{record['seconds a step']:.3f}",
                f"{record['cost of every=1']:.1%} {span}",
                f"{record['cost of every=100']:.3%}",
            ]
        )
    print(table(rows, "<>>>>"))
    if options.out:
        print(f"\nsaved as {save(results, options.out, 'watch', about['cpu'])}")


if __name__ == "__main__":
    main()
