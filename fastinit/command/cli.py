"""Commands: ``python -m fastinit info``, ``report STATS``, and ``init``, ``inspect``, ``coord-check`` or
``write MODEL``.

All that take a model name it alike, take its seed, dtype and a saved plan alike, and put what they make
where ``--out`` says.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastinit.backends import installation
from fastinit.base import memory, program, text
from fastinit.command import (
    bench,
    coord,
    devices,
    faults,
    job,
    lsuv,
    options,
    output,
    progress,
    report,
    timed,
    trial,
)
from fastinit.command.asked import (
    Asked,
    ByPattern,
    Device,
    Dtype,
    Format,
    Model,
    OfCheckpoint,
    OfParameters,
    SavedPlan,
    Seed,
    StoredAs,
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
    options.file("--out", out, model_name)
    asked = Asked(seed, saved, threads, device or ["auto"])
    begun = time.perf_counter()
    model, recipe = asked.planned(model_name, dtype)
    timings = [report.Timing("model on meta, plan", time.perf_counter() - begun)]
    parameters = [parameter for _, _, parameter in distinct_parameters(model)]
    size = sum(parameter.nbytes for parameter in parameters)
    places = asked.places(size, "the parameters")
    if out is not None:
        recipe.save(out)
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
    options.picture("--out", out)
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
    if out is not None:
        watched.plot(out)
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
    out = options.page("--out", out or measured.with_suffix(".html"), measured)
    run = Run.load(measured)
    run.report(out, measured.name)
    output.say(text.pairs({**summary(run), "page": out}))
    output.give(steps=run.steps, layers=run.layers, page=out)


@command("write")
def write_command(
    model_name: Model,
    out: Annotated[Path, typer.Option(help="The directory, which is made if there is none.")],
    seed: Seed = None,
    dtype: OfCheckpoint = StoredAs.float32,
    storage: ByPattern = None,
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
    verify: Annotated[
        bool, typer.Option("--verify", help="Computes every byte of what is there again.")
    ] = False,
    form: Annotated[
        Format, typer.Option("--format", help="dcp is torch.distributed.checkpoint's.")
    ] = Format.safetensors,
) -> None:
    """Writes an initialised model to disk, without holding it.

    As safetensors, for from_pretrained.

    Run again after it was killed, it keeps the shards that are whole; with --verify, to the last byte.
    Started by torchrun, its processes share the work; the directory has to be one that all see.

    Example: python -m fastinit write llama-2-7b --out llama --dtype bfloat16 --shard-size 5GB

    Example: python -m fastinit write llama-3.1-70b --out llama --dtype bfloat16 --dry-run

    Example: torchrun --nproc-per-node 8 -m fastinit write llama-3.1-70b --out llama --dtype nvfp4
    """
    from fastinit import checkpoint
    from fastinit.checkpoint import safetensors as checkpoint_files

    options.directory("--out", out)
    if form is Format.dcp and (verify or dry_run):
        raise ValueError("--format dcp has neither --verify nor --dry-run")
    stored = dtype.storage(storage)
    if form is Format.dcp and stored is not None:
        what = f"--dtype {dtype.value}" if not storage else "--storage"
        raise ValueError(f"--format dcp has no {what}")
    limit = checkpoint_files.parse_size(shard_size)
    asked = Asked(seed, saved, threads)
    started = time.perf_counter()
    model, recipe = asked.planned(model_name, dtype.others)
    plan = None if saved is None else recipe  # else also what has values already is stored
    about = (
        f"{type(model).__name__}, {', '.join([*(storage or ()), dtype.value])}, seed {recipe.seed}"
    )
    with job.joined() as speaks:
        if dry_run:
            if speaks:
                planned = checkpoint.layout(
                    model, plan, shard_size=limit, dtype=stored, no_dist=True
                )
                seconds = time.perf_counter() - started
                rates = checkpoint.measure_rates(planned, out)
                free = memory.free_disk_bytes(out)
                output.say(report.dry_run(about, planned, seconds, rates, free))
                output.give(
                    **report.layout_data(planned),
                    planned_in_seconds=seconds,
                    made_bytes_per_second=rates.made,
                    disk_bytes_per_second=rates.disk,
                    expected_seconds=rates.seconds(planned.size),
                    free_bytes=free,
                )
            return
        if form is Format.dcp:
            started = time.perf_counter()
            checkpoint.write_dcp(model, out, plan, overwrite=overwrite)
            if speaks:
                seconds = time.perf_counter() - started
                output.say(f"{about}\n\n{report.written_dcp(out, seconds)}")
                output.give(directory=out, seed=recipe.seed, seconds=seconds)
            return
        doing = "verifying, writing" if verify else "writing"
        with progress.shown(doing, 1, "bytes", speaks) as on_progress:
            written = checkpoint.write(
                model,
                out,
                plan,
                shard_size=limit,
                dtype=stored,
                progress=on_progress,
                overwrite=overwrite,
                verify=verify,
            )
        if speaks:
            output.say(f"{about}\n{report.size(written.layout)}\n")
            output.say(report.written(written, str(out)))
            output.give(
                directory=out,
                **report.layout_data(written.layout),
                written_bytes=written.bytes,
                seconds=written.seconds,
                kept_files=written.kept,
                verified_bytes=written.verified,
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, or 2 after bad input, said in one line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    for before, word in pairwise(["the program's name", *given]):
        if re.fullmatch(r"(--[\w-]+=)?", word):  # as of a variable that is not set
            print(f"fastinit: the value behind {word[:-1] or before} is empty", file=sys.stderr)
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


def _is_usage(error: Exception) -> bool:
    """Whether typer raised it for a command line that it cannot read.

    The class is click's in some versions of typer and its own in others; this method is what they share.
    """
    return hasattr(error, "format_message")
