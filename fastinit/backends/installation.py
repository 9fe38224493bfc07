"""The installation: what was built, what is there, and which backend serves each device."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

from fastinit.backends.choose import explain, native
from fastinit.backends.contract import Write
from fastinit.base import installed
from fastinit.stream import laws
from fastinit.stream.keys import STREAM_VERSION


def version() -> str:
    """fastinit's version: the installed package's, or the native module's where none is installed."""
    built = str(native.module.__version__) if native.module else "unknown"
    return installed.version() or built


def info() -> dict[str, Any]:
    """What this installation has, what it chose and why, as nested dictionaries of plain values."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    module = native.module
    return {
        "fastinit": f"{version()} ({installed.DISTRIBUTION})",
        **({"in the same folder": others} if (others := installed.others()) else {}),
        "stream version": STREAM_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "native": {"missing": native.missing}
        if module is None
        else {
            "version": module.__version__,
            "compiler": module.compiler,
            "CPU builds": {
                name: "usable" if usable else "not on this CPU"
                for name, usable in module.isas().items()
            },
            "CPU build in use": module.isa()
            + (" (FASTINIT_ISA)" if os.environ.get("FASTINIT_ISA") else " (the best usable)"),
            "CPU build costs": _costs(),
            "CUDA": _cuda(module),
        },
        "triton": _triton_version(),
        "choice": {str(device): explain(device) for device in devices},
    }


def _costs() -> dict[str, str]:
    """What a float32 of each law takes here: one thread, in its cache, the best of some runs."""
    values = torch.empty(1 << 14)
    write = Write(values, laws.uniform(), 0, 0, values.stride(), 0)
    threads = torch.get_num_threads()
    costs = {}
    try:
        torch.set_num_threads(1)
        for law in (laws.uniform(), laws.normal(), laws.truncated_normal()):
            times = []
            for _ in range(8):
                begun = time.perf_counter()
                native.fill_many([write._replace(law=law)])
                times.append(time.perf_counter() - begun)
            name = next(name for name, code in laws.CODES.items() if code == law.kind)
            costs[name] = f"{min(times) / values.numel() * 1e9:.2f} ns per value on one thread"
    finally:
        torch.set_num_threads(threads)
    return costs


def _cuda(module: ModuleType) -> str:
    if not module.cuda_archs:
        return f"not built: {module.cuda_missing}"
    driver = module.cuda_driver()
    here = f"driver for CUDA {driver}" if driver else "no driver here"
    return f"{module.cuda_archs} by nvcc {module.nvcc}; {here}"


def _triton_version() -> str:
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "not installed (pip install triton)"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return version + (" (TRITON_INTERPRET)" if interpreted else "")
