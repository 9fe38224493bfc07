"""Commands: ``python -m fastinit info``, ``init CONFIG`` and ``inspect CONFIG``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from fastinit import backends, keys, memory, models, report
from fastinit.fill import Fill
from fastinit.parameters import allocate_, distinct_parameters
from fastinit.plan import Plan
from fastinit.recipes import transformers_default
from fastinit.watch import watch
from fastinit.writing import Progress as OnProgress

app = typer.Typer(
    help="Initialises PyTorch models at memory speed.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


class Dtype(str, Enum):
    """The dtypes that a model can be initialised in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Config = Annotated[
    str, typer.Argument(help="A config.json, a directory with one, or a shipped name.")
]
Seed = Annotated[int, typer.Option(help="In [0, 2^64).")]
OfParameters = Annotated[Dtype, typer.Option(help="Of the parameters.")]


@app.command("info")
def info_command() -> None:
    """What is installed, which backend is chosen and why."""
    typer.echo(report.info(backends.info()))


@app.command("init")
def init_command(
    config: Config,
    seed: Seed = 0,
    dtype: OfParameters = Dtype.float32,
    threads: Annotated[
        int | None, typer.Option(min=1, help="By default torch's number of threads.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also time torch.nn.init on the same tensors.")
    ] = False,
    plan: Annotated[Path | None, typer.Option(help="Saves the plan to this file.")] = None,
) -> None:
    """Initialises a model and says what is in it and how long that took.

    Example: python -m fastinit init llama-3.2-1b --seed 0 --compare
    """
    if threads is not None:
        torch.set_num_threads(threads)
    element_type = getattr(torch, dtype.value)
    with _errors_in_one_line():
        keys.check_seed(seed)
        settings = models.load_config(config)
        rule = transformers_default(settings)
        started = time.perf_counter()
        model = models.skeleton(settings, element_type)
        made = time.perf_counter()
        recipe = Plan.from_model(model, rule, seed)
        _check_room(model)
        if plan is not None:
            recipe.save(plan)
        planned = time.perf_counter()
        allocate_(model)
        allocated = time.perf_counter()
        models.check_written(model, recipe)

    parameters = [parameter for _, _, parameter in distinct_parameters(model)]
    elements = sum(parameter.numel() for parameter in parameters)
    size = sum(parameter.nbytes for parameter in parameters)
    timings = [
        report.Timing("skeleton on meta", made - started),
        report.Timing("allocation", allocated - planned),
    ]

    def timed(name: str, work: Callable[[OnProgress | None], object]) -> float:
        with _shown(name, elements) as on_progress:
            begun = time.perf_counter()
            work(on_progress)
            seconds = time.perf_counter() - begun
        timings.append(report.Timing(name, seconds, elements, size))
        return seconds

    timed("fill, fresh memory", lambda p: recipe.apply_(model, progress=p))
    ours = timed("fill, warm memory", lambda p: recipe.apply_(model, progress=p))
    with _shown("measuring", elements) as on_progress:
        measured = report.measure(model, recipe, progress=on_progress)
    theirs = None
    if compare:
        theirs = timed("torch.nn.init, warm memory", lambda p: _torch_init_(model, recipe, p))

    used = torch.get_num_threads()
    typer.echo(f"{type(model).__name__}, {dtype.value}, seed {seed}")
    typer.echo(f"{elements:,} elements, {size / 1e9:.2f} GB, {used} thread{'s' * (used > 1)}\n")
    typer.echo(report.init_table(measured))
    typer.echo("std measured over all elements\n")
    typer.echo(report.time_table(timings))
    if theirs is not None:
        typer.echo(
            f"\nfastinit is {theirs / ours:.1f} times as fast as torch.nn.init (warm memory)"
        )


@app.command("inspect")
def inspect_command(
    config: Config,
    seed: Seed = 0,
    dtype: OfParameters = Dtype.float32,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 128,
    gradients: Annotated[bool, typer.Option(help="Also those of the training loss.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Draws the variances to this file.")] = None,
) -> None:
    """Initialises a model and shows how variance travels through it, on random tokens.

    Example: python -m fastinit inspect gpt2-xl --dtype bfloat16 --plot depth.png
    """
    with _errors_in_one_line():
        keys.check_seed(seed)
        settings = models.load_config(config)
        rule = transformers_default(settings)
        model = models.skeleton(settings, getattr(torch, dtype.value))
        _check_room(model)
        Plan.from_model(model, rule, seed).apply_(model, device="cpu")
        generator = torch.Generator().manual_seed(seed % 2**63)
        tokens = torch.randint(settings.vocab_size, (batch, length), generator=generator)
        with watch(model, gradients=gradients) as watched, torch.set_grad_enabled(gradients):
            out = model(input_ids=tokens, labels=tokens)
            if gradients:
                out.loss.backward()
        typer.echo(f"{type(model).__name__}, {dtype.value}, {batch} x {length} random tokens\n")
        typer.echo(watched.table())
        if plot is not None:
            watched.plot(plot)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, or 2 after bad input, said in one line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = app(given, prog_name="fastinit", standalone_mode=False)
    except typer.Abort:
        return 130
    except Exception as error:
        # Usage errors, which typer would spread over four lines. Their class is click's in some
        # versions of typer and its own in others; this method is what they share.
        if not hasattr(error, "format_message"):
            raise
        no_arguments = type(error).__name__ == "NoArgsIsHelpError"
        message = error.format_message()
        print(message if no_arguments else f"fastinit: {message}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        typer.echo(f"fastinit: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def _check_room(model: nn.Module) -> None:
    needed = sum(parameter.nbytes for _, _, parameter in distinct_parameters(model))
    free = memory.available_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"the parameters take {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB of memory are free"
        )


@contextmanager
def _shown(name: str, elements: int) -> Iterator[OnProgress | None]:
    """A progress bar on stderr; None, so that work goes in one piece, if that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description:26}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=elements)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _torch_init_(model: nn.Module, plan: Plan, progress: OnProgress | None) -> None:
    """The plan's distributions, written by torch.nn.init one tensor after the other."""
    todo = [(p, next(plan[n] for n in ns if n in plan)) for ns, _, p in distinct_parameters(model)]
    total = sum(parameter.numel() for parameter, _ in todo)
    written = 0
    for parameter, fill in todo:
        _torch_fill_(parameter, fill)
        if progress is not None:
            written += parameter.numel()
            progress(written, total)


def _torch_fill_(parameter: nn.Parameter, fill: Fill) -> None:
    functions: tuple[Callable[..., object], ...] = (
        nn.init.uniform_,
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.constant_,
    )
    functions[fill.law.kind](parameter, *fill.law.parameters.values())
