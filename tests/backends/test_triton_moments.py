"""Moments in Triton: CUDA's bits (tests/gpu_moments.py).

In the interpreter, where several thousand steps of a kernel take a second: few tensors are large, and
most rows are one step of all lanes and two values, which columns read in two rounds. What the compiler
makes of the kernels for GPUs that are not here, this file run as a script tells.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import gpu_moments
import pytest
import torch
from same_bits import ISAS, TRITON, bits, drawn
from selection import cases
from torch import Tensor
from warm import compiling

from fastinit import linear_moments
from fastinit.backends import choose as backends
from fastinit.backends.choose import backend, native
from fastinit.backends.contract import Reading
from fastinit.backends.slow import Reference
from fastinit.statistics.reading import readings_of
from fastinit.statistics.tensor import Moments, moments, moments_many
from fastinit.stream import laws, reference_moments

needs_triton = pytest.mark.skipif(not TRITON, reason="no triton, or no interpreter")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")  # numpy's


# --- compiled ------------------------------------------------------------------------------------

LAYOUTS = ("whole", "sliced", "columns", "channels")
Case = tuple[int, str, str]
# (compute capability, dtype, layout): each kernel once.
COMPILED: list[Case] = [
    (90, "float32", "columns"),
    (100, "bfloat16", "sliced"),
    (90, "float16", "product"),
]
ALL = [
    (arch, dtype, layout)
    for arch in (80, 90, 100, 120)
    for dtype in ("float32", "float16", "bfloat16", "float64")
    for layout in (*LAYOUTS, "product")
    if (dtype, layout) != ("float64", "product")
]


def in_layout(layout: str, dtype: torch.dtype) -> tuple[Tensor, int | None]:
    """A tensor and the dimension to be measured along."""
    if layout == "whole":
        return torch.empty(1, dtype=dtype), None
    if layout == "sliced":
        return torch.empty(2000, 2, 300, dtype=dtype)[:, 0], None
    if layout == "columns":
        return torch.empty(5000, 640, dtype=dtype), 1
    return torch.empty(8, 64, 7, 7, dtype=dtype), 1


def compile_(some: list[Case]) -> None:
    """Writes each kernel's PTX and the resources that ptxas gave it."""
    import triton
    from triton_ptx import resources

    from benchmarks.sass_triton import Compiler, Driver
    from fastinit.backends.triton import merging
    from fastinit.backends.triton import moments as triton_moments
    from fastinit.backends.triton import product as triton_product

    compilers = {
        (module, name): Compiler(getattr(module, name))
        for module, name in (
            (triton_moments, "measure"),
            (merging, "merge_parts"),
            (triton_product, "product_moments"),
        )
    }
    for (module, name), compiler in compilers.items():
        setattr(module, name, compiler)
    records = []
    for arch, dtype_name, layout in some:
        triton.runtime.driver.set_active(Driver(arch))
        dtype = getattr(torch, dtype_name)
        if layout == "product":
            x = torch.empty(300, 4096, dtype=dtype)
            triton_product.linear_moments(x, x, x[:, 0])
        else:
            x, dim = in_layout(layout, dtype)
            triton_moments.moments_many(readings(x, dim))
        for (_, name), compiler in compilers.items():
            for kernel in compiler.compiled:
                record = {"kernel": name, "arch": arch, "dtype": dtype_name, "layout": layout}
                record["ptx"] = kernel.asm["ptx"]
                records.append(record | {"resources": resources(kernel.asm["cubin"])})
            compiler.compiled.clear()
    json.dump(records, sys.stdout)


def readings(x: Tensor, dim: int | None = None) -> list[Reading]:
    """What moments gives a backend."""
    seen: list[Reading] = []

    class Seeing(Reference):
        name = "seeing"

        def moments_many(self, some: Any) -> None:
            seen.extend(some)

    before = list(backends.BACKENDS)
    backends.register(Seeing(lambda device: None), before="reference")
    try:
        with backend("seeing"):
            moments(x, dim=dim)
    finally:
        backends.BACKENDS[:] = before
    return seen


def compiled(folder: Path, some: list[Case]) -> list[dict[str, Any]]:
    """Runs this file as a script."""
    records: list[dict[str, Any]] = json.loads(compiling(folder, __file__, json.dumps(some)))
    return records


def check_compiled(records: list[dict[str, Any]], some: list[Case]) -> None:
    """No spills; each operation rounded once, and no multiplication and addition fused."""
    assert {(r["arch"], r["dtype"], r["layout"]) for r in records} == set(some)
    for record in records:
        ptx, what = record["ptx"], {k: v for k, v in record.items() if k != "ptx"}
        assert record["resources"]["LOCAL"] == 0, what
        assert record["resources"]["STACK"] == 0, what
        assert ".local" not in ptx
        names = set(
            re.findall(r"\b((?:add|sub|mul|mad|fma|div|sqrt|rcp)\.[\w.]*f(?:32|64)(?:x2)?)", ptx)
        )
        assert names
        for name in names:
            assert ".rn" in name, (name, what)
            assert not re.search(r"\.(approx|ftz|full|sat)\b", name), (name, what)
        # float32 products of the matrix kernel are fused, as those of a GPU's own library. Of moments,
        # the error of each product is written as one.
        fused = [name for name in names if name.startswith(("fma", "mad"))]
        if record["kernel"] == "merge_parts":
            assert not fused, what
        elif record["kernel"] == "measure":
            assert not any(name.endswith("f64") for name in fused), what
            if record["dtype"] == "float32":
                assert count(ptx, "fma") == count(ptx, "mul") > 0, what


def count(ptx: str, operation: str) -> int:
    """Of float32, where sm_100 has instructions for two values at once."""
    return sum(
        2 if name.endswith("x2") else 1
        for name in re.findall(rf"\b{operation}\.[\w.]*f32(?:x2)?\b", ptx)
    )


# --- bits ----------------------------------------------------------------------------------------


def assert_gpu_bits(x: Tensor, dim: int | None = None) -> Moments:
    """CUDA's bits, and the CPU's to their tolerance."""
    with backend("triton"):
        m = moments(x, dim=dim)
    got, expected = m.raw, torch.empty_like(m.raw)
    for reading in readings_of(x, dim, expected, []):
        reading.raw.copy_(gpu_moments.of_reading(reading))
    assert bits(got).equal(bits(expected)), (got, expected)
    with backend("native" if ISAS else "reference"):
        assert gpu_moments.near(got, moments(x, dim=dim).raw)
    return m


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@needs_triton
@pytest.mark.parametrize("size", [0, 1, 31, 33])
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_small_and_empty(dtype: torch.dtype, size: int) -> None:
    x = normal(size).to(dtype)
    x[::7] = 0
    assert_gpu_bits(x)


@needs_triton
@pytest.mark.parametrize("dtype", cases(laws.DTYPES, [torch.float32]))
def test_over_the_end_of_a_chunk(dtype: torch.dtype) -> None:
    x = normal(2, 16384 + 34).to(dtype)
    assert_gpu_bits(x[:, 1:], dim=0)  # a chunk, and a step and one value


@needs_triton
def test_over_the_end_of_a_task() -> None:
    assert_gpu_bits(normal(2 * 16 * 16384 - 1).half())


@needs_triton
@pytest.mark.parametrize("dtype", cases(laws.DTYPES, [torch.bfloat16]))
def test_rows_of_columns_over_the_end_of_a_chunk(dtype: torch.dtype) -> None:
    assert_gpu_bits(normal(512 + 31, 40).to(dtype), dim=1)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(dtype: torch.dtype) -> None:
    x = normal(3, 4, 5, 8).to(dtype)
    for view in (
        x[:, 1:, ::2, 1:],
        x.transpose(0, 3)[1:],
        x[:, :1].expand(-1, 3, -1, -1),
        x[0, 0, 0, 0],
        x.flatten()[::3],
    ):
        assert_gpu_bits(view)


@needs_triton
def test_more_dimensions_than_the_native_build_takes() -> None:
    x = normal(*[3] * 9)[(slice(0, 2),) * 9].float()
    with backend("triton"):
        assert bits(moments(x).raw).equal(bits(moments(x.contiguous()).raw))


@needs_triton
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_channels(dtype: torch.dtype, dim: int) -> None:
    x = (normal(3, 7, 5) * 2).to(dtype)
    x[0, :, 1], x[1, 1, 1] = 0, math.nan
    assert_gpu_bits(x, dim)


@needs_triton
def test_no_rows_and_no_channels() -> None:
    assert_gpu_bits(torch.empty(0, 5), dim=1)
    assert_gpu_bits(torch.empty(5, 0), dim=0)
    with backend("triton"):
        assert moments(torch.empty(3, 0), dim=1).raw.shape == (0, 7)
        assert moments_many([]) == []


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "by_column"),
    [
        (torch.float32, False),
        (torch.float16, True),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
        (torch.float64, True),
    ],
)
def test_what_one_sum_does_not_tell(dtype: torch.dtype, by_column: bool) -> None:
    """Infinities and NaN, squares that overflow, and means that are far from zero."""
    largest = torch.finfo(dtype).max
    x = normal(9, 34).to(dtype)
    x[0, 3] = x[0, -1] = math.nan
    x[1, 20], x[2, 0], x[3] = math.inf, -math.inf, math.nan
    x[4, :30] = math.inf
    x[5] *= largest / 8
    x[6] = x[6] / 2 + 40
    x[7], x[7, 9] = 3, 3.25
    x[8] = x[8].abs() * (largest / 1e4)
    assert_gpu_bits(x.t().contiguous() if by_column else x, dim=int(by_column))


@needs_triton
@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_a_constant_has_no_variance(dtype: torch.dtype, by_column: bool) -> None:
    values = torch.tensor([0.0, -0.0, 0.1, -6e4, 3e38, 1e-40], dtype=torch.float64)
    x = values.clamp(max=torch.finfo(dtype).max).to(dtype)[:, None].expand(-1, 34)
    x = x.t().contiguous() if by_column else x.contiguous()
    m = assert_gpu_bits(x, dim=int(by_column))
    values = x.select(1 - by_column, 0).double()
    assert m.var.eq(0).all()
    assert m.mean.equal(values)
    assert m.min.equal(values)


if TRITON:
    import triton
    import triton.language as tl

    from fastinit.backends.triton.places import coordinates, place

    @triton.jit  # type: ignore[untyped-decorator]
    def places(into: Any, firsts: Any, ons: Any, sizes: Any, strides: Any) -> None:
        row, column = tl.arange(0, 8)[:, None], tl.arange(0, 4)[None, :]
        found = coordinates(tl.load(firsts + row), sizes, 4)
        tl.store(into + row * 4 + column, place(found, tl.load(ons + column), sizes, strides, 4))


@needs_triton
def test_places_in_dimensions_beyond_32_bits() -> None:
    """Of what no memory holds, where the dimensions' ends are passed."""
    sizes, strides = (5, 2**31 + 1, 2**24 + 1, 7), (2**59 + 1, 3, 2**33 + 1, 1)
    plane = 7 * sizes[2]
    firsts = [0, 6, plane - 1, plane, 7 * (2**24), plane * 2**31 + plane - 8, 2**58, 2**55 + 3]
    ons = [0, 1, 13, 2**14]
    got = torch.empty(8, 4, dtype=torch.int64)
    places[1,](got, torch.tensor(firsts), torch.tensor(ons), sizes[1:], strides)
    for first, row in zip(firsts, got.tolist()):
        for on, at in zip(ons, row):
            index, expected = first + on, 0
            for size, stride in zip(sizes[:0:-1], strides[:0:-1]):
                index, coordinate = divmod(index, size)
                expected += coordinate * stride
            assert at == expected + index * strides[0]


@needs_triton
@pytest.mark.skipif(native.module is None, reason="no native module")
def test_the_order_of_sums_is_the_native_modules() -> None:
    """It stands twice: neither backend needs the other."""
    from fastinit.backends.triton.looks import LANES, SHORT
    from fastinit.backends.triton.moments import CHUNK

    there = native.module
    assert there is not None
    order = LANES.value, SHORT.value, CHUNK.value
    assert order == (there.LANES, there.SHORT, there.CHUNK)


@needs_triton
def test_parts_are_merged_pairwise() -> None:
    """Three passes: 19 blocks of 16, the last of them not full, then 2, and these; of both results."""
    from fastinit.backends.triton.merging import FIELDS, merge_in_order

    chunks = 300
    raw = normal(2, chunks, 7).abs()
    raw[..., reference_moments.COUNT] = 1 + (raw[..., reference_moments.COUNT] * 100).floor()
    raw[0, 5] = torch.tensor([0, 0, 0, math.inf, -math.inf, 0, 2])  # nothing finite
    raw[0, 70:72, reference_moments.MEAN] = torch.tensor([1.7e308, -1.7e308], dtype=torch.float64)
    got = torch.empty(2, 7, dtype=torch.float64)
    parts = raw.permute(2, 0, 1).contiguous().view(7, -1)
    merge_in_order(parts, FIELDS.value, 2, chunks, chunks, 1, got, 7)
    for one, expected in zip(got, raw):
        assert bits(one).equal(bits(gpu_moments.tree(expected)))


@needs_triton
def test_what_has_told_is_not_looked_at_again() -> None:
    """Beside columns that need another look."""
    assert_gpu_bits(drawn(3, 64, seed=1).bfloat16(), dim=1)


@needs_triton
def test_channels_of_a_tensor_are_one_launch() -> None:
    from fastinit.backends.triton.batches import batches

    x = torch.empty(3, 64, 5)
    (batch,) = batches(readings(x, 1))
    assert (batch.readings, batch.pitch, batch.raw_pitch) == (64, 5, 7)
    some = [*readings(x, 1), *readings(x), *readings(x), *readings(x.transpose(1, 2), 1)]
    assert [b.readings for b in batches(some)] == [64, 1, 1, 1]


@needs_triton
def test_many_at_once_are_each_alone() -> None:
    xs = [normal(n, 3).float() for n in (0, 1, 100)] + [normal(5).bfloat16()]
    with backend("triton"):
        for alone, together in zip(map(moments, xs), moments_many(xs)):
            assert bits(alone.raw).equal(bits(together.raw))


def test_forced_it_serves_no_cpu_tensor_without_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for measure in (moments, lambda x: linear_moments(x, x)):
        with backend("triton"), pytest.raises(RuntimeError, match="'triton' cannot measure"):
            measure(torch.zeros(3, 3))


@needs_triton
@pytest.mark.compiler
@pytest.mark.parametrize("some", [COMPILED, pytest.param(ALL, marks=pytest.mark.slow)])
def test_compiled_kernels_spill_nothing_and_round_once(some: list[Case], tmp_path: Path) -> None:
    check_compiled(compiled(tmp_path, some), some)


if __name__ == "__main__":
    compile_([(arch, dtype, layout) for arch, dtype, layout in json.loads(sys.argv[1])])
