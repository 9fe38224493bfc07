"""Devices: on which one a command works: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; and how it is timed.

:func:`choose` is the rule, a function of what was asked for and of the GPUs that are there;
:func:`found` is what is there.
"""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from fastinit.backends import choose as backends
from fastinit.base import text, timing
from fastinit.fills import operator as ops
from fastinit.stream import laws

T = TypeVar("T")

CPU = torch.device("cpu")
MARGIN = 1 << 28
"""Bytes that kernels, their scratch memory and the allocator's rounding may take besides."""


class Gpu(NamedTuple):
    """A GPU that torch sees; the memory in bytes.

    ``problem`` says why it is of no use here, and is empty if it is.
    """

    number: int
    name: str
    free: int
    total: int
    problem: str = ""

    def lacks(self, needed: int) -> str:
        """Why it cannot be used for so many bytes; empty if it can."""
        if self.problem:
            return f"cuda:{self.number} ({self.name}): {self.problem}"
        if needed + MARGIN > self.free:
            return (
                f"cuda:{self.number} ({self.name}) has {self.free / 1e9:.1f} of "
                f"{self.total / 1e9:.1f} GB free, but {(needed + MARGIN) / 1e9:.1f} GB are needed"
            )
        return ""


class Choice(NamedTuple):
    """A device, and why it is that one."""

    device: torch.device
    why: str
    automatic: bool = False

    def __str__(self) -> str:
        return textwrap.fill(f"on {self.device}: {self.why}", text.WIDTH, subsequent_indent="  ")

    def attempt(self, work: Callable[[Choice], T]) -> T:
        """What ``work`` gives there; on the CPU if a GPU that was chosen here runs out of memory."""
        try:
            return work(self)
        except torch.OutOfMemoryError:
            if not self.automatic or self.device.type == "cpu":
                raise
        torch.cuda.empty_cache()
        return work(Choice(CPU, f"{self.device} ran out of memory"))


def names() -> list[str]:
    """What can be asked for on any machine."""
    return ["auto", "cpu", "cuda"]


def check(asked: str) -> str:
    """Raises ValueError unless it is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,3}))?", asked):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, but got {asked!r}")
    return asked


def choose(asked: str, needed: int, gpus: Sequence[Gpu], missing: str) -> Choice:
    """The device for so many bytes.

    Args:
        asked: ``auto``: the first GPU that can be used and has the memory, else the CPU; ``cuda``: that
            GPU, and no CPU.
        needed: bytes.
        gpus: those that there are.
        missing: why there are none.

    Raises:
        ValueError: a GPU was asked for that is not there or cannot be used.
    """
    if check(asked) == "cpu":
        return Choice(CPU, "as asked")
    _, _, index = asked.partition(":")
    here = [gpu for gpu in gpus if not index or gpu.number == int(index)]
    problems = [gpu.lacks(needed) for gpu in here]
    for gpu, problem in zip(here, problems):
        if not problem:
            why = f"{gpu.name}, {gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free"
            return Choice(torch.device("cuda", gpu.number), why, asked == "auto")
    if gpus and not here:
        there = ", ".join(f"cuda:{gpu.number}" for gpu in gpus)
        problems = [f"there is no {asked}, only {there}"]
    reason = "; ".join(problems) or f"no GPU can be used: {missing}"
    if asked == "auto":
        return Choice(CPU, reason, automatic=True)
    raise ValueError(f"--device {asked}: {reason}; --device auto takes the CPU then")


def found() -> tuple[list[Gpu], str]:
    """(the GPUs that torch sees, why there are none)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what is said here
            torch.cuda.init()
            count = torch.cuda.device_count()
    except Exception as error:  # of several types: no driver, one too old, a build without CUDA
        return [], reason(error)
    return [_gpu(index) for index in range(count)], "" if count else "there is none"


@contextmanager
def buffers_on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """While in force, the model's buffers are there too."""
    owners = [(m, n, b) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    there = {id(buffer): buffer.to(device) for _, _, buffer in owners}
    for module, name, buffer in owners:
        module._buffers[name] = there[id(buffer)]
    try:
        yield
    finally:
        for module, name, buffer in owners:
            module._buffers[name] = buffer


def reason(error: Exception) -> str:
    """What torch says of CUDA that cannot be used, without what it advises.

    >>> reason(RuntimeError("Found no NVIDIA driver on your system. Please check that you have..."))
    'Found no NVIDIA driver on your system'
    """
    said = " ".join(str(error).split())
    if "not compiled with CUDA" in said:
        return "this torch is built without CUDA"
    code = re.search(r"Error \d+: [^.]*", said)
    first = re.split(r"[.!](?: |$)| CUDA kernel errors| Please ", said)[0]
    return f"{first} ({code[0].strip()})" if code and code[0] not in first else first


def clock(device: torch.device) -> timing.Clock:
    """How a call is timed: seconds by CUDA events on a GPU, else by the clock."""
    if device.type != "cuda":
        return timing.wall_clock

    def events(work: Callable[[], object]) -> float:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            work()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3

    return events


def _gpu(index: int) -> Gpu:
    """What one of the GPUs is. That a fill runs there is tried, as torch builds have a list of GPUs."""
    device, name, free, total = torch.device("cuda", index), "GPU", 0, 0
    try:
        name = torch.cuda.get_device_name(device)
        if backends.choose(device).name == "reference":
            return Gpu(index, name, free, total, f"only the slow {backends.explain(device)}")
        ops.fill_(torch.empty(4, device=device), laws.constant(0.0), seed=0).sum().item()
        free, total = torch.cuda.mem_get_info(device)
    except Exception as error:  # torch's, a driver's, a compiler's
        return Gpu(index, name, free, total, reason(error) or type(error).__name__)
    return Gpu(index, name, free, total)
