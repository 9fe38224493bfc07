"""The PTX of the kernels of higher moments, run without a GPU, against the reference.

They are given moments, as csrc/cuda has them measured before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import nvcc_ptx
import pytest
import torch
from gpu_moments import higher_near
from nvcc_ptx import pool, texts
from ptx_memory import Memory
from ptx_moments import Host, PowerKernels, host
from same_bits import drawn
from torch import Tensor

from fastinit.backends.choose import native
from fastinit.statistics.reading import readings_of
from fastinit.stream import laws, reference_moments
from fastinit.stream.reference_moments import ALL_FIELDS, FIELDS

__all__ = ["host", "pool", "texts"]  # fixtures
HEADER = "higher.cuh"

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        not (nvcc_ptx.NVCC and native.module), reason="no nvcc, or no native module"
    ),
]

FOUND = 0x5000_0000_0000


def tensors(dtype: torch.dtype) -> Iterator[tuple[Tensor, int | None]]:
    """What is measured, and the dimension of its channels."""
    x = drawn(9_000, seed=0, reach=3).add_(0.5).to(dtype)
    broken = x[:300].clone()
    broken[17], broken[80], broken[299] = math.nan, math.inf, -math.inf
    least = torch.finfo(dtype).smallest_normal / 4
    columns = drawn(530, 35, seed=1).to(dtype)
    columns[520, 4], columns[:, 5] = math.inf, 1e4
    yield from ((x, None), (x[:0], None), (x[1:8900], None), (broken, None))
    yield from ((torch.full((70,), math.nan, dtype=dtype), None), (x[:1500] + 300, None))
    yield torch.tensor([0.0, least, -least, 2 * least]).to(dtype).repeat(30), None
    yield from ((x.view(30, 20, 15)[::2, 3:17, 1:9], None), (x[::3], None))
    yield from ((columns, 1), (columns[:7, 1:4], 1), (x[:100].view(50, 2).t(), 0))


@nvcc_ptx.each_arch
def test_it_is_the_reference_to_twelve_digits(
    texts: dict[int, Future[str]], host: Host, arch: int
) -> None:
    kernels = PowerKernels.of(texts[arch].result())
    memory, readings, data, expected = Memory(), [], [], []
    places: list[int] = []
    for dtype in laws.DTYPES:
        for tensor, dim in tensors(dtype):
            channels = () if dim is None else (tensor.shape[dim],)
            raw = torch.empty(*channels, FIELDS, dtype=torch.float64)
            storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            here = 0x1000_0000_0000 + (len(places) << 33)
            memory.add(here, storage.numpy().tobytes())
            for reading in readings_of(tensor, dim, raw, []):
                view = reading.tensor.as_strided(reading.shape, reading.strides)
                full = reference_moments.moments(view, reading.by_column, ALL_FIELDS)
                readings.append(reading)
                data.append(here + int(reading.tensor.storage_offset()) * tensor.itemsize)
                places.append(0x7000_0000_0000 + (len(places) << 33))
                expected.append(full.view(-1, ALL_FIELDS))
                memory.add(places[-1], expected[-1].nbytes)
    memory.add(FOUND, torch.cat(expected)[:, :FIELDS].contiguous().numpy().tobytes())
    kernels.run(memory, host.numbered(readings, data, places), FOUND)
    for at, full in zip(places, expected):
        got = torch.from_numpy(np.frombuffer(memory[at]).reshape(-1, ALL_FIELDS).copy())
        assert got[:, :FIELDS].equal(full[:, :FIELDS])
        assert higher_near(got, full)
