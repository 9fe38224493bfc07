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
from fastinit.base.torch_internals import tree_map, version_of
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill
from fastinit.plan.history import (
    Call,
    Contents,
    Filled,
    Given,
    Made,
    Own,
    Snapshot,
    View,
    leaves,
)
from fastinit.plan.streams import Numbers, Origin, Stream
from fastinit.plan.values import Values, part_stream, write_values_
from fastinit.stream.keys import stream_id, substream
from fastinit.stream.rounding import rounded, wide


@dataclass(frozen=True, eq=False)
class Computed:
    """The values of a parameter that a constructor computed, or read from elsewhere.

    Two are equal if they replay the same operations on the same numbers and values.

    Args:
        contents: of the parameter's memory, of its dtype, in one dimension.
        view: which of its elements the parameter has, of their order and dtype.
        streams: of each origin of random numbers in the contents.
        scale: positive and finite; multiplies every value.
    """

    contents: Contents
    view: View
    streams: Mapping[Origin, Stream]
    scale: float = 1.0

    def scaled(self, factor: float) -> Computed:
        """The values multiplied by ``factor``, positive and finite."""
        factor = number.positive("factor", factor)
        return replace(self, scale=number.positive("scale", self.scale * factor))

    mean = std = math.nan
    """Known only when the values are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's."""
        return self.view.where.sizes

    @property
    def is_random(self) -> bool:
        """Whether random numbers go into it."""
        return self.contents.is_random

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
        tensor.detach().copy_(self.value(tensor.device, seed, tensor.dtype))

    def value(
        self,
        device: torch.device,
        seed: int,
        dtype: torch.dtype,
        live: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """What the operations give on a device, in a dtype, with the strides that they give it.

        Operations take float32 values where those recorded are of fewer bits, and what they give is
        rounded once: whichever dtype a parameter is recorded or written in, it is the same value,
        rounded. Only what is recorded as a conversion of dtypes takes values as the dtype has them.

        Args:
            live: tensors [numel] in place of contents, by the contents' ``id``. With them gradients lead
                from the values to these tensors.
        """
        # What no operation computes is drawn in the dtype, within the bounds of its law.
        is_drawn = (
            self.contents.fills and self.scale == 1.0 and self.view.is_plain(self.contents.dtype)
        )
        replay = _Replay(device, seed, self.streams, live)
        with torch.set_grad_enabled(live is not None):
            if is_drawn and id(self.contents) not in replay.made:
                replay.made[id(self.contents)] = replay.make(self.contents, dtype)
            values = replay.value(self.contents, self.view)
            return rounded(values if self.scale == 1.0 else values * self.scale, dtype)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Computed):
            return NotImplemented
        return bool(self._signature() == other._signature())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        scale = "" if self.scale == 1.0 else f", scale={self.scale!r}"
        return f"Computed({self.line or 'values'}, shape={self.shape}{scale})"

    def __str__(self) -> str:
        return f"computed at {Path(self.line).name}" if self.line else "values"

    def _signature(self) -> Any:
        def of(item: Any) -> Any:
            if isinstance(item, Contents):
                return (item.numel, item.dtype, of(item.base), tuple(map(of, item.writes)))
            if isinstance(item, Tensor):
                return (item.dtype, tuple(item.shape), item.detach().cpu().flatten().tolist())
            if isinstance(item, Origin):
                return self.streams[item]
            if isinstance(item, Call):
                name = getattr(item.function, "__name__", repr(item.function))
                origin = None if item.origin is None else self.streams[item.origin]
                return (name, *map(of, leaves((item.args, item.kwargs))), origin)
            if isinstance(item, Given):
                return of(item.tensor)
            if isinstance(item, (Filled, Made, Own, Snapshot)):
                return tuple(map(of, item))
            return item

        return of(self.contents), self.view, self.scale


def known_values(fill: Fill | Computed) -> Tensor | None:
    """The values that a constructor was given for a parameter; None if it computed or drew them."""
    return fill.data if isinstance(fill, Computed) else None


def known_values_of(contents: Contents) -> Tensor:
    """What memory holds that no chance had a part in: [numel], of its dtype, on its device."""
    device = torch.device("cpu") if contents.device.type == "meta" else contents.device
    whole = View(Strided(0, (contents.numel,), (1,)), contents.dtype)
    with torch.no_grad():
        return rounded(_Replay(device, 0, {}).value(contents, whole), contents.dtype)


_CONSTANT = Stream("")
"""Of values that are not drawn."""


class _Replay:
    """One evaluation, in which memory that is read several times is made once.

    Args:
        device: where all is made.
        seed: of all random numbers, in [0, 2^64).
        streams: of each origin.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        streams: Mapping[Origin, Stream],
        live: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.device, self.seed, self.streams = device, seed, streams
        self.live = live or {}
        self.made: dict[int, Tensor] = dict(self.live)
        self.results: dict[int, Any] = {}

    def value(self, contents: Contents, view: View) -> Tensor:
        """A view of the contents. What a call gave as a whole has the strides that it gave."""
        for each in contents.history():
            if id(each) not in self.made and not each.is_result:
                self.made[id(each)] = self.make(each)
        return self.read(contents, view)

    def read(self, contents: Contents, view: View) -> Tensor:
        """A view of contents of which all is made that they were made of, in the dtype it is made in."""
        base = contents.base
        is_result = contents.is_result and id(contents) not in self.live
        if is_result and isinstance(base, Made) and base.view == view:
            return self.result(base)
        if id(contents) not in self.made:
            self.made[id(contents)] = self.make(contents)
        return _viewed(self.made[id(contents)], contents.dtype, view)

    def result(self, made: Made) -> Tensor:
        """What a call gave."""
        if id(made.call) not in self.results:
            self.results[id(made.call)] = self.call(made.call, None)
        results = self.results[id(made.call)]
        out: Tensor = results if isinstance(results, Tensor) else results[made.which]
        return out

    def make(self, contents: Contents, dtype: torch.dtype | None = None) -> Tensor:
        """The contents [numel], made of others that are; by default in the dtype to compute in."""
        base, recorded = contents.base, contents.dtype
        if dtype is None:
            dtype = recorded if _is_written_as_other(contents) else wide(recorded)
        if isinstance(base, Tensor):
            memory = base.to(self.device, dtype, copy=True)
        else:
            memory = torch.empty(contents.numel, dtype=dtype, device=self.device)
        if isinstance(base, Made):
            _viewed(memory, recorded, base.view).copy_(self.result(base))
        for write in contents.writes:
            if isinstance(write, Filled):
                self.fill(memory, write)
            else:
                self.call(write, memory, recorded)
        return memory

    def fill(self, memory: Tensor, filled: Filled) -> None:
        """Writes a Fill and its parts into memory [numel], by the elements' index there."""
        region, fill, origin, shape = filled
        stream = _CONSTANT if origin is None else self.streams[origin]
        own = stream.text
        if (base := fill.base) is not None:
            if shape is None:
                numbers = stream.numbers(region)
                if numbers is None:
                    raise RuntimeError(f"nothing tells the numbers of {region} in {stream}")
            else:
                numbers = [Numbers(region, own, Strided.contiguous(shape))]
            values = [
                Values(where.on(memory), base, fill.stream or name, which, which.sizes)
                for where, name, which in numbers
            ]
            write_values_(values, self.seed)
        for place, part in enumerate(fill.parts):
            its = Values(
                part.region.on(memory),
                part.fill,
                part_stream(fill, place, own),
                part.which,
                part.region.sizes,
            )
            write_values_([its], self.seed)

    def call(self, call: Call, memory: Tensor | None, recorded: torch.dtype | None = None) -> Any:
        """What an operation gives, with its tensors as they were then.

        Its random numbers are torch's, of a generator whose seed, in [0, 2^63), follows from the stream
        and the seed; on the CPU it is the global one, which is put back.

        Args:
            memory: [numel], which it writes; None if it makes a new tensor.
            recorded: the dtype of that memory when it was recorded.
        """
        to = _converts_to(call)
        is_narrow = memory is not None and memory.dtype is not wide(memory.dtype)

        def real(leaf: Any) -> Any:
            if isinstance(leaf, Own):
                assert memory is not None
                assert recorded is not None
                return _viewed(memory, recorded, leaf.view)
            if isinstance(leaf, Snapshot):
                value, dtype = self.read(leaf.contents, leaf.view), leaf.view.dtype
            elif isinstance(leaf, (Given, Tensor)):
                value = leaf.tensor if isinstance(leaf, Given) else leaf
                if isinstance(leaf, Given) and version_of(value) != leaf.version:
                    raise RuntimeError(f"a tensor that {call.line} reads was changed since")
                value, dtype = value.to(self.device), value.dtype
            else:
                return self.device if isinstance(leaf, torch.device) else leaf
            converts = to not in (None, dtype)
            return rounded(value, dtype if converts or is_narrow else wide(value.dtype))

        is_leaf = lambda x: isinstance(x, (Own, Snapshot, Given))  # noqa: E731
        args, kwargs = tree_map(real, (call.args, call.kwargs), is_leaf=is_leaf)
        if call.origin is None:
            return call.function(*args, **kwargs)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            stream = stream_id(self.streams[call.origin].text)
            torch.manual_seed(substream(stream, f"seed {self.seed}") >> 1)
            return call.function(*args, **kwargs)


def _viewed(memory: Tensor, recorded: torch.dtype, view: View) -> Tensor:
    """A view of memory [numel] that was recorded in another dtype than it is made in."""
    if view.dtype is recorded:
        return view._replace(dtype=memory.dtype).on(memory)
    return view.on(memory.to(recorded))  # its bits, as numbers of yet another dtype


def _is_written_as_other(contents: Contents) -> bool:
    """Whether a call writes its bits as numbers of another dtype, which therefore must be these."""
    views = [contents.base.view] if isinstance(contents.base, Made) else []
    for call in contents.writes:
        if isinstance(call, Call):
            views += [x.view for x in leaves((call.args, call.kwargs)) if isinstance(x, Own)]
    return any(view.dtype is not contents.dtype for view in views)


def _converts_to(call: Call) -> torch.dtype | None:
    """The dtype that a call converts values to, if that is all that it does."""
    name = str(call.function)
    if name == "aten._to_copy.default":
        return call.kwargs.get("dtype")
    if name == "aten.copy_.default" and isinstance(call.args[0], Own):
        return call.args[0].view.dtype
    return None
