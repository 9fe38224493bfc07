"""Fills of one large tensor: law x dtype x threads, and the instruction sets and layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.timing import per_call, race
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


def calls() -> Iterator[dict[str, Any]]:
    """What a call on four elements costs."""
    tensor = torch.empty(2, 2)
    for name, ours, theirs in (
        ("normal_", init.normal_, peer.normal_),
        ("uniform_", init.uniform_, peer.uniform_),
        ("trunc_normal_", init.trunc_normal_, peer.trunc_normal_),
        ("kaiming_uniform_", init.kaiming_uniform_, peer.kaiming_uniform_),
    ):
        mine = per_call(lambda f=ours: f(tensor))
        other = per_call(lambda f=theirs: f(tensor))
        yield {
            "name": name,
            "microseconds": mine.median * 1e6,
            "spread": mine.spread,
            "torch microseconds": other.median * 1e6,
        }


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
