"""What the PTX of the moments kernels is asked for, and whether it gives the reference's bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache
from typing import NamedTuple

import pytest
import torch
from gpu_moments import of_reading, raw_moments, tree
from ptx_memory import Memory
from ptx_moments import Host, MomentKernels
from same_bits import drawn
from torch import Tensor

from fastinit.backends.contract import Reading
from fastinit.statistics.reading import readings_of
from fastinit.statistics.tensor import moments
from fastinit.stream.reference_moments import FIELDS


class Asked(NamedTuple):
    """A tensor to measure, the dimension of its channels, and how far its rows lie apart.

    If at all, that is further than memory reaches: each is a buffer of its own.
    """

    tensor: Tensor
    dim: int | None = None
    apart: int = 0

    def readings(self) -> list[Reading]:
        """With the moments of tests/gpu_moments.py written."""
        channels = () if self.dim is None else (self.tensor.shape[self.dim],)
        raw = torch.empty(*channels, FIELDS, dtype=torch.float64)
        if self.apart:
            raw.copy_(raw_moments(self.tensor, False))
            return [Reading(self.tensor, self.tensor.shape, (self.apart, 1), False, raw)]
        readings = list(readings_of(self.tensor, self.dim, raw, []))
        for reading in readings:
            reading.raw.copy_(of_reading(reading))
        return readings


def values(dtype: torch.dtype) -> dict[str, Asked]:
    x = drawn(9_000, 2, seed=0, reach=12).add_(0.5).to(dtype)
    broken = x[:150].clone()
    broken[17, 1], broken[80, 0], broken[149, 1] = math.nan, math.inf, -math.inf
    columns = drawn(530, 35, seed=1).to(dtype)
    columns[520, 4], columns[:, 5] = math.inf, 1e4
    signs = torch.tensor([0.0, -0.0, -0.0, 0.0]).repeat(20).to(dtype)
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 4
    faded = x[:200].double() * (2.0**-60 if dtype.itemsize < 8 else 2.0**-515)
    return {
        "two chunks": Asked(x),
        "nothing": Asked(x[:0]),
        "zeros of both signs": Asked(signs[:77]),
        "negative zeros": Asked(signs[1:3]),
        "not finite": Asked(broken),
        "all is NaN": Asked(torch.full((70,), math.nan, dtype=dtype)),
        "subnormal": Asked(torch.tensor([least, -least, 2 * least]).to(dtype).repeat(30)),
        "its squares overflow": Asked(torch.full((100,), largest, dtype=dtype)[:97]),
        "and of both signs": Asked(torch.tensor([largest, -largest], dtype=dtype).repeat(40)),
        "faded": Asked(faded.to(dtype)),
        "faded columns": Asked(faded.to(dtype)[:40], 1),
        "far from zero": Asked((x[:1500] + 300).contiguous()),
        "every sixth": Asked(x[::3, :1]),
        "strided, 3-D": Asked(x.view(30, 20, 30)[::2, 3:17, 1:9]),
        "strided, 5-D": Asked(x.view(3, 10, 3, 10, 20)[::2, 1:8, 1:, ::3, 1:9]),
        "misaligned": Asked(x.flatten()[1:2400]),
        "rows far apart": Asked(x[:90].reshape(2, 90), apart=2**33 + 4),
        "columns": Asked(columns, 1),
        "aligned columns": Asked(x[:8000].view(-1, 32)[:515], 1),
        "columns of planes": Asked(columns.view(5, 106, 35)[:, 2:100], 2),
        "columns of a slice": Asked(columns[:7, 1:4], 1),
        "two columns": Asked(x[:50].t(), 0),
        "rows": Asked(x[:45].reshape(3, 30), 0),
    }


def whole_tasks() -> list[Asked]:
    """A tensor of four tasks, the last of them short; and columns of two tasks."""
    x = drawn(3 * 2**18 + 5000, seed=1, reach=12)
    return [Asked(x), Asked(x[: 3 * 8200].view(-1, 3), 1)]


def place(i: int) -> int:
    """Where the i-th buffer lies: high words that are not alike."""
    return 0x1000_0000_0000 + (i << 39)


def differing(kernels: MomentKernels, host: Host, cases: Sequence[Asked]) -> list[int]:
    """Measures all in one launch: the numbers of those whose moments are others, to the bit."""
    memory = Memory()
    all_readings: list[tuple[int, Reading]] = []
    data: list[int] = []
    results: list[int] = []
    for i, case in enumerate(cases):
        tensor, readings = case.tensor, case.readings()
        storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        if case.apart:
            for row, part in enumerate(tensor):
                memory.add(place(i) + row * case.apart * tensor.itemsize, raw_bytes(part))
        else:
            memory.add(place(i), storage.numpy().tobytes())
        for reading in readings:
            offset = 0 if case.apart else int(reading.tensor.storage_offset())
            data.append(place(i) + offset * tensor.itemsize)
            results.append(0x7000_0000_0000 + (len(results) << 33))
            memory.add(results[-1], reading.raw.nbytes)
            all_readings.append((i, reading))
    kernels.run(memory, host.numbered([r for _, r in all_readings], data, results))
    got = zip(all_readings, results)
    return [i for (i, reading), at in got if memory[at] != raw_bytes(reading.raw)]


def raw_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


# --- compiling -------------------------------------------------------------------------------------


@cache
def decoded(text: str) -> MomentKernels:
    return MomentKernels(text)


@pytest.fixture(scope="module")
def kernels(texts: dict[int, Future[str]]) -> MomentKernels:
    return decoded(next(iter(texts.values())).result())


def parts_are_merged(kernels: MomentKernels, host: Host, count: int = 300) -> bool:
    """Whether parts, more than twice the threads that merge, come together pairwise in their order."""
    parts = [moments(nine).raw for nine in drawn(count, 9, seed=2)]
    given = b"".join(raw_bytes(part) for part in parts)
    merged = tree(torch.stack(parts))
    large = torch.empty(count * 2**18, dtype=torch.float32, device="meta")
    memory = Memory()
    memory.add(place(0), merged.nbytes)
    told = host.numbered([Reading(large, large.shape, (1,), False, merged)], [0], [place(0)])
    assert told.tasks == told.parts == count
    kernels.run(memory, told, given)
    return memory[place(0)] == raw_bytes(merged)
