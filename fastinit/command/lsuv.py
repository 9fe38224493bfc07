"""``python -m fastinit lsuv MODEL --data FILE --out PLAN``: a model's plan, scaled on data."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from fastinit.base import number, text
from fastinit.command import devices, faults, options, output, progress
from fastinit.command.asked import Asked, Device, Dtype, Model, OfParameters, Seed, Threads
from fastinit.command.trial import Trial, tables_asked
from fastinit.record.refused import DeferredError
from fastinit.variance.lsuv.affine import LSUVError
from fastinit.variance.lsuv.lsuv import lsuv_
from fastinit.variance.lsuv.result import LSUVResult

SKIP_DEAD = "--skip-dead"


def lsuv_command(
    model_name: Model,
    data: Annotated[
        Path,
        typer.Option(
            help="A .npy file: integers [n, length], which are tokens, or floating-point inputs "
            "[n, ...]."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Saves the scaled plan to this JSON file.")],
    seed: Seed = None,
    dtype: OfParameters = Dtype.float32,
    threads: Threads = None,
    device: Device = "auto",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Rows that run at once; by default all.")
    ] = None,
    target_std: Annotated[float, typer.Option(help="Of every layer's output.")] = 1.0,
    skip_dead: Annotated[
        bool,
        typer.Option(
            SKIP_DEAD, help="Leaves layers without variance as they are, which may be meant."
        ),
    ] = False,
) -> None:
    """Scales a model's initial weights by LSUV, on your data.

    Every layer's output then has one std. The model is never in memory as a whole. The plan goes to
    init, inspect and write as --plan.

    Example: python -m fastinit lsuv gpt2-xl --data tokens.npy --out plan.json

    Example: python -m fastinit lsuv my_package.model:build --data images.npy --batch 64 --out plan.json
    """
    out = options.plan_file("--out", out) or out
    target_std = number.positive("--target-std", target_std)
    values = read(data, getattr(torch, dtype.value))
    asked = Asked(seed, None, threads, [device])
    run = Trial(tuple(values.shape), not values.is_floating_point(), f"--data {data}")
    model, plan = asked.planned(model_name, dtype)
    run.check(model, model_name)
    what = f"the tokens of {data}, which are integers" if run.tokens else str(data)
    rows = list(values.split(batch or len(values)))
    needed = max(_bytes(module) for module in model.modules()) + rows[0].nbytes
    [place] = asked.places(needed, "the largest layer and what it runs on")

    def scaled_on(place: devices.Choice) -> tuple[devices.Choice, LSUVResult]:
        def given(some: Tensor) -> Tensor | dict[str, Tensor]:
            there = some.to(place.device)
            return {"input_ids": there} if run.tokens and _names_tokens(model) else there

        with (
            faults.of_others(f"{model_name} does not run on {what}", _OURS),
            devices.buffers_on(model, place.device),
            tables_asked(model),
            progress.running("LSUV", model, len(rows), gradients=False),
        ):
            return place, lsuv_(
                model,
                batches=rows,
                get_input=given,
                target_std=target_std,
                device=place.device,
                dead="skip" if skip_dead else "error",
            )

    try:
        place, result = place.attempt(scaled_on)
    except LSUVError as error:
        raise LSUVError(str(error).replace('dead="skip"', SKIP_DEAD)) from None
    assert result.plan is not None
    output.put(out, result.plan.save)
    about = f"{type(model).__name__}, {dtype.value}, seed {plan.seed}"
    output.say(f"{about}, on {text.counted('row', len(values))} of {data}\n{place}\n")
    output.say(f"{result.table()}\n\n{out}: {result.plan!r}")
    output.give(
        model=type(model).__name__,
        dtype=dtype.value,
        seed=plan.seed,
        rows=len(values),
        device=str(place.device),
        why=place.why,
        passes=result.passes,
        layers=_layers(result),
        missing=result.passed,
        plan=out,
    )


_OURS = (ValueError, LSUVError, DeferredError, torch.OutOfMemoryError)
"""What says by itself what is wrong."""


def read(path: Path, dtype: torch.dtype) -> Tensor:
    """What a model runs on: int64 tokens [n, length], or inputs [n, ...] of a dtype.

    Raises:
        ValueError: another kind of file or array; none there. OSError: it cannot be read.
        ModuleNotFoundError: NumPy is not installed.
    """
    import numpy as np

    options.read("--data", path)
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):  # which tell of pickles, whatever it is
        raise ValueError(
            f"--data {path} is no .npy file of numbers, as np.save writes it"
        ) from None
    kind = getattr(getattr(array, "dtype", None), "kind", "an archive")
    if kind in "iuf" and array.ndim >= 2 and not array.size:
        raise ValueError(f"--data {path} has no values: it is {array.dtype} {list(array.shape)}")
    if kind in "iu" and array.ndim == 2:
        return torch.from_numpy(array.astype(np.int64))
    if kind == "f" and array.ndim >= 2:
        with np.errstate(over="ignore"):  # it is said below
            values = torch.from_numpy(array.astype(np.float32)).to(dtype)
        if not values.isfinite().all():
            raise ValueError(f"--data {path} has values that are not finite in {dtype}")
        return values
    found = f"{array.dtype} {list(array.shape)}" if hasattr(array, "dtype") else kind
    raise ValueError(
        f"--data {path} must have integers [n, length] or floating-point values [n, ...], but "
        f"has {found}"
    )


def _names_tokens(model: nn.Module) -> bool:
    """Whether its forward has the name that transformers has for tokens; else they come first."""
    return "input_ids" in inspect.signature(model.forward).parameters


def _bytes(module: nn.Module) -> int:
    """Those of a module's own parameters, which are in memory while it runs."""
    return sum(parameter.nbytes for parameter in module.parameters(recurse=False))


def _layers(result: LSUVResult) -> list[dict[str, Any]]:
    return [
        {
            "name": layer.name,
            "kind": layer.kind,
            "std_before": float(layer.before.std),
            "scale": layer.scale,
            "std": layer.std,
            "target": layer.target,
            "note": layer.note,
        }
        for layer in result.layers
    ]
