"""``python -m fastinit coord-check MODEL``: a coordinate check, and its models by width."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from fastinit import recipes
from fastinit.base import number
from fastinit.command import devices, faults, models, options, output, reads
from fastinit.command.asked import Asked, Device, Dtype, OfParameters, SavedPlan, Threads
from fastinit.plan.parameters import distinct_parameters
from fastinit.plan.plan import Plan
from fastinit.plan.ruled import Rule
from fastinit.record.block import deferred
from fastinit.record.materialize import recorded_plan
from fastinit.record.refused import DeferredError
from fastinit.variance.coord.check import coord_check
from fastinit.variance.coord.result import CoordCheck

FAILED = 3
"""The exit status of a check that finds a layer which is not flat."""

OF_TRAINING = 4
"""Times a parameter's bytes: itself, its gradient, and Adam's two moments."""


class Optimizers(str, Enum):
    """Those that a check can train with."""

    adam = "adam"
    sgd = "sgd"


class Norms(str, Enum):
    """What the size of an output is."""

    rms = "rms"
    l1 = "l1"


def coord_command(
    model_name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=models.shipped_configs,
            help="module:function, which returns the model of a width; or a transformers config.json, a "
            "directory with one or a shipped name, whose hidden_size is the width.",
        ),
    ],
    widths: Annotated[str, typer.Option(help="Two or more, as in 64,128,256.")],
    saved: SavedPlan = None,
    mup: Annotated[
        bool, typer.Option("--mup", help="muP of it, with the smallest width as the base.")
    ] = False,
    optimizer: Annotated[
        Optimizers, typer.Option(help="With the learning rates that the recipe has for it.")
    ] = Optimizers.adam,
    lr: Annotated[
        float | None, typer.Option(help="Of the base; by default 1e-3 for adam, 0.1 for sgd.")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=2, help="Forward passes, between which the optimizer steps.")
    ] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="How often each width is trained.")] = 3,
    norm: Annotated[
        Norms, typer.Option(help="Root mean square, or mean absolute value.")
    ] = Norms.rms,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences of tokens.")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens of each.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Of normal input instead of tokens, as in 32x64.")
    ] = None,
    dtype: OfParameters = Dtype.float32,
    threads: Threads = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "--plot", help="Draws sizes by width to this file.")
    ] = None,
) -> int:
    """Checks whether a model's activations depend on its width.

    It is trained for some steps at several widths. The loss is the model's own, on random tokens as
    their own labels; with --shape, what the model gives if that is a scalar, else the mean square of
    its difference to fixed random values. The exit status is 3 if a layer is not flat.

    Example: python -m fastinit coord-check my_model:build --widths 64,128,256 --shape 32x16 --mup

    Example: python -m fastinit coord-check gpt2-xl --widths 128,256,512 --plan gpt2
    """
    out = options.picture("--out", out)
    lr = None if lr is None else number.positive("--lr", lr)
    run, sizes = options.trial(shape, batch, length), options.widths(widths)
    if seeds < 2 and len(sizes) < 3:
        raise ValueError(f"--seeds must be at least 2 where there are two widths, but got {seeds}")
    asked = Asked(None, saved, threads, [device])
    build = models.by_width(model_name, getattr(torch, dtype.value))
    with deferred():
        least = build(min(sizes))
    reads.check()
    run.check(least, model_name)
    recipe: Rule | Plan | None = asked.saved
    if mup:
        recipe = recipes.mup(least, _rule(least, asked.saved))
    with deferred():
        most = build(max(sizes))
    needed = sum(parameter.nbytes for _, _, parameter in distinct_parameters(most))
    [place] = asked.places(OF_TRAINING * needed, "the parameters and Adam's moments")

    def checked_on(place: devices.Choice) -> tuple[devices.Choice, CoordCheck]:
        some: Any = run.inputs(least, 0, place.device, getattr(torch, dtype.value))
        given = {"input_ids": some, "labels": some} if run.tokens else some
        doing = f"{model_name} does not train on {run}"
        with faults.of_others(doing, (torch.OutOfMemoryError, DeferredError)):
            found = coord_check(
                build,
                sizes,
                given,
                steps,
                optimizer.value,
                recipe=recipe,
                lr=lr,
                norm=norm.value,
                seeds=seeds,
            )
        return place, found

    place, found = place.attempt(checked_on)
    output.say(f"{type(least).__name__}, {dtype.value}, {optimizer.value}, {run}\n{place}\n")
    output.say(found.table())
    output.put(out, found.plot)
    output.give(
        model=type(least).__name__,
        dtype=dtype.value,
        optimizer=optimizer.value,
        device=str(place.device),
        **json.loads(found.to_json()),
        picture=out,
    )
    return 0 if found.passed else FAILED


def _rule(model: nn.Module, saved: Plan | Rule | None) -> Rule:
    """What muP is of: a recipe, or what a plan or the constructors say of the base."""
    if saved is not None and not isinstance(saved, Plan):
        return saved
    plan = recorded_plan(model) if saved is None else saved

    def rule(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Any:
        return plan.get(name)

    return rule
