"""Backends: which one serves a tensor, how to force one, and what this installation has.

The choice is native, then triton, then reference, by the tensor's device. A backend is an object with
``serves(device)``, which gives None or the reason why not, and ``fill_many(writes)``, all on one
device.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property, lru_cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastinit.backends import slow
from fastinit.backends.contract import Reading, Write
from fastinit.base import installed
from fastinit.stream import laws, reference, reference_moments
from fastinit.stream.keys import STREAM_VERSION

if TYPE_CHECKING:
    from fastinit.stream.laws import Law


class Native:
    """The kernels in csrc/: CPU tensors, and CUDA tensors where they were built with CUDA."""

    name = "native"

    def __init__(self) -> None:
        self.module: ModuleType | None = None
        self.missing: str | None = None
        self.fill = lru_cache(maxsize=4096)(self._fill)
        self.missing_on = lru_cache(maxsize=None)(self._missing_on)
        try:
            _native = import_module("fastinit._native")  # whose error says what is missing

            # The finder of an editable install offers its own where this folder has none.
            if not os.path.samefile(Path(_native.__file__ or "").parent, Path(__file__).parents[1]):
                raise ImportError(
                    f"it was not built here, and {_native.__file__} is another copy's"
                )
            self.module = _native
        except ImportError as error:
            note = Path(__file__).parents[1] / "_native_missing.txt"
            why = note.read_text().strip() if note.exists() else str(error)
            self.missing = f"the native module is not there: {why}"
            if os.environ.get("FASTINIT_ISA"):
                raise ImportError(f"FASTINIT_ISA is set, but {self.missing}") from error
            slow.at_import(self.missing)
            return
        if isa := os.environ.get("FASTINIT_ISA"):
            try:
                self.module.force_isa(isa)
            except ValueError as error:
                raise ValueError(f"FASTINIT_ISA={isa}: {error}") from None

    def serves(self, device: torch.device) -> str | None:
        if self.missing or device.type == "cpu":
            return self.missing
        if device.type != "cuda":
            return f"the native build has no kernels for {device.type}"
        return self.missing_on(device.index or 0)

    def _missing_on(self, index: int) -> str | None:
        """Why the build cannot serve the CUDA device, or None."""
        assert self.module is not None
        if not self.module.cuda_archs:
            return f"the native build has no CUDA kernels: {self.module.cuda_missing}"
        return self.module.cuda_missing_on(index) or None

    def _fill(self, law: Law, dtype: torch.dtype) -> Any:
        """The law's kernel parameters for a dtype, converted once."""
        assert self.module is not None
        return self.module.Fill(law.kind, laws.DTYPES.index(dtype), laws.kernel_params(law, dtype))

    def fill_many(self, writes: Sequence[Write]) -> None:
        assert self.module is not None
        requests = []
        for tensor, law, seed, stream, strides, offset in (
            part for write in writes for part in _few_dims(write, self.module.MAX_DIMS)
        ):
            fill = self.fill(law, tensor.dtype)
            shape, local = tuple(tensor.shape), tensor.stride()
            requests.append((fill, tensor.data_ptr(), seed, stream, offset, shape, local, strides))
        device = writes[0].tensor.device
        if device.type == "cpu":
            self.module.fill_many(requests, torch.get_num_threads())
            return
        # Nothing here waits for the device: what a launch cannot carry is staged in memory that
        # torch's allocator gives to nobody else on this stream before the launch is done with it.
        pieces = self.module.Pieces(requests)
        size = pieces.staged_bytes
        staging = torch.empty(size, dtype=torch.uint8, device=device) if size else None
        stream_ = torch.cuda.current_stream(device).cuda_stream
        pieces.fill(device.index, stream_, staging.data_ptr() if staging is not None else 0)

    def moments_many(self, readings: Sequence[Reading]) -> None:
        assert self.module is not None
        device = readings[0].tensor.device
        native = self.module.Readings(
            [
                (
                    laws.DTYPES.index(r.tensor.dtype),
                    r.tensor.data_ptr(),
                    r.shape,
                    r.strides,
                    r.by_column,
                    r.raw.data_ptr(),
                )
                for r in readings
            ]
        )
        if device.type == "cpu":
            native.measure(torch.get_num_threads())
            return
        scratch = torch.empty(native.scratch_bytes, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
        native.measure_on(device.index, stream, scratch.data_ptr())


class Triton:
    """The kernels in backends/triton/: GPUs, and any tensor under ``TRITON_INTERPRET=1``."""

    name = "triton"
    devices = ("cuda", "xpu")
    oldest = (3, 6)

    @cached_property
    def missing(self) -> str | None:
        """Why the kernels cannot be had, or None. Importing triton takes a while: only if asked."""
        try:
            import triton

            if _release(triton.__version__) < self.oldest:
                least = ".".join(map(str, self.oldest))
                return f"triton {triton.__version__} is too old: {least} comes with torch 2.10"
            from fastinit.backends.triton import fill as triton_kernels
        except ImportError as error:
            return f"triton is not there: {error} (pip install triton)"
        self.kernels = triton_kernels
        return None

    def serves(self, device: torch.device) -> str | None:
        if device.type in self.devices:
            return self.missing
        if os.environ.get("TRITON_INTERPRET") != "1":
            return f"triton compiles nothing for {device.type}, and TRITON_INTERPRET=1 is not set"
        if self.missing:
            return self.missing
        if not self.kernels.INTERPRETED:
            return "TRITON_INTERPRET was not 1 when triton was first used"
        if _release(self.kernels.VERSION) < (3, 9):
            return f"the interpreter of triton {self.kernels.VERSION} rounds twice in fma (3.9 does not)"
        return None

    def fill_many(self, writes: Sequence[Write]) -> None:
        for tensor, law, seed, stream, strides, offset in writes:
            dtype, params = laws.DTYPES.index(tensor.dtype), laws.kernel_params(law, tensor.dtype)
            with _current(tensor.device):
                self.kernels.fill(tensor, law.kind, dtype, params, seed, stream, strides, offset)

    def moments_many(self, readings: Sequence[Reading]) -> None:
        from fastinit.backends.triton import moments as triton_moments  # which imports triton

        with _current(readings[0].tensor.device):
            triton_moments.moments_many(readings)

    def product_moments(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Raw moments of ``x @ weight.T + bias`` (fastinit/statistics/product.py); not of float64."""
        from fastinit.backends.triton import product as triton_product

        with _current(x.device):
            return triton_product.linear_moments(x, weight, bias)


class Reference:
    """Plain torch: everything, slowly; said once where nobody asked for it (backends/slow.py)."""

    name = "reference"

    def serves(self, device: torch.device) -> str | None:
        return None

    def fill_many(self, writes: Sequence[Write]) -> None:
        _count_slow([write.tensor for write in writes])
        for tensor, law, seed, stream, strides, offset in writes:
            params = laws.kernel_params(law, tensor.dtype)
            reference.fill(tensor, law.kind, params, seed, stream, strides, offset)

    def moments_many(self, readings: Sequence[Reading]) -> None:
        _count_slow([reading.tensor for reading in readings])
        for tensor, shape, strides, by_column, raw in readings:
            view = tensor.as_strided(shape, strides)
            raw.copy_(reference_moments.moments(view, by_column))


native = Native()
triton = Triton()
BACKENDS: list[Any] = [native, triton, Reference()]
"""In the order in which they are asked whether they serve a device."""


def register(new: Any, before: str) -> None:
    """Adds a backend, which is asked before the one named (docs/backends.md shows how to write one).

    Raises:
        ValueError: no backend is named ``before``, or one has the new one's name already.
    """
    names = [b.name for b in BACKENDS]
    if before not in names:
        raise ValueError(f"before must be one of {', '.join(names)}, but got {before!r}")
    if new.name in names:
        raise ValueError(f"new has a name that is taken: {new.name!r}")
    BACKENDS.insert(names.index(before), new)


_forced: ContextVar[Any] = ContextVar("fastinit_backend", default=None)
forced = _forced.get
"""The backend that a block of :func:`backend` forces, or None."""


def native_is_chosen() -> bool:
    """Whether the native module serves the CPU: what :func:`choose` says, for what is called often."""
    return BACKENDS[0] is native and native.missing is None and _forced.get() is None


def choose(device: torch.device, method: str = "fill_many") -> Any:
    """The backend that serves ``device``: the forced one, or the first that can.

    Args:
        method: what it is to do, ``fill_many`` or ``moments_many``.

    Raises:
        RuntimeError: a backend is forced that cannot serve the device.
    """
    forced = _forced.get()
    if forced is not None:
        if reason := _missing(forced, device, method):
            doing = "measure" if method == "moments_many" else "fill"
            raise RuntimeError(
                f"backend {forced.name!r} cannot {doing} a tensor on {device}: {reason}"
            )
        return forced
    return next(b for b in BACKENDS if _missing(b, device, method) is None)


def _missing(candidate: Any, device: torch.device, method: str) -> str | None:
    """Why a backend cannot do something on a device, or None."""
    if not hasattr(candidate, method):
        return f"it has no {method}"
    reason: str | None = candidate.serves(device)
    return reason


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend within the block: ``"native"``, ``"triton"``, ``"reference"`` or another's name.

    The values are the same bits with each of them.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: at a fill, if the backend cannot serve the tensor's device.
    """
    chosen = next((b for b in BACKENDS if b.name == name), None)
    if chosen is None:
        known = ", ".join(repr(b.name) for b in BACKENDS)
        raise ValueError(f"name must be one of {known}, but got {name!r}")
    token = _forced.set(chosen)
    try:
        yield
    finally:
        _forced.reset(token)


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
            "CUDA": _cuda(module),
        },
        "triton": _triton_version(),
        "choice": {str(device): explain(device) for device in devices},
    }


def _cuda(module: ModuleType) -> str:
    if not module.cuda_archs:
        return f"not built: {module.cuda_missing}"
    driver = module.cuda_driver()
    here = f"driver for CUDA {driver}" if driver else "no driver here"
    return f"{module.cuda_archs} by nvcc {module.nvcc}; {here}"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _triton_version() -> str:
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "not installed (pip install triton)"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return version + (" (TRITON_INTERPRET)" if interpreted else "")


def _count_slow(tensors: Sequence[Tensor]) -> None:
    if forced() is None:
        device = tensors[0].device
        slow.count(device.type, sum(t.numel() for t in tensors), lambda: explain(device))


def explain(device: torch.device) -> str:
    """The backend that serves a device, and why not those before it."""
    passed: list[str] = []
    for candidate in BACKENDS:
        reason = candidate.serves(device)
        if reason is None:
            return str(candidate.name) + "".join(f"; {text}" for text in passed)
        passed.append(f"not {candidate.name}: {reason}")
    raise AssertionError("the reference serves every device")


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """``device`` as the current one within the block: kernels are launched on that."""
    if device.type == "cpu":
        return nullcontext()
    context: AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return context


def _few_dims(write: Write, most: int) -> Iterator[Write]:
    """The window as windows of at most ``most`` dimensions (of more than one element) each."""
    tensor, law, seed, stream, strides, offset = write
    kept = [d for d in range(tensor.dim()) if tensor.size(d) != 1]
    if len(kept) < tensor.dim():
        shape = [tensor.size(d) for d in kept]
        tensor = tensor.as_strided(shape, [tensor.stride(d) for d in kept])
        strides = tuple(strides[d] for d in kept)
    if tensor.dim() <= most:
        yield Write(tensor, law, seed, stream, strides, offset)
        return
    dim = min(range(tensor.dim()), key=tensor.size)
    rest = strides[:dim] + strides[dim + 1 :]
    for i in range(tensor.size(dim)):
        part = Write(tensor.select(dim, i), law, seed, stream, rest, offset + i * strides[dim])
        yield from _few_dims(part, most)
