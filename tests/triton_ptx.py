"""Compiles the Triton kernels as fill() launches them, for GPUs that are not here.

    python tests/triton_ptx.py < fills.json > launches.json

Run without TRITON_INTERPRET. Writes for each of the fills that it reads what to launch, and the kernel's
hash for it and for several keys; and for each kernel the PTX, and the resources that ptxas gave it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from fastinit.backends.triton import fill as triton_kernels
from fastinit.stream import laws

KEYS = ((1, 1), (2**63 + 1, 2**32 - 1))


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


def resources(cubin: bytes) -> dict[str, int]:
    """What ptxas gave the kernel, as cuobjdump tells: registers, and bytes of stack and local memory."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        text = subprocess.run(
            [cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def main() -> None:
    """For each fill of standard input its launch: grid and arguments ("data": the tensor's)."""
    compiler = Compiler(triton_kernels.fill_runs)
    triton_kernels.fill_runs = compiler
    kernels, launches = {}, []
    for fill in json.load(sys.stdin):
        triton.runtime.driver.set_active(Driver(fill["arch"]))
        dtype = getattr(torch, fill["dtype"])
        law = laws.Law(*fill["law"])
        layout = fill["size"], fill["local"], fill["start"]
        compiler.compiled.clear()
        compiler.launched.clear()
        for seed, stream in ((fill["seed"], fill["stream"]), *KEYS):
            triton_kernels.fill(
                torch.empty(0, dtype=dtype, device="meta").as_strided(*layout),
                law.kind,
                laws.DTYPES.index(dtype),
                laws.kernel_params(law, dtype),
                seed,
                stream,
                tuple(fill["strides"]),
                fill["offset"],
            )
        kernel, (grid, arguments) = compiler.compiled[0], compiler.launched[0]
        if kernel.hash not in kernels:
            kernels[kernel.hash] = {
                "ptx": kernel.asm["ptx"],
                "threads": 32 * kernel.metadata.num_warps,
                "shared": kernel.metadata.shared,
                "resources": resources(kernel.asm["cubin"]),
            }
        launches.append(
            {
                "kernel": kernel.hash,
                "hashes": [k.hash for k in compiler.compiled],
                "grid": grid,
                "arguments": arguments,
            }
        )
    json.dump({"kernels": kernels, "launches": launches}, sys.stdout)


if __name__ == "__main__":
    main()
