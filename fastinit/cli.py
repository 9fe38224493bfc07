"""Commands: ``python -m fastinit info``, ``init MODEL``, ``inspect MODEL`` and ``write MODEL``.

All that take a model name it alike, take its seed, dtype and a saved plan alike, and put what they make
where ``--out`` says.
"""

from __future__ import annotations

import re
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
from torch import Tensor, nn

from fastinit import backends, keys, memory, models, recipes, report
from fastinit.fill import Fill
from fastinit.laws import Law
from fastinit.materialize import recorded_plan
from fastinit.parameters import allocate_, distinct_parameters
from fastinit.plan import Plan
from fastinit.recorder import DeferredError
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


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A transformers config.json, a directory with one, a shipped name (gpt2-xl, "
        "llama-2-7b, llama-3.1-70b, llama-3.2-1b), or module:function, which returns a model.",
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="In [0, 2^64); by default the plan's, without one 0.")
]
OfParameters = Annotated[Dtype, typer.Option(help="Of the parameters.")]
SavedPlan = Annotated[
    str | None,
    typer.Option(
        "--plan",
        help="A saved plan, or a recipe (gpt2, llama, vit, torch_default, ...), instead of what the "
        "constructors do.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="By default torch's number of threads.")]


@app.command("info")
def info_command() -> None:
    """What is installed, which backend is chosen and why."""
    typer.echo(report.info(backends.info()))


@app.command("init")
def init_command(
    model_name: Model,
    seed: Seed = None,
    dtype: OfParameters = Dtype.float32,
    saved: SavedPlan = None,
    threads: Threads = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also time torch.nn.init on the same tensors.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Saves the plan to this JSON file.")] = None,
) -> None:
    """Initialises a model and says what is in it and how long that took.

    Example: python -m fastinit init llama-3.2-1b --seed 0 --compare

    Example: python -m fastinit init my_package.model:build --out plan.json
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with _errors_in_one_line():
        started = time.perf_counter()
        model, recipe = _planned(model_name, dtype, seed, saved)
        made = time.perf_counter()
        _check_room(model)
        if out is not None:
            recipe.save(out)
        planned = time.perf_counter()
        allocate_(model)
        allocated = time.perf_counter()
        models.check_written(model, recipe)

    parameters = [parameter for _, _, parameter in distinct_parameters(model)]
    elements = sum(parameter.numel() for parameter in parameters)
    size = sum(parameter.nbytes for parameter in parameters)
    timings = [
        report.Timing("model on meta, plan", made - started),
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
    skipped = _without_peer(recipe)
    if compare:
        theirs = timed("torch.nn.init, warm memory", lambda p: _torch_init_(model, recipe, p))

    used = torch.get_num_threads()
    typer.echo(f"{type(model).__name__}, {dtype.value}, seed {recipe.seed}")
    typer.echo(f"{elements:,} elements, {size / 1e9:.2f} GB, {used} thread{'s' * (used > 1)}\n")
    typer.echo(report.init_table(measured))
    typer.echo("std measured over all elements\n")
    typer.echo(report.time_table(timings))
    if theirs is not None:
        typer.echo(
            f"\nfastinit is {theirs / ours:.1f} times as fast as torch.nn.init (warm memory)"
        )
        if skipped:
            many = f"{len(skipped)} parameter{'s' * (len(skipped) > 1)}"
            typer.echo(f"torch.nn.init has no function for {many}, left out of its time only")


@app.command("inspect")
def inspect_command(
    model_name: Model,
    seed: Seed = None,
    dtype: OfParameters = Dtype.float32,
    saved: SavedPlan = None,
    threads: Threads = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 128,
    shape: Annotated[
        str | None,
        typer.Option(help="Of normal input instead of tokens, as in 8x3x224x224."),
    ] = None,
    gradients: Annotated[
        bool, typer.Option(help="Also those of the training loss; of the mean square, of --shape.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "--plot", help="Draws the variances to this file.")
    ] = None,
) -> None:
    """Initialises a model and shows how variance travels through it, on random input.

    Example: python -m fastinit inspect gpt2-xl --dtype bfloat16 --out depth.png

    Example: python -m fastinit inspect torchvision.models:resnet18 --shape 8x3x224x224
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with _errors_in_one_line():
        sizes = None if shape is None else _sizes(shape)
        model, plan = _planned(model_name, dtype, seed, saved)
        if sizes is None and not hasattr(getattr(model, "config", None), "vocab_size"):
            raise ValueError(f"{model_name} takes no tokens: say what it takes, as --shape 8x64")
        _check_room(model)
        plan.apply_(model, device="cpu")
        generator = torch.Generator().manual_seed(plan.seed % 2**63)
        with watch(model, gradients=gradients) as watched, torch.set_grad_enabled(gradients):
            if sizes is None:
                said = f"{batch} x {length} random tokens"
                loss = _loss_of_tokens(model, (batch, length), generator)
            else:
                said = f"normal input, {' x '.join(map(str, sizes))}"
                loss = _loss_of_normals(model, sizes, generator, getattr(torch, dtype.value))
            if gradients:
                loss.backward()
        typer.echo(f"{type(model).__name__}, {dtype.value}, {said}\n")
        typer.echo(watched.table())
        if out is not None:
            watched.plot(out)


@app.command("write")
def write_command(
    model_name: Model,
    out: Annotated[Path, typer.Option(help="The directory, which is made if there is none.")],
    seed: Seed = None,
    dtype: OfParameters = Dtype.float32,
    saved: SavedPlan = None,
    threads: Threads = None,
    shard_size: Annotated[
        str, typer.Option(help="The most bytes of tensors in a file: 5GB, 500MB, 2GiB.")
    ] = "5GB",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Says what would be written, and for how long.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replaces another model's shards in the directory.")
    ] = False,
) -> None:
    """Writes an initialised model to disk as safetensors, for from_pretrained, without holding it.

    Run again after it was killed, it keeps the shards that are whole.

    Example: python -m fastinit write llama-2-7b --out llama --dtype bfloat16 --shard-size 5GB

    Example: python -m fastinit write llama-3.1-70b --out llama --dtype bfloat16 --dry-run
    """
    from fastinit import checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    with _errors_in_one_line():
        started = time.perf_counter()
        model, recipe = _planned(model_name, dtype, seed, saved)
        plan = None if saved is None else recipe  # else also what has values already is stored
        planned = checkpoint.layout(model, plan, shard_size=shard_size)
        heading = (
            f"{type(model).__name__}, {dtype.value}, seed {planned.seed}\n"
            f"{planned.elements:,} elements, {planned.size / 1e9:.2f} GB\n"
        )
        if dry_run:
            typer.echo(heading)
            typer.echo(report.shard_table(planned.shards))
            typer.echo(f"\nplanned in {time.perf_counter() - started:.1f} s; nothing was written")
            typer.echo(report.rates(checkpoint.measure_rates(planned, out), planned.size))
            free = memory.free_disk_bytes(out)
            typer.echo(f"{free / 1e9:.2f} GB are free{', too few' * (free < planned.size)}")
            return
        with _shown("writing", planned.size) as on_progress:
            written = checkpoint.write(
                model,
                out,
                plan,
                shard_size=shard_size,
                progress=on_progress,
                overwrite=overwrite,
            )
        typer.echo(heading)
        typer.echo(report.written(written, str(out)))


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
    except (ValueError, NotImplementedError, OSError, ImportError, DeferredError) as error:
        typer.echo(f"fastinit: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def _planned(
    name: str, dtype: Dtype, seed: int | None, saved: str | None
) -> tuple[nn.Module, Plan]:
    """A model on meta and what its parameters shall be: as planned, or as its constructors do."""
    if seed is not None:
        keys.check_seed(seed)
    recipe = recipes.NAMES.get(saved or "")
    plan = None if saved is None or recipe is not None else Plan.load(saved)
    model = models.build(name, getattr(torch, dtype.value), seed or 0)
    if recipe is not None:
        return model, Plan.from_model(model, recipe, seed or 0)
    if plan is None:
        return model, recorded_plan(model)
    return model, plan if seed is None else Plan(plan, seed=seed, aliases=plan.aliases)


def _sizes(shape: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ValueError(f"--shape must be as in 8x3x224x224, but got {shape!r}")
    return tuple(map(int, shape.split("x")))


def _loss_of_tokens(model: nn.Module, sizes: tuple[int, int], generator: torch.Generator) -> Tensor:
    """The training loss on random tokens, which are their own labels."""
    tokens = torch.randint(int(model.config.vocab_size), sizes, generator=generator)  # type: ignore[union-attr, arg-type]
    loss = getattr(model(input_ids=tokens, labels=tokens), "loss", None)
    if not isinstance(loss, Tensor):
        raise ValueError(f"{type(model).__name__} gives no loss")
    return loss


def _loss_of_normals(
    model: nn.Module, sizes: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """The mean square of the output, on normal input."""
    out = model(torch.randn(sizes, generator=generator).to(dtype))
    if not isinstance(out, Tensor):
        raise ValueError(
            f"{type(model).__name__} must return a tensor, but got {type(out).__name__}"
        )
    return out.square().mean()


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
    """The plan's laws, written by torch.nn.init one tensor after the other; the rest is left."""
    todo = [(p, next(plan[n] for n in ns if n in plan)) for ns, _, p in distinct_parameters(model)]
    total = sum(parameter.numel() for parameter, _ in todo)
    written = 0
    for parameter, fill in todo:
        if isinstance(fill, Fill) and fill.has_law:
            _torch_fill_(parameter, fill.law)
        if progress is not None:
            written += parameter.numel()
            progress(written, total)


def _without_peer(plan: Plan) -> list[str]:
    """Names of parameters that are no law, which torch.nn.init has no one function for."""
    return [n for n, fill in plan.items() if not (isinstance(fill, Fill) and fill.has_law)]


def _torch_fill_(parameter: nn.Parameter, law: Law) -> None:
    functions: tuple[Callable[..., object], ...] = (
        nn.init.uniform_,
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.constant_,
    )
    functions[law.kind](parameter, *law.parameters.values())
