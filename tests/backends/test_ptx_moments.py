"""The PTX of the moments kernels gives the bits of tests/gpu_moments.py, run without a GPU.

In one warp for each chunk and one thread block for each task, as on a GPU.
"""

from __future__ import annotations

import re
from concurrent.futures import Future
from functools import cache

import nvcc_ptx
import pytest
import torch
from nvcc_ptx import pool, texts
from ptx_moments import Host, MomentKernels, host
from ptx_readings import (
    decoded,
    differing,
    kernels,
    parts_are_merged,
    values,
    whole_tasks,
)
from selection import cases

from fastinit.backends.choose import native
from fastinit.stream import laws

__all__ = ["host", "kernels", "pool", "texts"]  # fixtures
HEADER = "moments.cuh"

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        not (nvcc_ptx.NVCC and native.module), reason="no nvcc, or no native module"
    ),
]


# --- the kernels -----------------------------------------------------------------------------------


@nvcc_ptx.each_arch
def test_each_operation_rounds_once(texts: dict[int, Future[str]], arch: int) -> None:
    ptx = texts[arch].result()
    operations = re.findall(r"\b(?:add|sub|mul|mad|fma|div|rcp|sqrt)\.[\w.]*f(?:32x2|32|64)\b", ptx)
    assert len(operations) > 1000
    assert ("fma.rn.f32x2" in operations) == (arch >= 100)
    assert {o for o in operations if ".rn" not in o or o == "fma.rn.f64"} == set()
    assert not re.search(r"\.(approx|ftz|full|sat|local)\b|\bcall\b", ptx)


@cache
def wrong_in_one_launch(text: str, host: Host) -> list[tuple[torch.dtype, str]]:
    cases = {(dtype, name): a for dtype in laws.DTYPES for name, a in values(dtype).items()}
    names = list(cases)
    return [names[i] for i in differing(decoded(text), host, list(cases.values()))]


@pytest.mark.parametrize("arch", cases(nvcc_ptx.ARCHS, {90} & set(nvcc_ptx.ARCHS)))
def test_all_in_one_launch(texts: dict[int, Future[str]], host: Host, arch: int) -> None:
    """More readings than a launch carries as parameters; once for each PTX that is another one."""
    text = re.sub(r"(?m)^\.target .*", "", texts[arch].result())
    assert wrong_in_one_launch(text, host) == []


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_readings_among_the_parameters(
    kernels: MomentKernels, host: Host, dtype: torch.dtype
) -> None:
    cases = list(values(dtype).values())[:5]
    assert len(cases) <= host.library.few_readings()
    assert differing(kernels, host, cases) == []


def test_tensors_of_several_tasks(kernels: MomentKernels, host: Host) -> None:
    assert differing(kernels, host, whole_tasks()) == []


def test_many_parts_merge(kernels: MomentKernels, host: Host) -> None:
    assert parts_are_merged(kernels, host)
