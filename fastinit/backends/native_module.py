"""The native backend: the kernels of the module ``fastinit._native``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch

from fastinit.backends import slow
from fastinit.backends.contract import Backend, BlockWrite, Counted, Reading, Write
from fastinit.base.native import missing, module
from fastinit.stream import blocks, laws
from fastinit.stream.reference_moments import ALL_FIELDS

if TYPE_CHECKING:
    from fastinit.stream.formats import Counting
    from fastinit.stream.laws import Law


CPU = torch.device("cpu")
FORMATS = tuple(blocks.ELEMENTS)
"""By the code that kernels know a block format by."""


class Native(Backend):
    """The kernels in csrc/: CPU tensors, and CUDA tensors where they were built with CUDA."""

    name = "native"

    def __init__(self) -> None:
        self.module, self.missing = module, missing
        self.prepared = lru_cache(maxsize=4096)(self._prepared)
        self.missing_on = lru_cache(maxsize=None)(self._missing_on)
        isa = os.environ.get("FASTINIT_ISA")
        if self.missing and isa:
            raise ImportError(f"FASTINIT_ISA is set, but {self.missing}")
        if self.missing:
            slow.at_import(self.missing)
        if self.module and isa:
            try:
                self.module.force_isa(isa)
            except ValueError as error:
                raise ValueError(f"FASTINIT_ISA={isa}: {error}") from None

    def serves(self, device: torch.device) -> str | None:
        if device is CPU or device.type == "cpu" or self.missing:  # reading the type takes a while
            return self.missing
        if device.type != "cuda":
            return f"the native build has no kernels for {device.type}"
        return self.missing_on(device.index or 0)

    def serves_moments(self, device: torch.device) -> str | None:
        return self.serves(device)

    def serves_higher(self, device: torch.device) -> str | None:
        return None

    def _missing_on(self, index: int) -> str | None:
        """Why the build cannot serve the CUDA device, or None."""
        assert self.module is not None
        if not self.module.cuda_archs:
            return f"the native build has no CUDA kernels: {self.module.cuda_missing}"
        return self.module.cuda_missing_on(index) or None

    def _prepared(self, law: Law, dtype: torch.dtype) -> Any:
        """The law's kernel parameters for a dtype, converted once; None if no kernel here writes it."""
        assert self.module is not None
        if law.exact or dtype not in laws.WRITTEN:
            return None
        return self.module.PreparedLaw(
            law.kind, laws.WRITTEN.index(dtype), laws.kernel_params(law, dtype)
        )

    def fill_many(self, writes: Sequence[Write]) -> None:
        assert self.module is not None
        requests = []
        most = self.module.MAX_DIMS
        for write in writes:
            shape = write.tensor.shape
            few = [write] if len(shape) <= most and 1 not in shape else _few_dims(write, most)
            for tensor, law, seed, stream, strides, offset in few:
                prepared = self.prepared(law, tensor.dtype)
                local = tensor.stride()
                address = tensor.data_ptr()
                requests.append(
                    (prepared, address, seed, stream, offset, tensor.shape, local, strides)
                )
        device = writes[0].tensor.device
        if device.type == "cpu":
            self.module.fill_many(requests, torch.get_num_threads())
            return
        pieces = self.module.Pieces(requests)
        _launched(pieces.fill, pieces.staged_bytes, device)

    def serves_blocks(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else "the native build fills block formats on CPUs only"

    def fill_blocks(self, writes: Sequence[BlockWrite]) -> None:
        assert self.module is not None
        requests = [
            (
                self.prepared(write.law, torch.float32),
                *(write.data.data_ptr() + to, write.scale.data_ptr() + at),
                *(write.seed, write.stream, offset, *shape),
                *(FORMATS.index(write.format), write.tensor_scale),
            )
            for write in writes
            for to, at, offset, *shape in write.windows(self.module.MAX_DIMS)
        ]
        self.module.fill_blocks(requests, torch.get_num_threads())

    def moments_many(self, readings: Sequence[Reading]) -> None:
        assert self.module is not None
        device = readings[0].tensor.device
        native = self.module.Readings([_asked(r) for r in readings], readings[0].higher)
        if device.type == "cpu":
            native.measure(torch.get_num_threads())
            return
        _launched(native.measure_on, native.scratch_bytes, device)

    def count_many(self, counted: Sequence[Counted], counting: Counting) -> None:
        device, native = counted[0].moments.device, self._counts(counted, counting)
        if device.type == "cpu":
            native.count(torch.get_num_threads())
            return
        _launched(native.count_on, native.staged_bytes, device)

    def measure_and_count(self, counted: Sequence[Counted], counting: Counting) -> None:
        moments, native = counted[0].moments, self._counts(counted, counting)
        device, higher = moments.device, len(moments) == ALL_FIELDS
        if device.type == "cpu":
            native.measure(higher, torch.get_num_threads())
            return
        _launched(partial(native.measure_on, higher), native.scratch_bytes(higher), device)

    def _counts(self, counted: Sequence[Counted], counting: Counting) -> Any:
        assert self.module is not None
        numbers = [row.numbers() for row in counting.rows]
        asked = [(_asked(reading), moments.data_ptr()) for reading, moments in counted]
        return self.module.Counts(numbers, counting.histogram, asked)


def _launched(launch: Callable[[int, int, int], None], size: int, device: torch.device) -> None:
    """On the device's current stream. Nothing waits: nobody else on it gets that memory too early."""
    scratch = torch.empty(size, dtype=torch.uint8, device=device) if size else None
    stream = torch.cuda.current_stream(device).cuda_stream
    is_current = torch.cuda.current_device() == device.index  # mostly, and that is asked sooner
    with nullcontext() if is_current else torch.cuda.device(device):  # gives no other a context
        launch(device.index, stream, 0 if scratch is None else scratch.data_ptr())


def _asked(r: Reading) -> tuple[int, int, Sequence[int], Sequence[int], bool, int]:
    """What the module is told of a reading."""
    dtype = laws.DTYPES.index(r.tensor.dtype)
    return dtype, r.tensor.data_ptr(), r.shape, r.strides, r.by_column, r.raw.data_ptr()


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
