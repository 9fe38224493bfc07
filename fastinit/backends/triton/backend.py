"""The triton backend. It imports triton when it is first asked for, not before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastinit.backends.contract import Backend, BlockWrite, Counted, Reading, Write
from fastinit.stream import laws
from fastinit.stream.formats import Counting


class Triton(Backend):
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
            from fastinit.backends.triton import fill, stream
        except ImportError as error:
            return f"triton is not there: {error} (pip install triton)"
        self.fill, self.stream = fill.fill, stream
        return None

    def serves(self, device: torch.device) -> str | None:
        if device.type in self.devices:
            return self.missing
        if os.environ.get("TRITON_INTERPRET") != "1":
            return f"triton compiles nothing for {device.type}, and TRITON_INTERPRET=1 is not set"
        if self.missing:
            return self.missing
        if not self.stream.INTERPRETED:
            return "TRITON_INTERPRET was not 1 when triton was first used"
        if _release(self.stream.VERSION) < (3, 9):
            return f"the interpreter of triton {self.stream.VERSION} rounds twice in fma (3.9 does not)"
        return None

    def fill_many(self, writes: Sequence[Write]) -> None:
        for tensor, law, seed, stream, strides, offset in writes:
            dtype, params = laws.WRITTEN.index(tensor.dtype), laws.kernel_params(law, tensor.dtype)
            with _current(tensor.device):
                self.fill(tensor, law.kind, dtype, params, seed, stream, strides, offset)

    def serves_blocks(self, device: torch.device) -> str | None:
        return None

    def fill_blocks(self, writes: Sequence[BlockWrite]) -> None:
        from fastinit.backends.triton import blocks  # which imports triton

        for write in writes:
            with _current(write.scale.device):
                blocks.fill(write)

    def serves_moments(self, device: torch.device) -> str | None:
        return self.serves(device)

    def moments_many(self, readings: Sequence[Reading]) -> None:
        from fastinit.backends.triton import moments  # which imports triton

        with _current(readings[0].tensor.device):
            moments.moments_many(readings)

    def count_many(self, counted: Sequence[Counted], counting: Counting) -> None:
        from fastinit.backends.triton import counts

        channels = [one for one in counted if one.reading.by_column]
        super().count_many(channels, counting)
        with _current(counted[0].moments.device):
            counts.count_many([one for one in counted if not one.reading.by_column], counting)

    def serves_higher(self, device: torch.device) -> str | None:
        return "its kernels measure no higher moments"

    def serves_products(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return "it multiplies no float64" if dtype == torch.float64 else self.serves(device)

    def product_moments(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        from fastinit.backends.triton import product

        with _current(x.device):
            return product.linear_moments(x, weight, bias)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """``device`` as the current one within the block: kernels are launched on that."""
    if device.type == "cpu":
        return nullcontext()
    context: AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return context
