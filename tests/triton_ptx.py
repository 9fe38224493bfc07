"""Compiles the Triton kernels as fill() launches them, for GPUs that are not here.

    python tests/triton_ptx.py [many] > kernels.json
    python tests/triton_ptx.py launches < fills.json > launches.json

Run without TRITON_INTERPRET. Writes, for each compute capability, law, dtype and window (or more of
their combinations), the PTX, the resources that ptxas gave the kernel, and the kernel's hash for each of
several keys. Or, for each of the fills that it reads, the PTX and what to launch it with.
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
from triton.backends.nvidia.compiler import CUDABackend

from fastinit import laws, triton_kernels

LAWS = (laws.uniform(-0.3, 0.7), laws.normal(0.5, 2.0), laws.truncated_normal(), laws.constant(1))
WHOLE = torch.empty(64, 32)
WINDOWS = {
    "whole": (WHOLE, (32, 1), 0),
    "odd start": (WHOLE, (32, 1), 3),
    "transposed": (WHOLE.t(), (64, 1), 0),
    "column shard": (WHOLE[:, :5], (32, 1), 1 << 40),
    "3-D": (WHOLE.view(8, 8, 32)[:, :, :7], (2048, 64, 1), 5),
    "no neighbours": (WHOLE, (96, 3), 0),
}
KEYS = ((0, 0), (1, 1), (2**63 + 1, 2**32 - 1))


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


def windows(arch: int, law: laws.Law, dtype: torch.dtype, many: bool) -> list[str]:
    """All windows once; elsewhere what differs in arithmetic or in how a value is stored.

    Each law and each dtype once for an architecture; or, if ``many``, together.
    """
    usual = law.kind == laws.NORMAL, dtype == torch.float32
    if not (many or any(usual)):
        return []
    if dtype == torch.float32 and (many or all(usual)):
        return list(WINDOWS) if arch == 90 else ["whole", "transposed"]
    return ["whole"]


def main(many: bool) -> None:
    compiler = Compiler(triton_kernels.fill_runs)
    triton_kernels.fill_runs = compiler
    records = []
    for arch in (80, 90, 100):
        triton.runtime.driver.set_active(Driver(arch))
        for law in LAWS:
            for dtype in laws.DTYPES:
                for name in windows(arch, law, dtype, many):
                    tensor, strides, offset = WINDOWS[name]
                    compiler.compiled.clear()
                    for seed, stream in KEYS:
                        triton_kernels.fill(
                            tensor.to(dtype),
                            law.kind,
                            laws.DTYPES.index(dtype),
                            laws.kernel_params(law, dtype),
                            seed,
                            stream,
                            strides,
                            offset,
                        )
                    kernel = compiler.compiled[0]
                    records.append(
                        {
                            "arch": arch,
                            "law": law.name,
                            "dtype": str(dtype).removeprefix("torch."),
                            "window": name,
                            "ptx": kernel.asm["ptx"],
                            "resources": resources(kernel.asm["cubin"]),
                            "hashes": [k.hash for k in compiler.compiled],
                        }
                    )
    json.dump(records, sys.stdout)


def launches() -> None:
    """For each fill of standard input: the kernel, and grid and arguments ("data": the tensor's)."""
    CUDABackend.make_cubin = lambda *_: b""  # ptxas is not needed, and takes a while
    compiler = Compiler(triton_kernels.fill_runs)
    triton_kernels.fill_runs = compiler
    kernels, records = {}, []
    for fill in json.load(sys.stdin):
        triton.runtime.driver.set_active(Driver(fill["arch"]))
        dtype = getattr(torch, fill["dtype"])
        law = laws.Law(*fill["law"])
        layout = fill["size"], fill["local"], fill["start"]
        triton_kernels.fill(
            torch.empty(0, dtype=dtype, device="meta").as_strided(*layout),
            law.kind,
            laws.DTYPES.index(dtype),
            laws.kernel_params(law, dtype),
            fill["seed"],
            fill["stream"],
            tuple(fill["strides"]),
            fill["offset"],
        )
        kernel, (grid, arguments) = compiler.compiled[-1], compiler.launched[-1]
        kernels[kernel.hash] = {
            "ptx": kernel.asm["ptx"],
            "threads": 32 * kernel.metadata.num_warps,
            "shared": kernel.metadata.shared,
        }
        records.append({"kernel": kernel.hash, "grid": grid, "arguments": arguments})
    json.dump({"kernels": kernels, "launches": records}, sys.stdout)


if __name__ == "__main__":
    launches() if sys.argv[1:] == ["launches"] else main(sys.argv[1:] == ["many"])
