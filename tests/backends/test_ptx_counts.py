"""The PTX of the kernels that count, run without a GPU: the reference's counts, the moments' bits."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import nvcc_ptx
import pytest
import torch
from gpu_moments import of_reading
from kernel_counts import ALL, AT_ONCE, BEHIND, BY_CHANNEL, as_bytes, cases
from nvcc_ptx import pool, texts
from ptx_memory import Memory
from ptx_moments import CountKernels, Host, host

from fastinit.backends.choose import native
from fastinit.stream import laws
from fastinit.stream.formats import Counting

__all__ = ["host", "pool", "texts"]  # fixtures
HEADER = "counts.cuh"

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        not (nvcc_ptx.NVCC and native.module), reason="no nvcc, or no native module"
    ),
]

TWO = (torch.float32, torch.bfloat16)


def slow(formats: str, behind: bool) -> object:
    """All formats and types, a minute."""
    return pytest.param(Counting(ALL[formats], True), behind, laws.DTYPES, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("counting", "behind", "dtypes"),
    [
        (AT_ONCE, False, TWO),
        (BEHIND, True, TWO),
        (BY_CHANNEL, True, TWO[:1]),
        slow("at once", False),
        slow("behind", True),
        slow("by channel", True),
    ],
)
@nvcc_ptx.each_arch
def test_counts_are_the_references(
    texts: dict[int, Future[str]],
    host: Host,
    arch: int,
    counting: Counting,
    behind: bool,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Of a read of its own where it is ``behind``, else of the one that measures."""
    kernels = CountKernels(texts[arch].result())
    memory, some = Memory(), list(cases(counting, behind, dtypes))
    data, moments, counts = [], [], []
    for i, case in enumerate(some):
        tensor, far = case.reading.tensor, i << 33
        storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        memory.add(0x1000_0000_0000 + far, storage.numpy().tobytes())
        data.append(0x1000_0000_0000 + far + int(tensor.storage_offset()) * tensor.itemsize)
        moments.append(0x5000_0000_0000 + far)
        known = case.raw.contiguous().numpy().tobytes()
        memory.add(moments[-1], known if behind else len(known))
        counts.append(0x7000_0000_0000 + far)
        memory.add_sums(counts[-1], case.counts.nbytes)
    how = as_bytes(counting)
    told = host.numbered([case.reading for case in some], data, moments, (counts, how, behind))
    kernels.run(memory, told, how, behind)
    for case, to, at in zip(some, counts, moments):
        got = np.frombuffer(memory[to], np.int64).reshape(case.counts.shape)
        assert torch.from_numpy(got.copy()).equal(case.counts)
        if not behind:
            assert memory[at] == of_reading(case.reading).contiguous().numpy().tobytes()
