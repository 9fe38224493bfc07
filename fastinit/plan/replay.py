"""Computed: what a parameter shall be, where that is no Fill: recorded operations, replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastinit.base import number
from fastinit.base.torch_internals import tree_map
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill
from fastinit.plan.history import Call, Contents, Filled, Made, Origin, Own, Snapshot, leaves
from fastinit.plan.values import Values, part_stream, write_values_
from fastinit.stream.keys import stream_id, substream


@dataclass(frozen=True, eq=False)
class Computed:
    """The values of a parameter that a constructor computed, or read from elsewhere.

    Two are equal if they replay the same operations on the same numbers and values.

    Args:
        contents: of the parameter's memory, of its dtype, in one dimension.
        view: which of its elements the parameter has; ``view.sizes`` is the parameter's shape.
        names: of each origin of random numbers in the contents, the name whose stream they have.
        scale: positive and finite; multiplies every value.
    """

    contents: Contents
    view: Strided
    names: Mapping[Origin, str]
    scale: float = 1.0

    def scaled(self, factor: float) -> Computed:
        """The values multiplied by ``factor``, positive and finite."""
        factor = number.positive("factor", factor)
        return replace(self, scale=number.positive("scale", self.scale * factor))

    mean = std = math.nan
    """Known only when the values are."""

    @property
    def line(self) -> str:
        """The file and line that made it; empty for values that the constructor was given."""
        calls = [write for write in self.contents.writes if isinstance(write, Call)]
        if isinstance(self.contents.base, Made):
            calls.insert(0, self.contents.base.call)
        return calls[-1].line if calls else ""

    @property
    def data(self) -> Tensor | None:
        """The values, of the parameter's shape, where they are known and need no computing."""
        base = self.contents.base
        if isinstance(base, Tensor) and not self.contents.writes and self.scale == 1.0:
            return self.view.on(base)
        return None

    def write_(self, tensor: Tensor, seed: int) -> None:
        """Replays the operations on a tensor's device, and copies the result into it.

        Args:
            tensor: of the parameter's shape; another dtype gets the values rounded.
            seed: of all random numbers, in [0, 2^64).
        """
        memory = _Replay(tensor.device, seed, self.names).memory(self.contents)
        values = self.view.on(memory)
        tensor.detach().copy_(values if self.scale == 1.0 else values * self.scale)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Computed):
            return NotImplemented
        return bool(self._signature() == other._signature())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        scale = "" if self.scale == 1.0 else f", scale={self.scale!r}"
        return f"Computed({self.line or 'values'}, shape={self.view.sizes}{scale})"

    def __str__(self) -> str:
        return f"computed at {Path(self.line).name}" if self.line else "values"

    def _signature(self) -> Any:
        def of(item: Any) -> Any:
            if isinstance(item, Contents):
                return (item.numel, item.dtype, of(item.base), tuple(map(of, item.writes)))
            if isinstance(item, Tensor):
                return (item.dtype, tuple(item.shape), item.detach().cpu().flatten().tolist())
            if isinstance(item, Origin):
                return self.names[item]
            if isinstance(item, Call):
                name = getattr(item.function, "__name__", repr(item.function))
                origin = None if item.origin is None else self.names[item.origin]
                return (name, *map(of, leaves((item.args, item.kwargs))), origin)
            if isinstance(item, (Filled, Made, Own, Snapshot)):
                return tuple(map(of, item))
            return item

        return of(self.contents), self.view, self.scale


def known_values(fill: Fill | Computed) -> Tensor | None:
    """The values that a constructor was given for a parameter; None if it computed or drew them."""
    return fill.data if isinstance(fill, Computed) else None


class _Replay:
    """One evaluation, in which memory that is read several times is made once.

    Args:
        device: where all is made.
        seed: of all random numbers, in [0, 2^64).
        names: of each origin, the name whose stream it has.
    """

    def __init__(self, device: torch.device, seed: int, names: Mapping[Origin, str]) -> None:
        self.device, self.seed, self.names = device, seed, names
        self.made: dict[int, Tensor] = {}
        self.results: dict[int, Any] = {}

    def memory(self, contents: Contents) -> Tensor:
        """The contents, made: [numel], of their dtype. Whoever asks again gets the same memory."""
        if id(contents) in self.made:
            return self.made[id(contents)]
        base = contents.base
        if isinstance(base, Made):
            if id(base.call) not in self.results:
                result = self.call(base.call, None)
                self.results[id(base.call)] = result
            results = self.results[id(base.call)]
            out = results if isinstance(results, Tensor) else results[base.which]
            memory = _memory_of(out)
            if contents.writes:  # they must not reach what others read
                memory = memory.clone()
        elif base is not None:
            memory = base.to(self.device, copy=True)
        else:
            memory = torch.empty(contents.numel, dtype=contents.dtype, device=self.device)
        for write in contents.writes:
            if isinstance(write, Filled):
                self.fill(memory, write)
            else:
                self.call(write, memory)
        self.made[id(contents)] = memory
        return memory

    def fill(self, memory: Tensor, filled: Filled) -> None:
        """Writes a Fill and its parts into memory [numel], by the elements' index there."""
        region, fill, origin, shape = filled
        name = fill.stream or self.names[origin]
        if (base := fill.base) is not None:
            view, which = region.on(memory), region
            if shape is not None:
                view, which = view.view(shape), Strided.contiguous(shape)
            write_values_([Values(view, base, name, which, which.sizes)], self.seed)
        for place, part in enumerate(fill.parts):
            its = Values(
                part.region.on(memory),
                part.fill,
                part_stream(fill, place, self.names[origin]),
                part.which,
                part.region.sizes,
            )
            write_values_([its], self.seed)

    def call(self, call: Call, memory: Tensor | None) -> Any:
        """What an operation gives, with its tensors as they were then.

        Its random numbers are torch's, of a generator whose seed, in [0, 2^63), follows from the stream
        and the seed; on the CPU it is the global one, which is put back.

        Args:
            memory: [numel], which it writes; None if it makes a new tensor.
        """

        def real(leaf: Any) -> Any:
            if isinstance(leaf, Own):
                assert memory is not None
                return leaf.view.on(memory)
            if isinstance(leaf, Snapshot):
                return leaf.view.on(self.memory(leaf.contents))
            if isinstance(leaf, Tensor):
                return leaf.to(self.device)
            return self.device if isinstance(leaf, torch.device) else leaf

        is_leaf = lambda x: isinstance(x, (Own, Snapshot))  # noqa: E731
        args, kwargs = tree_map(real, (call.args, call.kwargs), is_leaf=is_leaf)
        if call.origin is None:
            with torch.no_grad():
                return call.function(*args, **kwargs)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            stream = stream_id(self.names[call.origin])
            torch.manual_seed(substream(stream, f"seed {self.seed}") >> 1)
            return call.function(*args, **kwargs)


def _memory_of(tensor: Tensor) -> Tensor:
    """The tensor's whole memory, of one dimension."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0)
