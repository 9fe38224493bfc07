"""``python -m benchmarks.sass_triton``: what Triton's kernel of moments executes for each value, as CSV.

As sass_moments.py counts CUDA's, but for GPUs that are not here Triton compiles it now; without
TRITON_INTERPRET, so the ledger's test runs this in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks import sass, sass_moments
from fastinit.backends.contract import Reading
from fastinit.backends.triton import merging
from fastinit.backends.triton import moments as kernels
from fastinit.stream.reference_moments import FIELDS

COMPILER = f"triton {triton.__version__}"
CASES = [f"{arch}:{dtype}" for arch in (80, 90, 100, 120) for dtype in sass_moments.DTYPES]


class Driver:
    """What triton asks of a driver before it compiles."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int = 0) -> int:
        return 0


class Compiler:
    """Stands where the kernel does, and compiles instead of launching."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.compiled = kernel, []
        self.launched: list[tuple[int, list[Any]]] = []  # the grid, and the PTX's parameters

    def __getitem__(self, grid: Any) -> Any:
        def compile_(*args: Any, **kwargs: Any) -> None:
            kernel = self.kernel.warmup(*args, grid=grid, **kwargs)
            self.compiled.append(kernel)
            types = list(kernel.src.signature.values())[: len(args)]
            self.launched.append((grid[0], parameters(list(args), types)))

        return compile_


def parameters(args: Any, types: Any) -> list[Any]:
    """What is left of a kernel's arguments for its PTX: those that it was not compiled for."""
    if isinstance(args, (list, tuple)):
        return [p for pair in zip(args, types, strict=True) for p in parameters(*pair)]
    if types == "constexpr":
        return []
    return ["data" if isinstance(args, torch.Tensor) else args]


def lines(cases: list[str]) -> Iterator[sass_moments.Moments]:
    """Of each architecture and dtype ("90:float32"): the first look at contiguous values."""
    measure, merge = Compiler(kernels.measure), Compiler(merging.merge_parts)
    kernels.measure, merging.merge_parts = measure, merge
    try:
        for case in cases:
            arch, dtype = case.split(":")
            triton.runtime.driver.set_active(Driver(int(arch)))
            raw = torch.empty(FIELDS, dtype=torch.float64)
            x = torch.empty(1 << 16, dtype=getattr(torch, dtype))
            kernels.moments_many([Reading(x, x.shape, x.stride(), False, raw)])
            first = measure.compiled[0]
            measure.compiled.clear()
            yield from _of(arch, dtype, first.asm["cubin"])
    finally:
        kernels.measure, merging.merge_parts = measure.kernel, merge.kernel


def _of(arch: str, dtype: str, cubin: bytes) -> Iterator[sass_moments.Moments]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(sass.cuobjdump()), "-sass", "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    yield from sass_moments.of(COMPILER, arch, text, 32, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sass_triton", description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES, help="such as 90:float32")
    print(sass.as_csv(list(lines(parser.parse_args().cases))), end="")


if __name__ == "__main__":
    main()
