"""``python -m fastinit write MODEL``: an initialised model as files, which no memory need hold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fastinit.base import memory
from fastinit.command import job, options, output, progress, report
from fastinit.command.asked import (
    Asked,
    ByPattern,
    Format,
    Model,
    OfCheckpoint,
    SavedPlan,
    Seed,
    StoredAs,
    Threads,
)


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

    if form is Format.dcp and (verify or dry_run):
        raise ValueError("--format dcp has neither --verify nor --dry-run")
    stored = dtype.storage(storage)
    if form is Format.dcp and stored is not None:
        what = f"--dtype {dtype.value}" if not storage else "--storage"
        raise ValueError(f"--format dcp has no {what}")
    names = checkpoint_files.FILES
    if form is Format.dcp:
        from fastinit.checkpoint.dcp_writing import FILES as names
    options.directory("--out", out, names)
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
