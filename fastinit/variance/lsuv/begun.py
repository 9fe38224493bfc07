"""A layer that has begun to run: what it was called with, and whether hooks changed what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.statistics.tensor import moments
from fastinit.stream import laws
from fastinit.variance.layers import Layer
from fastinit.variance.lsuv.unchanged import RandomState


@dataclass
class Begun:
    """A layer that is about to run."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    random: RandomState
    weight: Tensor | None
    """A copy, where somebody's hook may write it."""
    versions: list[tuple[Tensor, int]]
    """Of its arguments."""
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]]
    """Those in it, by module and name, and copies of them."""
    written: bool
    """Whether its weight was, before it."""
    again: Any = None
    """What it gave when it last ran again: of several things, all."""
    gave: Any = None
    """What its forward gave, before hooks."""
    version: int = 0
    present: tuple[Tensor | None, float] | None = None
    """A copy of what FSDP2 had gathered of its weight when it first ran again, and the scale of that."""
    raw: Tensor | None = None
    """Moments of that: what is written through ``.data`` or an address is not counted as a version."""


def is_changed(layer: Layer, begun: Begun, output: Any, out: Tensor) -> bool:
    """Whether hooks made something else of a layer than its forward is.

    One that gives its output back as it is does not, nor do torch's own, which bring a DTensor into
    another layout.
    """
    if is_weight_changed(layer, begun):
        return True
    if begun.raw is None:
        return shard.is_dtensor(begun.gave)  # of partial sums, of which nothing can be compared
    if begun.gave is not output or out.is_inference() or version(out) != begun.version:
        return True
    return not moments(out).raw.equal(begun.raw)


def is_weight_changed(layer: Layer, begun: Begun) -> bool:
    """Whether a hook wrote the weight, where one may."""
    copy = begun.weight
    return copy is not None and not tensors.local(layer.scaled).equal(tensors.local(copy))


def raw_moments(out: Any) -> Tensor | None:
    """float64 [7]; None of what is no plain floating-point tensor."""
    if not isinstance(out, Tensor) or out.dtype not in laws.DTYPES or tensors.unreadable(out):
        return None
    return moments(tensors.local(out)).raw


def buffers_of(module: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    return [
        (inner, name, buffer, buffer.clone())
        for inner in module.modules()
        for name, buffer in inner._buffers.items()
        if buffer is not None and tensors.unreadable(buffer) is None
    ]


def version(tensor: Any) -> int:
    """How often it was written, as far as that is counted."""
    counts = isinstance(tensor, Tensor) and not tensor.is_inference()
    return internals.version_of(tensor) if counts else 0
