"""Compiles the Triton kernels as fill() launches them, for GPUs that are not here.

    python tests/triton_ptx.py fills.json > launches.json

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

import torch
import triton

from benchmarks.sass_triton import Compiler, Driver
from fastinit.backends.triton import fill as triton_kernels
from fastinit.stream import laws

KEYS = ((1, 1), (2**63 + 1, 2**32 - 1))


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
    """For each fill of the file its launch: grid and arguments ("data": the tensor's)."""
    compiler = Compiler(triton_kernels.fill_runs)
    triton_kernels.fill_runs = compiler
    kernels, launches = {}, []
    for fill in json.loads(Path(sys.argv[1]).read_text()):
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
                laws.WRITTEN.index(dtype),
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
