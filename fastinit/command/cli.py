"""The program: its commands, of which info, init, inspect and report are here, and its exit status.

All that take a model name it alike, take its seed, dtype and a saved plan alike, and put what they make
where ``--out`` says.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastinit.backends import installation
from fastinit.base import program, text
from fastinit.command import (
    bench,
    coord,
    devices,
    faults,
    lsuv,
    options,
    output,
    progress,
    report,
    timed,
    trial,
    write,
)
from fastinit.command.asked import (
    Asked,
    Device,
    Dtype,
    Model,
    OfParameters,
    SavedPlan,
    Seed,
    Threads,
)
from fastinit.plan.parameters import distinct_parameters, held
from fastinit.variance.run.run import Run
from fastinit.variance.watch.watch import Watch, watch

app = typer.Typer(
    help="Initialises PyTorch models at memory speed.",
    epilog="Exit status: 0 done; 1 a mistake in fastinit; 2 what you can mend, said in one line; "
    "3 coord-check: a layer is not flat; 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)
command = partial(output.command, app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(installation.version())
        raise typer.Exit


@app.callback()
def whole(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Prints the version."),
    ] = False,
) -> None:
    """Initialises PyTorch models at memory speed."""


@command("info")
def info_command() -> None:
    """What is installed, which backend is chosen and why."""
    found = installation.info()
    output.say(report.info(found))
    output.give(**found)


@command("init")
def init_command(
    model_name: Model,
    seed: Seed = None,
    dtype: OfParameters = Dtype.float32,
    saved: SavedPlan = None,
    threads: Threads = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also time torch.nn.init on the same tensors.")
    ] = False,
    device: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=devices.names,
            help="auto (default: the first GPU with enough free memory, else the CPU), cpu, cuda or "
            "cuda:N; given again, on each.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Saves the plan to this JSON file.")] = None,
) -> None:
    """Initialises a model, says what is in it and how long it took.

    Example: python -m fastinit init llama-3.2-1b --seed 0 --compare

    Example: python -m fastinit init my_package.model:build --out plan.json
    """
    out = options.plan_file("--out", out)
    asked = Asked(seed, saved, threads, device or ["auto"])
    begun = time.perf_counter()
    model, recipe = asked.planned(model_name, dtype)
    timings = [report.Timing("model on meta, plan", time.perf_counter() - begun)]
    parameters = [parameter for _, _, parameter in distinct_parameters(model)]
    size = sum(parameter.nbytes for parameter in parameters)
    places = asked.places(size, "the parameters")
    output.put(out, recipe.save)
    used = text.counted("thread", torch.get_num_threads())
    said = (
        f"{type(model).__name__}, {dtype.value}, seed {recipe.seed}\n"
        f"{sum(p.numel() for p in parameters):,} elements, {size / 1e9:.2f} GB, {used}"
    )
    results = []
    for place in places:
        done, data = place.attempt(partial(timed.initialised, model, recipe, timings, compare))
        output.say(f"{said}\n{done}")
        said = ""
        results.append(data)
    output.give(
        model=type(model).__name__,
        dtype=dtype.value,
        seed=recipe.seed,
        elements=sum(p.numel() for p in parameters),
        bytes=size,
        threads=torch.get_num_threads(),
        devices=results,
        plan=out,
    )


@command("inspect")
def inspect_command(
    model_name: Model,
    seed: Seed = None,
    dtype: OfParameters = Dtype.float32,
    saved: SavedPlan = None,
    threads: Threads = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help=f"Sequences of tokens; by default {trial.BATCH}.")
    ] = None,
    device: Device = "auto",
    length: Annotated[
        int | None, typer.Option(min=2, help=f"Tokens of each; by default {trial.LENGTH}.")
    ] = None,
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
    """Shows how variance travels through a model, on random input.

    Example: python -m fastinit inspect gpt2-xl --dtype bfloat16 --out depth.png

    Example: python -m fastinit inspect torchvision.models:resnet18 --shape 8x3x224x224
    """
    out = options.picture("--out", out)
    run = options.trial(shape, batch, length)
    asked = Asked(seed, saved, threads, [device])
    model, plan = asked.planned(model_name, dtype)
    run.check(model, model_name)
    watch(model, gradients=gradients)  # raises if there is nothing to watch
    needed = sum(parameter.nbytes for _, _, parameter in distinct_parameters(model))
    what = "the parameters" + " and their gradients" * gradients
    [place] = asked.places(needed * (1 + gradients), what)

    def watched_on(place: devices.Choice) -> tuple[devices.Choice, Watch]:
        with held(model, place.device):
            plan.apply_(model)
            wanted = getattr(torch, dtype.value)
            with (
                devices.buffers_on(model, place.device),
                watch(model, gradients=gradients) as seen,
                progress.running("running", model, 1, gradients),
            ):
                run.run(model, model_name, plan.seed, place.device, wanted, gradients)
            _ = seen.layers
        return place, seen

    place, watched = place.attempt(watched_on)
    output.say(f"{type(model).__name__}, {dtype.value}, {run}\n{place}\n")
    output.say(watched.table())
    output.put(out, watched.plot)
    output.give(
        model=type(model).__name__,
        dtype=dtype.value,
        seed=plan.seed,
        input={"sizes": run.sizes, "tokens": run.tokens},
        device=str(place.device),
        why=place.why,
        watched=json.loads(watched.to_json()),
        picture=out,
    )


command("coord-check")(coord.coord_command)
command("lsuv")(lsuv.lsuv_command)
command("bench")(bench.bench_command)


@command("report")
def report_command(
    measured: Annotated[
        Path, typer.Argument(metavar="STATS", help="The file of JSON lines that watch(to=) wrote.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; by default beside STATS, with the ending .html.")
    ] = None,
) -> None:
    """Makes a page of HTML of a training that was watched.

    It is one file, and needs no network.

    Example: python -m fastinit report stats.jsonl --out report.html
    """
    from fastinit.variance.run.report import summary

    options.read("STATS", measured)
    out = options.page("--out", out or measured.with_suffix(".html"))
    run = Run.load(measured)
    output.put(out, partial(run.report, title=measured.name))
    output.say(text.pairs({**summary(run), "page": out}))
    output.give(steps=run.steps, layers=run.layers, page=out)


command("write")(write.write_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, or 2 after bad input, said in one line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if empty := _empty(given):
        print(f"fastinit: {empty}", file=sys.stderr)
        return faults.USER
    # Shells complete the script, whoever asks them to.
    completes = given[:1] in (["--install-completion"], ["--show-completion"])
    try:
        status = app(
            given,
            prog_name=program.SCRIPT if completes or program.is_script() else "python -m fastinit",
            standalone_mode=False,
        )
    except typer.Abort:
        return faults.INTERRUPTED
    except Exception as error:
        if completes:
            said, of_error = faults.line(error)
            print(said, file=sys.stderr)
            return of_error
        if not _is_usage(error):
            raise
        no_arguments = type(error).__name__ == "NoArgsIsHelpError"
        message = error.format_message()  # type: ignore[attr-defined]
        if not no_arguments:  # typer would spread it over four lines
            message = " ".join(message.replace("Value error, ", "").split())  # pydantic's
            message = f"fastinit: {message}"
            if given[0] in output.OF_COMMANDS:
                message = f"fastinit: {given[0]} goes behind the command, as in: info {given[0]}"
        print(message, file=sys.stderr)
        return faults.USER
    return status if isinstance(status, int) else 0


def _empty(given: Sequence[str]) -> str:
    """What is said of an empty value, as of a variable that is not set; empty if there is none.

    typer would take it for the current directory where a path is asked for. Whose it is says its parser.
    """
    if given[:1] == [""]:
        return "the command is empty"
    commands: Any = typer.main.get_command(app)
    named = commands.commands.get(next(iter(given), None))
    if named is None:
        return ""
    try:
        read, others, _ = named.make_parser(named.context_class(named)).parse_args([*given[1:]])
    except Exception as error:
        if _is_usage(error):
            return ""  # it is said when the command is run
        raise
    for one in named.params:
        value = read.get(one.name)
        if "" in (value if isinstance(value, list) else [value]):
            what = one.opts[0] if one.param_type_name == "option" else one.metavar
            return f"{what} is empty"
    return "an argument too many, which is empty" if "" in others else ""


def _is_usage(error: Exception) -> bool:
    """Whether typer raised it for a command line that it cannot read.

    The class is click's in some versions of typer and its own in others; this method is what they share.
    """
    return hasattr(error, "format_message")
