"""Timed: a model initialised on a device, measured, and raced with torch.nn.init, as text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fastinit.backends import choose as backends
from fastinit.base import memory, text
from fastinit.command import devices, progress, report
from fastinit.plan.fill import Fill
from fastinit.plan.parameters import distinct_parameters, held
from fastinit.plan.plan import Plan
from fastinit.plan.write import Progress as OnProgress
from fastinit.stream.laws import Law


def initialised(
    model: nn.Module,
    recipe: Plan,
    before: Sequence[report.Timing],
    compare: bool,
    place: devices.Choice,
) -> tuple[str, dict[str, Any]]:
    """Initialises a model, which is on meta before and afterwards: what there is to say, and as data.

    Args:
        model: on meta.
        recipe: its plan.
        before: timings of what came before.
        compare: also with torch.nn.init.
        place: the device.
    """
    timings = list(before)
    clock = devices.clock(place.device)
    on_cpu = place.device.type == "cpu"
    begun = time.perf_counter()
    with held(model, place.device):
        timings.append(report.Timing("allocation", time.perf_counter() - begun))
        parameters = [parameter for _, _, parameter in distinct_parameters(model)]
        elements = sum(parameter.numel() for parameter in parameters)
        size = sum(parameter.nbytes for parameter in parameters)

        def timed(name: str, work: Callable[[OnProgress | None], object]) -> float:
            with progress.shown(name, elements, speaks=on_cpu) as on_progress:
                seconds = clock(lambda: work(on_progress))
            timings.append(report.Timing(name, seconds, elements, size))
            return seconds

        # A GPU's memory is never fresh, but its kernels are loaded when they are first run.
        states = ("fresh memory", "warm memory") if on_cpu else ("first run", "later runs")
        ours = "fill" if on_cpu else f"fill by {backends.choose(place.device).name}"
        mine = [timed(f"{ours}, {s}", lambda p: recipe.apply_(model, progress=p)) for s in states]
        with progress.shown("measuring", elements, speaks=on_cpu) as on_progress:
            measured = report.measure(model, recipe, progress=on_progress)
        ratios = {}  # of like with like: what fresh memory costs is the system's work, and anyone's
        if compare:
            for state, seconds in zip(states, mine):
                if state == "fresh memory" and not all(
                    memory.drop_pages(parameter.detach()) for parameter in parameters
                ):
                    continue
                peer = f"torch.nn.init, {state}"
                theirs = timed(peer, lambda p: _torch_init_(model, recipe, p))
                ratios[state] = theirs / seconds
    lines = [str(place), "", report.init_table(measured), "std measured over all elements", ""]
    lines.append(report.time_table(timings))
    if compare:
        if on_cpu:
            lines += [
                "",
                "in fresh memory, the system has to give each page when it is first written",
            ]
        if skipped := _without_peer(recipe):
            many = text.counted("parameter", len(skipped))
            lines.append(f"torch.nn.init has no function for {many}, left out of its time only")
        lines.append(report.comparison(ratios))
    data = {
        "device": str(place.device),
        "why": place.why,
        "groups": report.init_data(measured),
        "timings": [timing._asdict() for timing in timings],
        "times torch.nn.init": ratios,
    }
    return "\n".join(lines), data


def _torch_init_(model: nn.Module, plan: Plan, on_progress: OnProgress | None) -> None:
    """The plan's laws, written by torch.nn.init one tensor after the other; the rest is left."""
    todo = [(p, next(plan[n] for n in ns if n in plan)) for ns, _, p in distinct_parameters(model)]
    total = sum(parameter.numel() for parameter, _ in todo)
    written = 0
    for parameter, fill in todo:
        if isinstance(fill, Fill) and fill.has_law:
            _torch_fill_(parameter, fill.law)
        if on_progress is not None:
            written += parameter.numel()
            on_progress(written, total)


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
