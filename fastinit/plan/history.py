"""Contents: what a tensor's memory holds, as recorded: the writes that made it, folded where possible.

A :class:`Contents` is a value: writing makes a new one, so that what was read earlier stays known. Most
fold to :class:`Filled`, a Fill over a region; the rest stay :class:`Call` and are replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinit.base.torch_internals import tree_leaves
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill


class Origin:
    """Where random numbers come from: one memory, from when it was last read. Gets a stream's name."""


class Own(NamedTuple):
    """An argument of a call: a view of the memory that it writes."""

    view: Strided


class Snapshot(NamedTuple):
    """An argument of a call: a view of other memory, as it was then."""

    contents: Contents
    view: Strided


class Filled(NamedTuple):
    """A Fill over some elements, merged."""

    region: Strided
    fill: Fill
    origin: Origin
    shape: tuple[int, ...] | None = None
    """The tensor's shape, for distributions of whole tensors."""


class Call(NamedTuple):
    """An operation to be replayed. Recorded memory is Own or Snapshot among its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    line: str
    origin: Origin | None = None
    """The origin of its random numbers, if it draws any."""


class Made(NamedTuple):
    """Memory that a call returned."""

    call: Call
    which: int
    """Which of its results."""


@dataclass(frozen=True, eq=False, repr=False)
class Contents:
    """What memory of ``numel`` elements of ``dtype`` holds.

    ``base`` is None if it was never written, values if they are known, or the call that made it;
    ``writes`` came after, in order.
    """

    numel: int
    dtype: torch.dtype
    device: torch.device
    base: Tensor | Made | None = None
    writes: tuple[Filled | Call, ...] = ()

    @classmethod
    def of_data(cls, tensor: Tensor) -> Contents:
        """Contents of known values: not copied if contiguous; one number everywhere is a constant."""
        data = tensor.detach().contiguous().view(-1)
        known = cls(data.numel(), data.dtype, data.device)
        value = _only_value(data)
        if value is None:
            return replace(known, base=data)
        return known.filled(known.whole, Fill.constant(value), Origin())

    @property
    def whole(self) -> Strided:
        """All its elements."""
        return Strided.run(0, self.numel)

    @property
    def is_unwritten(self) -> bool:
        """Whether nothing was written."""
        return self.base is None and not self.writes

    @property
    def is_random(self) -> bool:
        """Whether any number in it was drawn."""
        for write in self._all():
            if isinstance(write, Call):
                if write.origin is not None:
                    return True
            elif write.fill.is_random:
                return True
        return False

    @property
    def fills(self) -> tuple[Filled, ...] | None:
        """The writes, if all are Fills on nothing."""
        if self.base is None and all(isinstance(write, Filled) for write in self.writes):
            return self.writes  # type: ignore[return-value]
        return None

    def filled(
        self, region: Strided, fill: Fill, origin: Origin, shape: tuple[int, ...] | None = None
    ) -> Contents:
        """The contents after a Fill over a region, which is merged."""
        filled = Filled(region, fill, origin, shape)
        if region == self.whole:
            return replace(self, base=None, writes=(filled,))
        writes = self.writes
        if self.fills is not None and shape is None:
            writes = tuple(w for w in writes if w.region != region)  # type: ignore[union-attr]
            before = writes[-1] if writes else None
            if isinstance(before, Filled) and _continues(before, filled):
                joined = Strided.run(before.region.offset, before.region.numel + region.numel)
                return replace(self, writes=writes[:-1]).filled(joined, fill, origin)
        return replace(self, writes=(*writes, filled))

    def affine(self, region: Strided, factor: float, shift: float) -> Contents | None:
        """The contents after ``factor * x + shift`` over a region, if these are still Fills alone."""
        fills = self.fills
        if not fills or not math.isfinite(factor) or not math.isfinite(shift):
            return None
        if region == self.whole:
            after = []
            for filled in fills:
                if (fill := filled.fill.affine(factor, shift)) is None:
                    return None
                after.append(filled._replace(fill=fill))
            return replace(self, writes=tuple(after))
        if fills[-1].region == region or (len(fills) == 1 and fills[0].shape is None):
            # The last one, or some of the only one: by index they are the same numbers.
            fill = fills[-1].fill.affine(factor, shift)
            return None if fill is None else self.filled(region, fill, fills[-1].origin)
        return None

    def called(self, call: Call) -> Contents:
        """The contents after a call that writes them."""
        after = replace(self, writes=(*self.writes, call))
        return _truncated_normal(after) or after

    def origins(self) -> Iterator[Origin]:
        """The origins of all numbers in it, in the order of writing."""
        for write in self._all():
            if write.origin is not None:
                yield write.origin

    def _all(self) -> Iterator[Filled | Call]:
        """All writes that lead to it, those of memory that was read included."""
        for write in (*((self.base.call,) if isinstance(self.base, Made) else ()), *self.writes):
            if isinstance(write, Call):
                for leaf in leaves((write.args, write.kwargs)):
                    if isinstance(leaf, Snapshot):
                        yield from leaf.contents._all()
            yield write


def leaves(arguments: Any) -> list[Any]:
    """The arguments of a call, out of their lists and dicts."""
    return tree_leaves(arguments, is_leaf=lambda x: isinstance(x, (Own, Snapshot)))


def _continues(before: Filled, after: Filled) -> bool:
    """Whether two are one, cut in two."""
    return (
        before.region.is_run
        and after.region.is_run
        and before.region.offset + before.region.numel == after.region.offset
        and before.fill == after.fill
        and before.origin is after.origin
    )


def _only_value(data: Tensor) -> float | None:
    """The number that all elements are, if they are one."""
    if not data.numel() or not (data.is_floating_point()) or data.is_meta:
        return None
    first = data[0]
    for part in (data[:1024], data):  # most data show it at once
        if not bool((part == first).all()):
            return None
    return float(first)


def _truncated_normal(contents: Contents) -> Contents | None:
    """uniform, erfinv, times, plus, clamp on all elements (timm's trunc_normal_), as one law."""
    writes = contents.writes
    names = [getattr(w.function, "__name__", "") for w in writes[1:] if isinstance(w, Call)]
    if contents.base is not None or [n.split(".")[0] for n in names] not in (
        ["erfinv_", "mul_", "add_", "clamp_"],
        ["erfinv_", "mul_", "add_", "clip_"],
    ):
        return None
    uniform, _, times, plus, clamp = writes
    whole = contents.whole
    if not isinstance(uniform, Filled) or uniform.fill.distribution != "uniform":
        return None
    numbers: list[float] = []
    for call in (times, plus, clamp):
        assert isinstance(call, Call)
        own, *scalars = call.args
        scalars += list(call.kwargs.values())
        if not isinstance(own, Own) or own.view.merged() != whole:
            return None
        if not all(isinstance(s, (int, float)) for s in scalars):
            return None
        numbers += scalars
    if uniform.region != whole or len(numbers) != 4 or not numbers[0] > 0:
        return None
    std, mean, a, b = numbers[0] / math.sqrt(2.0), *numbers[1:]
    law = uniform.fill.law
    for bound, drawn in ((a, law.p0), (b, law.p1)):
        if abs(math.erf((bound - mean) / (std * math.sqrt(2.0))) - drawn) > 1e-6:
            return None
    fill = Fill.truncated_normal(mean, std, a, b)
    return replace(contents, writes=(Filled(whole, fill, uniform.origin),))
