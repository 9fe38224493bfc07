"""What the model runs with in LSUV's passes, and whether later passes see what the first saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.elements import tensors
from fastinit.statistics.tensor import moments
from fastinit.stream import laws
from fastinit.variance.lsuv.ranks import Ranks

_END = object()


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
        ranks: Ranks,
    ) -> None:
        self.inputs, self.batches, self.ranks = inputs, batches, ranks
        self.get_input = get_input or (lambda batch: batch)
        self.kept: Call | None = None
        self.first: list[Any] = []
        """Of each batch of the first pass, what is compared."""
        self.counts: list[int] = []
        """By pass, how many batches there were."""
        self.differed = False
        """Whether any batch on any rank was not as in the first pass."""

    def one_pass(self) -> Iterator[Call]:
        """Raises ValueError if there is none, or not as many on each rank."""
        if self.batches is None:
            yield self.inputs
            return
        self.counts.append(0)
        for batch in chain(self.batches, [_END]):
            call = None if batch is _END else _as_call(self.get_input(batch))
            differs = call is not None and self._differs(call)
            ended, going, differs = self.ranks.facts(
                [call is None, call is not None, differs], "the batches"
            )
            if ended and going:
                raise ValueError(self._uneven(call is None))
            if call is None:
                break
            self.differed |= differs
            if self.kept is None:
                self.kept = call
            elif self.counts[-1] == 0 and differs:
                yield self.kept._replace(counts=False)
            self.counts[-1] += 1
            yield call
        if not self.counts[-1]:
            raise ValueError(f"batches must not be empty, but was in pass {len(self.counts)}")

    def _differs(self, call: Call) -> bool:
        """Whether a batch is another than that of the first pass in its place."""
        compared = list(_compared(call))
        if len(self.counts) == 1:
            self.first.append(compared)
        place = self.counts[-1]
        return place < len(self.first) and compared != self.first[place]

    def _uneven(self, ended: bool) -> str:
        which = self.ranks.which(ended, "which ranks have no more batches")
        return (
            f"batches must be as many on each rank, but in pass {len(self.counts)} {which} had "
            f"{self.counts[-1]}, and others more"
        )

    def why_unsettled(self) -> str:
        """What may be the reason if the moments of the passes are not as asked for."""
        if len(set(self.counts)) > 1:
            return f": they had {', '.join(map(str, self.counts))} batches"
        if self.differed:
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
