"""What the model runs with in LSUV's passes, and whether later passes see what the first saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.elements import tensors
from fastinit.statistics.tensor import moments
from fastinit.stream import laws


class Call(NamedTuple):
    """One run of the model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    counts: bool = True
    """Whether its outputs are of the pass's moments; else layers are scaled by it, and no more."""


class Batches:
    """The same inputs in each pass, or batches that are iterated again.

    Layers are scaled by the first batch. So that a loader that shuffles does not take another one each
    time, the first batch of the first pass is kept, and comes first in the others as well.
    """

    def __init__(
        self,
        inputs: Call,
        batches: Iterable[Any] | None,
        get_input: Callable[[Any], Any] | None,
    ) -> None:
        self.inputs, self.batches = inputs, batches
        self.get_input = get_input or (lambda batch: batch)
        self.kept: Call | None = None
        self.seen: list[list[Any]] = []
        """By pass, of each batch, what is compared."""

    def one_pass(self) -> Iterator[Call]:
        """Raises ValueError if there is none."""
        if self.batches is None:
            yield self.inputs
            return
        self.seen.append([])
        for batch in self.batches:
            call = _as_call(self.get_input(batch))
            self.seen[-1].append(list(_compared(call)))
            if self.kept is None:
                self.kept = call
            elif len(self.seen[-1]) == 1 and self.seen[-1][0] != self.seen[0][0]:
                yield self.kept._replace(counts=False)
            yield call
        if not self.seen[-1]:
            raise ValueError(f"batches must not be empty, but was in pass {len(self.seen)}")

    def why_unsettled(self) -> str:
        """What may be the reason if the moments of the passes are not as asked for."""
        if len({len(seen) for seen in self.seen}) > 1:
            counts = ", ".join(str(len(seen)) for seen in self.seen)
            return f": they had {counts} batches"
        if self.seen and any(seen != self.seen[0] for seen in self.seen):
            return ": their batches differed, as of a loader that shuffles"
        return ""


def _as_call(batch: Any) -> Call:
    if isinstance(batch, Mapping):
        return Call((), dict(batch))
    return Call(tuple(batch) if isinstance(batch, (tuple, list)) else (batch,), {})


def _compared(call: Call) -> Iterator[tuple[Any, ...]]:
    """Of each tensor in a batch its shape and moments, or its sum."""
    for leaf in internals.tree_leaves((call.args, dict(call.kwargs))):
        if isinstance(leaf, Tensor) and tensors.unreadable(leaf) is None:
            if leaf.dtype in laws.DTYPES:
                yield leaf.shape, *moments(tensors.local(leaf)).raw.tolist()
            elif not leaf.is_complex():
                yield leaf.shape, leaf.sum().item()
