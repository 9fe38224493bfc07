"""The slow backend: the reference, which does everything.

Where it does what a kernel should, that is said once and loudly: no value would show it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastinit.backends.contract import Backend, BlockWrite, Reading, Write
from fastinit.base import installed
from fastinit.stream import blocks, laws, reference, reference_moments

UNWANTED = "FASTINIT_NATIVE=OFF"
"""How setup.py's reason begins where the user wanted no native module."""

LARGE = 1 << 20
"""Elements on one kind of device after which it is said: about a second of the reference's work."""


class SlowBackendWarning(UserWarning):
    """The plain torch reference serves, slowly, what a kernel should, and nobody asked for that."""


_done: Counter[str] = Counter()
_said: set[str] = set()


def at_import(missing: str) -> None:
    """Says that the native module is missing, and the command that mends it."""
    if UNWANTED in missing:
        _said.add("cpu")
    else:
        _say("cpu", f"{missing}. {_mend()}")


def _say(device: str, why: str) -> None:
    if device in _said:
        return
    _said.add(device)
    text = (
        f"fastinit runs on its reference backend for {device} tensors, which gives the same bits "
        f"hundreds of times slower than kernels: {why}"
    )
    # Of the package as a whole: a line of this file says nothing to the one who reads it.
    warnings.warn_explicit(text, SlowBackendWarning, "fastinit", 1, module="fastinit")


def _mend() -> str:
    if not installed.in_source_tree():
        return f"To mend it: {installed.reinstall()}, with a C++17 compiler (g++ or clang++)"
    where = "This is the source folder, which Python takes before an installed package"
    there = installed.elsewhere()
    other = f", or run from another folder: the one in {there} has been built" if there else ""
    return f"{where}. To mend it: {installed.reinstall()}{other}"


class Reference(Backend):
    """Plain torch, for any device."""

    name = "reference"

    def __init__(self, why: Callable[[torch.device, bool, bool], str | None]) -> None:
        """``why`` tells why nobody else serves a device (and its higher moments or blocks, if so), or
        None where this backend was asked for."""
        self.why = why

    def serves(self, device: torch.device) -> str | None:
        return None

    def serves_exact(self, device: torch.device) -> str | None:
        return None

    def serves_moments(self, device: torch.device) -> str | None:
        return None

    def serves_higher(self, device: torch.device) -> str | None:
        return None

    def fill_many(self, writes: Sequence[Write]) -> None:
        self._count([write.tensor for write in writes if not write.law.exact])  # nobody else's
        for tensor, law, seed, stream, strides, offset in writes:
            params = laws.kernel_params(law, tensor.dtype)
            values = reference.values
            if law.exact:
                from fastinit.stream.exact import values
            reference.fill(tensor, law.kind, params, seed, stream, strides, offset, values)

    def serves_blocks(self, device: torch.device) -> str | None:
        return None

    def fill_blocks(self, writes: Sequence[BlockWrite]) -> None:
        self._count([write.data for write in writes], blocks=True)
        for write in writes:
            blocks.fill(*write)

    def moments_many(self, readings: Sequence[Reading]) -> None:
        self._count([reading.tensor for reading in readings], readings[0].higher)
        for tensor, shape, strides, by_column, raw in readings:
            view = tensor.as_strided(shape, strides)
            raw.copy_(reference_moments.moments(view, by_column, raw.shape[-1]))

    def _count(self, tensors: Sequence[Tensor], higher: bool = False, blocks: bool = False) -> None:
        """Counts what is done on a kind of device unasked, and says it when that is much."""
        if not tensors:
            return
        device = tensors[0].device
        if (why := self.why(device, higher, blocks)) is not None:
            _done[device.type] += sum(tensor.numel() for tensor in tensors)
            if _done[device.type] >= LARGE:
                _say(device.type, why)
