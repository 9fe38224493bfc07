"""Fills of one large tensor: law x dtype x threads, and the instruction sets and layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.timing import race
from fastinit import init
from fastinit.backends.choose import native
from fastinit.command.bench import KAIMING, NARROW, NORMAL, TRUNCATED, UNIFORM, Case

peer = torch.nn.init


def _numpy_normal(generator: np.random.Generator, out: Any) -> None:
    generator.standard_normal(out=out, dtype=out.dtype)


def _numpy_uniform(generator: np.random.Generator, out: Any) -> None:
    generator.random(out=out, dtype=out.dtype)


NUMPY: dict[str, Callable[[np.random.Generator, Any], object]] = {
    UNIFORM.name: _numpy_uniform,
    NORMAL.name: _numpy_normal,
}

CASES = (
    (UNIFORM, torch.float32),
    (UNIFORM, torch.bfloat16),
    (KAIMING, torch.float32),
    (NORMAL, torch.float32),
    (NORMAL, torch.bfloat16),
    (NORMAL, torch.float16),
    (NORMAL, torch.float64),
    (TRUNCATED, torch.float32),
    (NARROW, torch.float32),
    (NARROW, torch.bfloat16),
)


def measure(elements: int, threads: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """One record for each line of the table."""
    for count in threads:
        with _threads(count):
            for case, dtype in CASES:
                yield _record(case, dtype, elements, count, rounds)
    count = threads[-1]
    with _threads(count):
        assert native.module is not None
        in_use = native.module.isa()
        for isa, usable in native.module.isas().items():
            if usable and isa != in_use:
                native.module.force_isa(isa)
                for case in (UNIFORM, NORMAL):
                    yield _record(case, torch.float32, elements, count, rounds, note=isa)
        native.module.force_isa(in_use)
        yield _record(NORMAL, torch.float32, elements, count, rounds, note="ᵀ")


FURTHER_ARGUMENTS: dict[str, tuple[float, ...]] = {"constant_": (0.5,), "sparse_": (0.5,)}
"""What functions of ``torch.nn.init`` take beyond the tensor, where that is not enough."""


def calls(rounds: int = 101, each: int = 100) -> Iterator[dict[str, Any]]:
    """What a call on four elements of a parameter costs: each function that torch.nn.init has too.

    Args:
        rounds: turns of both, of which the median counts.
        each: calls in one turn.
    """
    for name in init.__all__:
        if not name.endswith("_") or not hasattr(peer, name):
            continue
        shape = (2, 2, 1) if name == "dirac_" else (2, 2)
        arguments = (torch.nn.Parameter(torch.empty(shape)), *FURTHER_ARGUMENTS.get(name, ()))
        timings = race(
            {
                "fastinit": partial(_repeated, getattr(init, name), arguments, each),
                "torch": partial(_repeated, getattr(peer, name), arguments, each),
            },
            rounds,
        )
        mine, other = timings["fastinit"].median, timings["torch"].median
        yield {
            "name": name,
            "microseconds": mine / each * 1e6,
            "spread": timings["fastinit"].spread,
            "torch microseconds": other / each * 1e6,
            "of torch": mine / other,
        }


def _repeated(function: Callable[..., object], arguments: tuple[Any, ...], times: int) -> None:
    for _ in range(times):
        function(*arguments)


def _record(
    case: Case, dtype: torch.dtype, elements: int, threads: int, rounds: int, note: str = ""
) -> dict[str, Any]:
    side = 1 << (elements.bit_length() // 2)
    tensor = torch.empty(side, elements // side, dtype=dtype)
    view = tensor.t() if note == "ᵀ" else tensor
    contenders: dict[str, Callable[[], object]] = {
        "fastinit": lambda: case.ours(view),
        "zero_": tensor.zero_,
    }
    if note == "ᵀ":
        contenders["contiguous"] = lambda: case.ours(tensor)
    else:
        contenders["torch"] = lambda: case.torch(tensor)
    if case.name in NUMPY and dtype in (torch.float32, torch.float64):
        array, generator, fill = tensor.numpy(), np.random.default_rng(0), NUMPY[case.name]
        contenders["numpy"] = lambda: fill(generator, array)
    timings = race(contenders, rounds)
    mine = timings["fastinit"]
    count = tensor.numel()
    return {
        "law": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "note": note,
        "elements": count,
        "ns per element": mine.median / count * 1e9,
        "spread": mine.spread,
        "GB per s": count * tensor.element_size() / mine.median / 1e9,
        **{
            f"times {name}": timing.median / mine.median
            for name, timing in timings.items()
            if name != "fastinit"
        },
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
